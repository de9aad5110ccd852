"""Residual nets for small images, under the tensor names of the weights that people have.

`cifar_resnet20` and its kin are the nets of He et al. 2015 (section 4.2): 6n + 2 layers, three stages of 16, 32 and 64
channels, shortcuts without parameters (option A: every second pixel, channels padded with zeros). Tensor names are
those of the widely used CIFAR-10 weights (`conv1`, `bn1`, `layer1.0.conv1`, `linear`). `cifar_resnet18` is the
ResNet-18 that self-supervised work uses on CIFAR (Chen et al. 2020, appendix B.9): a 3x3 stem of stride 1, no
max-pooling, torchvision's names.

All of them speak timm's dialect (`forward_features`, `forward_intermediates`, `forward_head`, `get_classifier`,
`feature_info`), so that an encoder reads them as it reads a timm model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from holdfast.errors import ConfigError, nearest


class OptionA(nn.Module):
    """The shortcut without parameters: every second pixel, zeros for new channels (He et al. 2015, option A).

    Args:
        new: how many channels are added; half of them on either side.
    """

    def __init__(self, new: int) -> None:
        super().__init__()
        self.new = new

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, c + new, ceil(h / 2), ceil(w / 2)]."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015).

    Args:
        c_in: channels that come in.
        c_out: channels that leave.
        stride: of the first convolution.
        padded: shortcut of option A where the shape changes; a 1x1 convolution (option B, `downsample`) otherwise.
    """

    def __init__(self, c_in: int, c_out: int, *, stride: int, padded: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or c_in != c_out:
            convolved = (nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
            self.downsample = OptionA(c_out - c_in) if padded else nn.Sequential(*convolved)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c_in, h, w] -> [b, c_out, h / stride, w / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.downsample(x), inplace=True)


class SmallResNet(nn.Module):
    """A residual net with a 3x3 stem and no max-pooling.

    Args:
        blocks: how many per stage.
        width: channels of the first stage; each later one doubles them and halves the side.
        padded: shortcuts of option A.
        classifier: name of the last layer in the weights file.
        stride: of the stem.
        num_classes: 0 = no classifier.
    """

    def __init__(
        self, blocks: Sequence[int], *, width: int, padded: bool, classifier: str, stride: int = 1, num_classes: int = 0
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = [f"layer{i + 1}" for i in range(len(blocks))]
        c_in = width
        for i, (name, depth) in enumerate(zip(self.stages, blocks, strict=True)):
            c_out = width * 2**i
            layers = []
            for j in range(depth):
                layers.append(BasicBlock(c_in, c_out, stride=2 if i and not j else 1, padded=padded))
                c_in = c_out
            self.add_module(name, nn.Sequential(*layers))
        self.num_features = c_in
        self.feature_info = [{"num_chs": width, "reduction": stride, "module": "bn1"}] + [
            {"num_chs": width * 2**i, "reduction": stride * 2**i, "module": name} for i, name in enumerate(self.stages)
        ]
        self.classifier = classifier
        self.reset_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """The last layer: `nn.Linear`, or `nn.Identity` where there are no classes."""
        return self.get_submodule(self.classifier)

    def reset_classifier(self, num_classes: int) -> None:
        """A new last layer for so many classes; 0 = none."""
        self.num_classes = num_classes
        self.add_module(self.classifier, nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity())

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Sequence[int] | None = None,
        *,
        stop_early: bool = False,
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last map and those asked for.

        Args:
            x: normalised pixels [b, 3, h, w].
            indices: 0 = after the stem, i = after stage i; None = all.
            stop_early: stop after the last one that was asked for.
            intermediates_only: return the list alone.
        """
        wanted = set(range(len(self.stages) + 1) if indices is None else indices)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        taken = [x] if 0 in wanted else []
        for i, name in enumerate(self.stages, 1):
            if stop_early and i > max(wanted, default=0):
                break
            x = self.get_submodule(name)(x)
            taken += [x] if i in wanted else []
        return taken if intermediates_only else (x, taken)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised pixels [b, 3, h, w] -> the last map [b, c, h', w']."""
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map -> logits [b, classes]; with `pre_logits` its average [b, d]."""
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.get_classifier()(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pixels -> logits [b, classes], or the average of the last map where there are no classes."""
        return self.forward_head(self.forward_features(x))


def he_resnet(depth: int, *, width: int = 16, num_classes: int = 0) -> SmallResNet:
    """A CIFAR ResNet of He et al. 2015.

    Args:
        depth: 6n + 2: 8, 14, 20, 32, 44, 56, 110.
        width: channels of the first stage; 16 in the paper.
        num_classes: 0 = no classifier.

    Raises:
        ConfigError: the depth is not 6n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ConfigError(
            f"a ResNet of He et al. has 6n + 2 layers, not {depth}.", next="Take 8, 14, 20, 32, 44, 56 or 110."
        )
    n = (depth - 2) // 6
    return SmallResNet((n, n, n), width=width, padded=True, classifier="linear", num_classes=num_classes)


def cifar_resnet18(*, width: int = 64, num_classes: int = 0) -> SmallResNet:
    """ResNet-18 with a 3x3 stem of stride 1 and padding 1 and no max-pooling.

    Args:
        width: channels of the first stage.
        num_classes: 0 = no classifier.
    """
    return SmallResNet((2, 2, 2, 2), width=width, padded=False, classifier="fc", num_classes=num_classes)


def scenes_resnet8(*, width: int = 16, num_classes: int = 0) -> SmallResNet:
    """The demo's net: three blocks after a stem of stride 2, a quarter of the work of `cifar_resnet8`.

    Args:
        width: channels of the first stage.
        num_classes: 0 = no classifier.
    """
    return SmallResNet((1, 1, 1), width=width, padded=False, classifier="fc", stride=2, num_classes=num_classes)


ARCHITECTURES: dict[str, Callable[..., SmallResNet]] = {
    **{f"cifar_resnet{depth}": partial(he_resnet, depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "cifar_resnet18": cifar_resnet18,
    "scenes_resnet8": scenes_resnet8,
}
OPTIONS = ("num_classes", "width")


def build(name: str, **options: object) -> SmallResNet:
    """A net of `ARCHITECTURES` by its name, with random weights.

    Raises:
        ConfigError: the name or an option is unknown (the nearest is named).
    """
    if name not in ARCHITECTURES:
        raise ConfigError(f'"{name}" is no net for small images.', next=nearest(name, ARCHITECTURES))
    for option, value in options.items():
        if option not in OPTIONS:
            raise ConfigError(f'{name} has no option "{option}".', next=nearest(option, OPTIONS))
        if not isinstance(value, int) or value < (option == "width"):
            raise ConfigError(f"{name}: {option} is a whole number, not {value!r}.", next=f"Write {option}=16.")
    return ARCHITECTURES[name](**options)
