"""What every self-supervised method offers to the one training step."""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from holdfast.data.batches import Rows
from holdfast.models.encoder import Encoder, Engine, Precision
from holdfast.training.batchnorm import routed
from holdfast.views import Policy, view

Views = Mapping[str, Tensor]
Policies = Mapping[str, Policy]

FIRST, SECOND = "first", "second"


class Method(nn.Module, ABC):
    """An encoder with a loss around it.

    The adversary ascends `harm` on this bare module; the weights descend `forward`, which is what a distributed wrapper
    sees. Nothing but `update` and the buffers of normalisation layers changes between two optimizer steps. What couples
    the images of a batch sees those of all ranks (`ranks.gathered`), so that a run does not depend on their number.

    Attributes:
        encoder: what is being trained.
        policies: what is drawn for each view, by its name.
        attacked: names of the views that an adversary perturbs; empty = none, and then no truth is needed for them.
        precision: of the encoder's pass; what follows it is float32.
        engine: of the encoder's pass.
        fixed: whether BatchNorms keep their running statistics in training too.
        dual: whether perturbed views pass through BatchNorms of their own.
        done: share of the run's optimizer steps that are behind, in [0, 1]; the step sets it.
    """

    encoder: Encoder
    policies: Policies
    attacked: tuple[str, ...] = ()
    precision: Precision = "fp32"
    engine: Engine = "eager"
    done: float = 0.0
    dual: bool = False
    fixed: bool = False

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for BatchNorms that are fixed."""
        super().train(mode)
        if self.fixed:
            for part in self.modules():
                if isinstance(part, _BatchNorm):
                    part.eval()
        return self

    def views(self, x: Tensor, rows: Rows) -> dict[str, Tensor]:
        """Random views by name; they depend on images and keys alone, never on a weight.

        Args:
            x: float32 [b, 3, h, w] in [0, 1].
            rows: "key" int64 [b], another one for each image in each epoch.

        Returns:
            float32 [b, 3, s, s] in [0, 1] each; sizes may differ between views.
        """
        return {name: view(x, rows["key"], policy, name) for name, policy in self.policies.items()}

    @abstractmethod
    def truth(self, views: Views, rows: Rows) -> Rows:
        """`rows` with what the views are compared against; made once per batch, from clean views, without gradient."""

    @abstractmethod
    def harm(self, adversarial: Views, truth: Rows, t: Tensor) -> Tensor:
        """What the adversary raises.

        Args:
            adversarial: the attacked views by name.
            truth: as `truth` made it.
            t: progress of the ascent in [0, 1], [b].

        Returns:
            One number per image [b], or one for a batch whose images it couples [].
        """

    @abstractmethod
    def forward(self, views: Views, adversarial: Views, truth: Rows) -> Tensor:
        """The loss that the weights lower.

        Args:
            views: as `views` made them.
            adversarial: perturbed stand-ins for some of them; empty without an adversary.
            truth: as `truth` made it.

        Returns:
            A scalar.
        """

    @abstractmethod
    def objective(self) -> str:
        """The loss and its views in a sentence or two, for the model card."""

    def update(self) -> None:
        """What follows an optimizer step: a momentum teacher, a centre, a queue. Nothing here."""

    @property
    def passes(self) -> int:
        """Views of an image that the weights learn from in one descent, forward and backward each."""
        return len(self.policies)

    @property
    def neck(self) -> nn.Sequential | None:
        """What stands between the encoder's features and the projector and is kept with the encoder; None here."""
        return None

    def pooled(self, x: Tensor) -> Tensor:
        """The encoder's features of pixels [b, 3, h, w], float32 [b, d], at the method's precision."""
        features: Tensor = self.encoder(x, precision=self.precision, engine=self.engine).pooled
        return features

    def each(self, embed: Callable[[Tensor], Tensor], views: Views, moved: Collection[str] = ()) -> dict[str, Tensor]:
        """`embed` of every view: those of one size pass as one batch, so that BatchNorm sees them together.

        Args:
            embed: pixels [n, 3, h, w] to [n, ...].
            views: by name.
            moved: the perturbed ones among them; where BatchNorm is dual they pass apart, through their own.

        Returns:
            [b, ...] by name, in the order of `views`.
        """
        groups: dict[tuple[torch.Size, bool], list[str]] = {}
        for name, x in views.items():
            groups.setdefault((x.shape[1:], self.dual and name in moved), []).append(name)
        found: dict[str, Tensor] = {}
        for (_, perturbed), names in groups.items():
            with routed(self, perturbed=perturbed) if self.dual else contextlib.nullcontext():
                out = embed(torch.cat([views[name] for name in names]))
            found.update(zip(names, torch.split(out, [len(views[name]) for name in names])))
        return {name: found[name] for name in views}


def said(policy: Policy) -> str:
    """What is drawn for a view, in words."""
    crop = f"a crop of {_span(policy.scale)} of the area"
    if policy.pad:
        crop = f"a crop of the image's own size from the image with {policy.pad} black pixels around it"
    words = [
        crop,
        f"mirrored with probability {policy.flip:g}",
        f"colours changed with {policy.jitter:g} (brightness {policy.brightness:g}, contrast {policy.contrast:g}, "
        f"saturation {policy.saturation:g}, hue {policy.hue:g})",
        f"grey with {policy.grey:g}",
        f"blurred with {policy.blur:g}",
    ]
    return ", ".join([*words, *([f"solarised with {policy.solarise:g}"] if policy.solarise else [])])


def _span(scale: tuple[float, float]) -> str:
    return f"{scale[0]:g}" if scale[0] == scale[1] else f"{scale[0]:g} to {scale[1]:g}"


def mlp(widths: tuple[int, ...], *, last: bool = False) -> nn.Sequential:
    """Linear layers, BatchNorm and ReLU between them.

    Args:
        widths: of the input, then of each layer.
        last: whether a BatchNorm without gain and bias stands behind the last layer.
    """
    layers: list[nn.Module] = []
    for c_in, c_out in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(c_in, c_out, bias=False), nn.BatchNorm1d(c_out), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=not last))
    return nn.Sequential(*layers, *([nn.BatchNorm1d(widths[-1], affine=False)] if last else []))
