"""A zoo of broken models around one plain net that was trained on drawn scenes: each breaks one thing alone.

After the six wrappers of obfuscated gradients (Athalye et al. 2018, arXiv 1802.00420): quantised input (zero gradient),
shattered gradients, vanishing ones (logits x 2000), a randomised model, and two mistakes that evaluations meet:
probabilities instead of logits, and batch normalisation left in training mode.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast.data.batches import batches
from holdfast.data.sources import open_source
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder, frozen
from holdfast.records import Data
from holdfast.training.probe import fit_linear

GOLDEN = Path(__file__).parents[1] / "golden" / "scenes_resnet8.safetensors"
LEVELS = 12
SIGMA = 8 / 255
SCALE = 2000.0


class Broken(nn.Module):
    """An encoder with something before its pixels and something after its logits.

    Args:
        body: pixels in [0, 1] -> features.
        head: features [b, d] -> logits [b, k].
        before: pixels -> pixels.
        after: logits -> what is taken for logits.
        mark: a number of its own, so that no two models hold the same weights.
    """

    def __init__(self, body: Encoder, head: nn.Linear, before: nn.Module, after: nn.Module, mark: int) -> None:
        super().__init__()
        self.body, self.before = body, before
        self.classifier = nn.Sequential(head, after)
        self.num_classes = head.out_features
        self.register_buffer("mark", torch.tensor(float(mark)))

    def forward(self, pixels: Tensor) -> Tensor:
        """[b, 3, h, w] -> [b, d]."""
        return self.body(self.before(pixels)).pooled

    def get_classifier(self) -> nn.Module:
        """[b, d] -> [b, k]."""
        return self.classifier


class Quantised(nn.Module):
    """Few levels of brightness; the gradient of rounding is zero."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels -> pixels."""
        return (pixels * (LEVELS - 1)).round() / (LEVELS - 1)


class Shattered(nn.Module):
    """A ripple that nobody sees (0.13/255) and whose slope is 75 times that of the pixel."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels -> pixels."""
        return pixels + 0.0005 * torch.sin(150000 * pixels)


class Noisy(nn.Module):
    """Gaussian noise drawn anew in every pass."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels -> pixels."""
        return pixels + SIGMA * torch.randn_like(pixels)


class Scaled(nn.Module):
    """Logits so large that a softmax in float32 is one or zero."""

    def forward(self, logits: Tensor) -> Tensor:
        """Logits -> logits."""
        return SCALE * logits


class OfTheBatch(nn.Module):
    """Batch normalisation by the statistics of the batch, whatever mode the model is in.

    Args:
        norm: whose weight and bias are taken.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> the same."""
        return functional.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


def zoo() -> Mapping[str, Encoder]:
    """The models by name, `plain` first; a head is fitted on 800 drawn scenes, which takes seconds."""
    body = load(GOLDEN)
    pixels, labels = scenes(800, "train")
    with frozen(body), torch.no_grad():
        features = torch.cat([body(part).pooled for part in pixels.split(100)])
    head = fit_linear(features, labels, classes=8)
    parts = {
        "plain": (nn.Identity(), nn.Identity()),
        "quantised": (Quantised(), nn.Identity()),
        "shattered": (Shattered(), nn.Identity()),
        "scaled": (nn.Identity(), Scaled()),
        "noisy": (Noisy(), nn.Identity()),
        "softmax": (nn.Identity(), nn.Softmax(1)),
        "batch": (nn.Identity(), nn.Identity()),
    }
    made = {}
    for mark, (name, (before, after)) in enumerate(parts.items()):
        own = copy.deepcopy(body)
        if name == "batch":
            _of_the_batch(own)
        made[name] = load(Broken(own, head, before, after, mark).eval(), name=name)
    return made


def scenes(n: int, split: str) -> tuple[Tensor, Tensor]:
    """Pixels [n, 3, 32, 32] and labels [n] of drawn scenes."""
    (batch,) = batches(open_source(Data(source="scenes", split=split, limit=n)), size=n)
    return batch.pixels, batch.rows["label"]


def _of_the_batch(module: nn.Module) -> None:
    for name, part in list(module.named_children()):
        if isinstance(part, nn.BatchNorm2d):
            setattr(module, name, OfTheBatch(part))
        else:
            _of_the_batch(part)
