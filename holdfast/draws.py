"""Random numbers keyed by (seed, purpose, image, step): the only source of them in Holdfast.

A number depends on its key alone, never on batch size, worker, order or device: every row is drawn on the CPU by a
generator of its own and moved afterwards. One `torch.Generator` per image and purpose is about fifteen times cheaper in
eager torch than a counter-based generator for the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 63) - 1


def key(*parts: str | int | float) -> int:
    """A number in [0, 2^63) that stands for its parts, the same on every machine and Python.

    Args:
        parts: what the draw is for: seed, purpose, image id, step...

    Returns:
        63 bits of BLAKE2b over the parts and their types.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        word = f"{type(part).__name__}:{part!r};"
        digest.update(word.encode())
    return int.from_bytes(digest.digest(), "little") & _MASK


def keys(ids: Sequence[str]) -> Tensor:
    """The row `key` of a batch: one int64 per image id, shape [b]."""
    return torch.tensor([key(i) for i in ids], dtype=torch.int64)


def generator(*parts: str | int | float) -> torch.Generator:
    """A torch generator on the CPU, seeded by `key(*parts)`."""
    return torch.Generator().manual_seed(key(*parts))


def numpy_generator(*parts: str | int | float) -> np.random.Generator:
    """A NumPy generator (SFC64), seeded by `key(*parts)`; for float64 fields in bulk."""
    return np.random.Generator(np.random.SFC64(key(*parts)))


def counter(*parts: str | int | float) -> np.random.Generator:
    """A counter-based NumPy generator (Philox 4x64, Salmon et al. 2011), seeded by `key(*parts)`; for raw bytes and for
    integers in bulk, where it is as fast as any."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))


def uniform(rows: Tensor, shape: Sequence[int], *parts: str | int | float) -> Tensor:
    """Uniform numbers in [0, 1), one block per row.

    Args:
        rows: the row `key`, int64 [b].
        shape: of one row's block.
        parts: seed, purpose, step: what this draw is for.

    Returns:
        float32 [b, *shape] on the device of `rows`.
    """
    blocks = [torch.rand(tuple(shape), generator=generator(*parts, k)) for k in rows.tolist()]
    return _stack(blocks, shape).to(rows.device)


def normal(rows: Tensor, shape: Sequence[int], *parts: str | int | float) -> Tensor:
    """Standard normal numbers, one block per row; arguments and result as `uniform`."""
    blocks = [torch.randn(tuple(shape), generator=generator(*parts, k)) for k in rows.tolist()]
    return _stack(blocks, shape).to(rows.device)


def integers(rows: Tensor, high: int, *parts: str | int | float) -> Tensor:
    """Integers in [0, high), one per row: int64 [b]."""
    drawn = [int(torch.randint(high, (), generator=generator(*parts, k))) for k in rows.tolist()]
    return torch.tensor(drawn, dtype=torch.int64, device=rows.device)


def permutation(n: int, *parts: str | int | float) -> Tensor:
    """An order of n things: int64 [n]."""
    return torch.randperm(n, generator=generator(*parts))


def subset(n: int, size: int, *parts: str | int | float) -> list[int]:
    """`size` of n indices, drawn without replacement, in ascending order; all of them where size >= n or size <= 0."""
    if size <= 0 or size >= n:
        return list(range(n))
    chosen: list[int] = sorted(permutation(n, *parts)[:size].tolist())
    return chosen


def _stack(blocks: list[Tensor], shape: Sequence[int]) -> Tensor:
    return torch.stack(blocks) if blocks else torch.empty((0, *shape))
