"""Random numbers keyed by (seed, purpose, image, step): the only source of them in Holdfast.

A number depends on its key alone, never on batch size, worker, order or device: every row is drawn on the CPU by a
generator of its own and moved afterwards. One `torch.Generator` per image and purpose is about fifteen times cheaper in
eager torch than a counter-based generator for the same numbers.

Where every row needs a few numbers at every one of thousands of steps, take `streams` once and `words` at each step: no
generator is made there, all rows are drawn together on their device, and each may be at a step of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 63) - 1

# SplitMix64 (Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014), as signed numbers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
WORD = 31
"""Bits of one of `words`."""


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


def streams(rows: Tensor, *parts: str | int | float) -> Tensor:
    """What `words` draws from: one stream per row.

    Args:
        rows: the row `key`, int64 [b].
        parts: seed, purpose, restart: what the draws are for, the step left out.

    Returns:
        int64 [b] on the device of `rows`.
    """
    return torch.tensor([key(*parts, k) for k in rows.tolist()], dtype=torch.int64, device=rows.device)


def words(streams: Tensor, steps: Tensor, lanes: int) -> Tensor:
    """Uniform numbers of 31 bits, a few for every row at a step of its own.

    Args:
        streams: int64 [b], made by the function of that name.
        steps: int64 [b], at least 0: which draw of the stream.
        lanes: how many numbers; the first ones do not depend on how many follow.

    Returns:
        int64 [b, lanes] in [0, 2^31), from SplitMix64 taken at (stream, step) and then at (that, lane).
    """
    begun = _mixed(streams + (steps + 1) * _GOLDEN)
    lane = torch.arange(1, lanes + 1, device=streams.device) * _GOLDEN
    return (_mixed(begun[:, None] + lane) >> (64 - WORD)) & ((1 << WORD) - 1)


def below(words: Tensor, high: int | Tensor) -> Tensor:
    """Integers in [0, high) from numbers of 31 bits: int64 of the same shape; `high` is at most 2^31."""
    return (words * high) >> WORD


def permutation(n: int, *parts: str | int | float) -> Tensor:
    """An order of n things: int64 [n]."""
    return torch.randperm(n, generator=generator(*parts))


def subset(n: int, size: int, *parts: str | int | float) -> list[int]:
    """`size` of n indices, drawn without replacement, in ascending order; all of them where size >= n or size <= 0."""
    if size <= 0 or size >= n:
        return list(range(n))
    chosen: list[int] = sorted(permutation(n, *parts)[:size].tolist())
    return chosen


def _mixed(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64: int64 as 64 bits, products modulo 2^64, shifts that fill with zeros."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _FIRST
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _SECOND
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def _stack(blocks: list[Tensor], shape: Sequence[int]) -> Tensor:
    return torch.stack(blocks) if blocks else torch.empty((0, *shape))
