"""BatchNorm in training: statistics of all ranks (on a CPU too), and a second set for perturbed images.

Dual: Xie et al., Adversarial Examples Improve Image Recognition, CVPR 2020 (arXiv 1911.09665); in self-supervision
Jiang et al., Robust Pre-Training by Adversarial Contrastive Learning (ACL), NeurIPS 2020 (arXiv 2010.13337).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from holdfast.errors import ConfigError
from holdfast.training.ranks import summed

Module = TypeVar("Module", bound=nn.Module)


class SyncedBatchNorm(_BatchNorm):
    """BatchNorm whose batch is that of all ranks together; the same numbers as one process on the joined batch.

    Mean first, then the squares about it: two sums over the ranks, in exchange for float32's digits.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        """Any input with channels second."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, ...] -> [b, c, ...]."""
        if not self.training:
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        axes = [0, *range(2, x.ndim)]
        shape = (1, -1, *[1] * (x.ndim - 2))
        count = summed(x.new_tensor(float(x.numel() // x.shape[1])))
        mean = summed(x.float().sum(axes)) / count
        centred = x - mean.view(shape)
        var = summed(centred.float().square().sum(axes)) / count
        self._remember(mean.detach(), var.detach(), float(count))
        scaled = centred * torch.rsqrt(var + self.eps).view(shape)
        if not self.affine:
            return scaled
        return scaled * self.weight.view(shape) + self.bias.view(shape)

    def _remember(self, mean: Tensor, var: Tensor, count: float) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            part = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, part)
            self.running_var.lerp_(var * (count / max(count - 1, 1)), part)


class DualBatchNorm(nn.Module):
    """Two BatchNorms that begin alike: one for clean images, one for perturbed ones. `routed` says which is used.

    Args:
        norm: is copied for the perturbed ones.
    """

    perturbed = False

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.clean, self.moved = norm, copy.deepcopy(norm)

    def forward(self, x: Tensor) -> Tensor:
        """As the BatchNorm that is used now."""
        return cast(Tensor, (self.moved if self.perturbed else self.clean)(x))


@contextlib.contextmanager
def routed(module: nn.Module, *, perturbed: bool) -> Iterator[None]:
    """Within, every `DualBatchNorm` of a module uses the set for perturbed images, or that for clean ones."""
    duals = [part for part in module.modules() if isinstance(part, DualBatchNorm)]
    before = [part.perturbed for part in duals]
    for part in duals:
        part.perturbed = perturbed
    try:
        yield
    finally:
        for part, was in zip(duals, before):
            part.perturbed = was


def synced(module: Module) -> Module:
    """A module whose BatchNorms see the batch of all ranks, with the same parameters and buffers.

    Raises:
        ConfigError: a BatchNorm of another kind (with an activation in it, say), whose statistics would stay apart.
    """
    return cast(Module, _replaced(module, _synced))


def dual(module: Module) -> Module:
    """A module with a second set of every BatchNorm, for perturbed images."""
    return cast(Module, _replaced(module, lambda norm, _: DualBatchNorm(norm)))


def folded(module: nn.Module) -> bool:
    """Whether a module has BatchNorms, and all of them still the statistics that they are made with: 0 and 1."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]
    return bool(norms) and all(
        not bool(part.running_mean.any()) and bool((part.running_var == 1).all())  # type: ignore[union-attr]
        for part in norms
    )


def single(module: Module, *, perturbed: bool) -> Module:
    """A copy of a module with one set of BatchNorm left: that for perturbed images, or that for clean ones."""
    kept: nn.Module = _exchanged(
        copy.deepcopy(module),
        lambda part, _: (part.moved if perturbed else part.clean) if isinstance(part, DualBatchNorm) else None,
    )
    return cast(Module, kept)


def _synced(norm: _BatchNorm, where: str) -> nn.Module:
    if isinstance(norm, SyncedBatchNorm):
        return norm
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        raise ConfigError(
            f"{where} is a {type(norm).__name__}, whose statistics cannot be shared between processes.",
            asked="A batch over several processes was asked for.",
            next="Train it in one process, or choose an architecture with plain BatchNorm.",
        )
    made = SyncedBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name, p in norm.named_parameters():
        setattr(made, name, p)
    for name, b in norm.named_buffers():
        setattr(made, name, b)
    return made.train(norm.training)


def _replaced(module: nn.Module, change: Callable[[_BatchNorm, str], nn.Module]) -> nn.Module:
    return _exchanged(module, lambda part, where: change(part, where) if isinstance(part, _BatchNorm) else None)


def _exchanged(module: nn.Module, change: Callable[[nn.Module, str], nn.Module | None], where: str = "") -> nn.Module:
    """The module with every part exchanged for which `change` gives another; what was exchanged is not looked into."""
    changed = change(module, where)
    if changed is not None:
        return changed
    for name, part in list(module.named_children()):
        setattr(module, name, _exchanged(part, change, f"{where}.{name}".lstrip(".")))
    return module
