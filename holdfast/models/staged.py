"""What nets for small images share: a stem, stages, an average, a classifier; and timm's dialect to read them by."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Staged(nn.Module):
    """A net of a stem, stages that run one after the other, and what follows the last one.

    It speaks timm's dialect (`forward_features`, `forward_intermediates`, `forward_head`, `get_classifier`,
    `feature_info`), so that an encoder reads it as it reads a timm model.

    Attributes:
        stages: names of the stages.
        num_features: channels of the last map.
        feature_info: channels, reduction and module of the stem's map and of every stage's.
        classifier: name of the last layer in the weights file.
        num_classes: 0 = no classifier.
    """

    stages: list[str]
    num_features: int
    feature_info: list[dict[str, object]]
    classifier: str
    num_classes: int

    def stem(self, x: Tensor) -> Tensor:
        """Normalised pixels [b, 3, h, w] -> the map before the first stage."""
        raise NotImplementedError

    def settled(self, x: Tensor) -> Tensor:
        """What follows the last stage; nothing unless a net says otherwise."""
        return x

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
        x = self.stem(x)
        taken = [x] if 0 in wanted else []
        for i, name in enumerate(self.stages, 1):
            if stop_early and i > max(wanted, default=0):
                break
            x = self.get_submodule(name)(x)
            taken += [x] if i in wanted else []
        return taken if intermediates_only else (self.settled(x), taken)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised pixels [b, 3, h, w] -> the last map [b, c, h', w']."""
        x = self.stem(x)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.settled(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map -> logits [b, classes]; with `pre_logits` its average [b, d]."""
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.get_classifier()(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pixels -> logits [b, classes], or the average of the last map where there are no classes."""
        return self.forward_head(self.forward_features(x))


def he_normal(module: nn.Module) -> None:
    """Draw the weights of all convolutions as He et al. 2015 do (fan out, ReLU), from torch's global generator."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
