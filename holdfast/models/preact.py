"""Pre-activation nets for small images, under the tensor names of the weights that people have.

`cifar_preactresnet18`: He et al., Identity Mappings in Deep Residual Networks, ECCV 2016, with two blocks in each of
four stages (`layer1.0.bn1`, `shortcut.0`, `bn`, `linear`). `cifar_wrn28_10` and its kin: Zagoruyko and Komodakis, Wide
Residual Networks, BMVC 2016, without dropout (`block1.layer.0.bn1`, `convShortcut`, `bn1`, `fc`): the nets of most work
on adversarial training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from holdfast.errors import ConfigError
from holdfast.models.staged import Staged, he_normal


class Names(NamedTuple):
    """How a family calls its parts: stages, what a stage wraps its blocks in, shortcut, last BatchNorm, classifier."""

    stage: str
    within: str
    shortcut: str
    norm: str
    classifier: str


PREACT = Names("layer", "", "shortcut.0", "bn", "linear")
WIDE = Names("block", "layer", "convShortcut", "bn1", "fc")


class PreActBlock(nn.Module):
    """BatchNorm, ReLU and 3x3 convolution, twice; where the shape changes, the shortcut sees the first ReLU's output.

    Args:
        c_in: channels that come in.
        c_out: channels that leave.
        stride: of the first convolution.
        shortcut: name of the 1x1 convolution.
    """

    def __init__(self, c_in: int, c_out: int, *, stride: int, shortcut: str) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.across = ""
        if stride > 1 or c_in != c_out:
            self.across, _, inner = shortcut.partition(".")
            across: nn.Module = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.add_module(self.across, nn.Sequential(across) if inner else across)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c_in, h, w] -> [b, c_out, h / stride, w / stride]."""
        active = functional.relu(self.bn1(x), inplace=True)
        y = self.conv2(functional.relu(self.bn2(self.conv1(active)), inplace=True))
        across = self.get_submodule(self.across)(active) if self.across else x
        total: Tensor = across + y
        return total


class PreActNet(Staged):
    """A 3x3 stem, stages of pre-activation blocks, BatchNorm and ReLU, an average.

    Args:
        blocks: how many per stage.
        widths: channels of the stem, then of every stage; from the second stage on the side is halved.
        names: of the parts.
        num_classes: 0 = no classifier.
    """

    def __init__(self, blocks: Sequence[int], widths: Sequence[int], *, names: Names, num_classes: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.stages = [f"{names.stage}{i + 1}" for i in range(len(blocks))]
        self.feature_info = [{"num_chs": widths[0], "reduction": 1, "module": "conv1"}]
        c_in = widths[0]
        for i, (name, depth, c_out) in enumerate(zip(self.stages, blocks, widths[1:], strict=True)):
            layers = []
            for j in range(depth):
                layers.append(PreActBlock(c_in, c_out, stride=2 if i and not j else 1, shortcut=names.shortcut))
                c_in = c_out
            stage = nn.Sequential(*layers)
            self.add_module(name, nn.Sequential() if names.within else stage)
            if names.within:
                self.get_submodule(name).add_module(names.within, stage)
            self.feature_info.append({"num_chs": c_out, "reduction": 2**i, "module": name})
        self.norm = names.norm
        self.add_module(self.norm, nn.BatchNorm2d(c_in))
        self.num_features = c_in
        self.classifier = names.classifier
        self.reset_classifier(num_classes)
        he_normal(self)

    def stem(self, x: Tensor) -> Tensor:
        """One convolution."""
        y: Tensor = self.conv1(x)
        return y

    def settled(self, x: Tensor) -> Tensor:
        """BatchNorm and ReLU."""
        return functional.relu(self.get_submodule(self.norm)(x))


def preactresnet18(*, width: int = 64, num_classes: int = 0) -> PreActNet:
    """PreActResNet-18 with a 3x3 stem of stride 1.

    Args:
        width: channels of the first stage.
        num_classes: 0 = no classifier.
    """
    widths = (width, *(width * 2**i for i in range(4)))
    return PreActNet((2, 2, 2, 2), widths, names=PREACT, num_classes=num_classes)


def wide_resnet(depth: int, widen: int, *, width: int = 16, num_classes: int = 0) -> PreActNet:
    """WRN-depth-widen.

    Args:
        depth: 6n + 4: 16, 28, 34, 40.
        widen: times the channels of the stages.
        width: channels of the stem; 16 in the paper.
        num_classes: 0 = no classifier.

    Raises:
        ConfigError: the depth is not 6n + 4.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ConfigError(f"a wide ResNet has 6n + 4 layers, not {depth}.", next="Take 16, 28, 34 or 40.")
    n = (depth - 4) // 6
    widths = (width, *(width * widen * 2**i for i in range(3)))
    return PreActNet((n, n, n), widths, names=WIDE, num_classes=num_classes)


ARCHITECTURES: dict[str, Callable[..., PreActNet]] = {
    "cifar_preactresnet18": preactresnet18,
    **{
        f"cifar_wrn{depth}_{widen}": lambda depth=depth, widen=widen, **options: wide_resnet(depth, widen, **options)
        for depth, widen in ((28, 10), (34, 10), (40, 2))
    },
}
