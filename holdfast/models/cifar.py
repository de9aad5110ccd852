"""Residual nets for small images, under the tensor names of the weights that people have.

`cifar_resnet20` and its kin are the nets of He et al. 2015 (section 4.2): 6n + 2 layers, three stages of 16, 32 and 64
channels, shortcuts without parameters (option A: every second pixel, channels padded with zeros). Tensor names are
those of the widely used CIFAR-10 weights (`conv1`, `bn1`, `layer1.0.conv1`, `linear`). `cifar_resnet18` is the
ResNet-18 that self-supervised work uses on CIFAR (Chen et al. 2020, appendix B.9): a 3x3 stem of stride 1, no
max-pooling, torchvision's names; `cifar_resnet34` and `cifar_resnet50` are its deeper kin. Pre-activation nets are in
`preact`. Tiny-ImageNet at 64 pixels is trained with `cifar_resnet18` too, or, as CF-AMC-SSL has it, with the stem for
224 pixels: timm's `resnet18`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from holdfast.errors import ConfigError, nearest
from holdfast.models import preact
from holdfast.models.staged import Staged, he_normal


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

    Attributes:
        expansion: channels that leave, by those of a stage's first block.

    Args:
        c_in: channels that come in.
        c_out: channels that leave.
        stride: of the first convolution.
        padded: shortcut of option A where the shape changes; a 1x1 convolution (option B, `downsample`) otherwise.
    """

    expansion = 1

    def __init__(self, c_in: int, c_out: int, *, stride: int, padded: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = _shortcut(c_in, c_out, stride, padded=padded)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c_in, h, w] -> [b, c_out, h / stride, w / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.downsample(x), inplace=True)


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1 and a shortcut (He et al. 2015; stride on the 3x3, as torchvision has it).

    Attributes:
        expansion: channels that leave, by those within.

    Args:
        c_in: channels that come in.
        c_out: channels that leave.
        stride: of the 3x3 convolution.
        padded: see `BasicBlock`.
    """

    expansion = 4

    def __init__(self, c_in: int, c_out: int, *, stride: int, padded: bool) -> None:
        super().__init__()
        within = c_out // self.expansion
        self.conv1 = nn.Conv2d(c_in, within, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(within)
        self.conv2 = nn.Conv2d(within, within, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(within)
        self.conv3 = nn.Conv2d(within, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample = _shortcut(c_in, c_out, stride, padded=padded)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c_in, h, w] -> [b, c_out, h / stride, w / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = functional.relu(self.bn2(self.conv2(y)), inplace=True)
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x), inplace=True)


def _shortcut(c_in: int, c_out: int, stride: int, *, padded: bool) -> nn.Module:
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    # Drawn for option A too, so that a seed's weights are those of older versions.
    convolved = (nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
    return OptionA(c_out - c_in) if padded else nn.Sequential(*convolved)


class SmallResNet(Staged):
    """A residual net with a 3x3 stem and no max-pooling.

    Args:
        blocks: how many per stage.
        width: channels of the first stage; each later one doubles them and halves the side.
        padded: shortcuts of option A.
        classifier: name of the last layer in the weights file.
        stride: of the stem.
        block: `BasicBlock`, or `Bottleneck`.
        num_classes: 0 = no classifier.
    """

    def __init__(  # parameters: a net's shape
        self,
        blocks: Sequence[int],
        *,
        width: int,
        padded: bool,
        classifier: str,
        stride: int = 1,
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = [f"layer{i + 1}" for i in range(len(blocks))]
        c_in = width
        for i, (name, depth) in enumerate(zip(self.stages, blocks, strict=True)):
            c_out = width * 2**i * block.expansion
            layers = []
            for j in range(depth):
                layers.append(block(c_in, c_out, stride=2 if i and not j else 1, padded=padded))
                c_in = c_out
            self.add_module(name, nn.Sequential(*layers))
        self.num_features = c_in
        self.feature_info = [{"num_chs": width, "reduction": stride, "module": "bn1"}] + [
            {"num_chs": width * 2**i * block.expansion, "reduction": stride * 2**i, "module": name}
            for i, name in enumerate(self.stages)
        ]
        self.classifier = classifier
        self.reset_classifier(num_classes)
        he_normal(self)

    def stem(self, x: Tensor) -> Tensor:
        """Convolution, BatchNorm, ReLU."""
        return functional.relu(self.bn1(self.conv1(x)), inplace=True)


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


def cifar_resnet(layers: int, *, width: int = 64, num_classes: int = 0) -> SmallResNet:
    """ResNet-18, -34 or -50 with a 3x3 stem of stride 1 and padding 1 and no max-pooling.

    Args:
        layers: 18, 34 or 50.
        width: channels of the first stage (within its bottlenecks).
        num_classes: 0 = no classifier.
    """
    blocks = (2, 2, 2, 2) if layers == 18 else (3, 4, 6, 3)
    block = Bottleneck if layers == 50 else BasicBlock
    return SmallResNet(blocks, width=width, padded=False, classifier="fc", block=block, num_classes=num_classes)


def scenes_resnet8(*, width: int = 16, num_classes: int = 0) -> SmallResNet:
    """The demo's net: three blocks after a stem of stride 2, a quarter of the work of `cifar_resnet8`.

    Args:
        width: channels of the first stage.
        num_classes: 0 = no classifier.
    """
    return SmallResNet((1, 1, 1), width=width, padded=False, classifier="fc", stride=2, num_classes=num_classes)


DEPTHS = (8, 14, 20, 32, 44, 56, 110)
ARCHITECTURES: dict[str, Callable[..., Staged]] = {
    **{f"cifar_resnet{depth}": partial(he_resnet, depth) for depth in DEPTHS},
    **{f"cifar_resnet{layers}": partial(cifar_resnet, layers) for layers in (18, 34, 50)},
    **preact.ARCHITECTURES,
    "scenes_resnet8": scenes_resnet8,
}
PUBLISHED = tuple(f"cifar_resnet{depth}" for depth in DEPTHS)
"""Nets whose published CIFAR-10 weights take ImageNet's mean and std."""
OPTIONS = ("num_classes", "width")


def build(name: str, **options: object) -> Staged:
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
