"""Square in L2 and L1: a proposal moves the mass of one window into another and fills up what the ball leaves.

    new = (eta * sign + old / |old|) -> |new| = (rest / c + mass)^(1/q),   rest = eps^q - |delta|^q,   other window = 0

per channel c, q the order of the norm, `mass` the sum of |delta|^q over both windows. `eta` is a window of two halves
of opposite sign, each falling off in rings around its middle: as 1/k^2 summed from outside for L2 (Andriushchenko et
al. 2020, arXiv 1912.00049), as 1/k^4 for L1, whose proposal is c times as long and then projected onto ball and box
(Croce and Hein, Mind the box: l1-APGD for sparse adversarial attacks on image classifiers, arXiv 2103.01208).

Outside both windows nothing changes in L2, where the length comes out at eps by construction.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from holdfast import draws
from holdfast.attacks.balls import L1
from holdfast.attacks.square_windows import Window, signs, windows

MASS_WORDS = 6
TILES = 5
# Rounded pixels may not leave the ball.
SLACK = 1 - 1e-6
TINY = 1e-12


@functools.lru_cache(maxsize=256)
def eta(side: int, order: int) -> Tensor:
    """The pattern of a window of norm one: upper half positive, lower half negative, float32 [side, side].

    Args:
        side: in pixels.
        order: of the norm, 2 or 1.
    """
    half = side // 2
    pattern = torch.zeros(side, side, dtype=torch.float64)
    if half:
        pattern[:half] = _rings(half, side, order)
    pattern[half:] = -_rings(side - half, side, order)
    unit: Tensor = pattern / torch.linalg.vector_norm(pattern, order)
    return unit.float()


def _rings(h: int, w: int, order: int) -> Tensor:
    """A block of norm one that falls off in square rings around its middle: float64 [h, w].

    A value d rings from the middle is the sum of 1/(k + 1)^p over k from d to the last ring; p = 2 for L2, 4 for L1.
    """
    top, left = h // 2, w // 2
    rings = max(top, left) + 1
    terms = torch.arange(1, rings + 1, dtype=torch.float64) ** -(4 // order)
    tails = terms.flip(0).cumsum(0).flip(0)
    down, across = (torch.arange(h) - top).abs(), (torch.arange(w) - left).abs()
    block = tails[torch.maximum(down[:, None], across)]
    unit: Tensor = block / torch.linalg.vector_norm(block, order)
    return unit


@functools.lru_cache(maxsize=16)
def etas(side: tuple[int, ...], order: int, device: torch.device) -> Tensor:
    """The patterns of all sides in both orientations, in the upper left corner: [len(side), 2, s, s], s the largest."""
    table = torch.zeros(len(side), 2, max(side), max(side))
    for place, one in enumerate(side):
        table[place, 0, :one, :one] = eta(one, order)
        table[place, 1, :one, :one] = eta(one, order).T
    return table.to(device)


def tiled(x: Tensor, streams: Tensor, order: int) -> Tensor:
    """Five by five patterns over the image, each with its own orientation and a sign per channel: like `x`."""
    b, c, h, w = x.shape
    side = max(min(h, w) // TILES, 1)
    down, across = h // side, w // side
    words = draws.words(streams, torch.zeros_like(streams), down * across * 2).view(b, down, across, 2)
    patterns = etas((side,), order, x.device)[0][words[..., 0] & 1]
    tiles = patterns[..., None, :, :] * signs(words[..., 1], c)[..., None, None]
    top, left = (h - down * side) // 2, (w - across * side) // 2
    delta = torch.zeros_like(x)
    block = tiles.permute(0, 3, 1, 4, 2, 5).reshape(b, c, down * side, across * side)
    delta[:, :, top : top + down * side, left : left + across * side] = block.to(x)
    return delta


def tiled_l2(x: Tensor, eps: Tensor, streams: Tensor) -> Tensor:
    """The start in L2: tiles of the length of the radius, clamped to the box."""
    delta = tiled(x, streams, 2)
    scale: Tensor = eps.to(x) * SLACK / torch.linalg.vector_norm(delta, dim=(1, 2, 3))
    return (x + delta * scale.view(-1, 1, 1, 1)).clamp(0, 1)


def tiled_l1(x: Tensor, eps: Tensor, streams: Tensor) -> Tensor:
    """The start in L1: tiles of norm one per channel, projected."""
    return L1().project(x, x + tiled(x, streams, 1), eps)


def moved_l2(
    x: Tensor, best: Tensor, eps: Tensor, words: Tensor, halved: Tensor, side: tuple[int, ...]
) -> Tensor:  # parameters: those of `square.Search.move`
    """The mass of one window into another, at the whole length of the radius, clamped to the box.

    Args:
        x: clean pixels [b, c, h, w].
        best: the best iterate, like `x`.
        eps: radius [b].
        words: of `draws.words`, [b, 6].
        halved: how often the window was halved, [b].
        side: of a window, by that.
    """
    # Summed in float32, pairwise: over a photograph's values that is off by 1e-7, well within the slack.
    rest = (eps.to(x) * SLACK).square() - (best - x).square_().sum((1, 2, 3))
    into, out_of, new = _moved(x, best, rest.clamp_min(0), words, halved, side, 2)
    proposal = best.clone()
    out_of.paste(proposal, out_of.cut(x))
    into.paste(proposal, (into.cut(x) + new).clamp(0, 1))
    return proposal


def moved_l1(
    x: Tensor, best: Tensor, eps: Tensor, words: Tensor, halved: Tensor, side: tuple[int, ...]
) -> Tensor:  # parameters: those of `square.Search.move`
    """The mass of one window into another, c times what the ball allows, then projected; arguments as `moved_l2`."""
    rest = eps.to(x) - (best - x).abs_().sum((1, 2, 3))
    into, out_of, new = _moved(x, best, rest.clamp_min(0), words, halved, side, 1)
    proposal = best.clone()
    out_of.paste(proposal, out_of.cut(x))
    into.paste(proposal, into.cut(x) + x.shape[1] * new)
    return _projected(x, proposal, eps)


def _moved(
    x: Tensor, best: Tensor, rest: Tensor, words: Tensor, halved: Tensor, side: tuple[int, ...], order: int
) -> tuple[Window, Window, Tensor]:  # parameters: those of `moved_l2`
    """The window that receives, the one that gives, and what the first then holds, [b, s, s, c]."""
    c, h, w = x.shape[1:]
    table = etas(side, order, x.device)
    own = torch.tensor(side, device=x.device)[halved]
    into, out_of = windows(words[:, :4], own, int(own.max()), h, w)
    old, given = into.cut(best) - into.cut(x), out_of.cut(best) - out_of.cut(x)
    turned = (words[:, 4] & 1)[:, None, None]
    pattern = table[halved[:, None, None], turned, into.down, into.across]
    sizes = _mass(old, into.inside, order)
    mass = sizes + _mass(given, out_of.inside & ~into.holds(out_of), order)
    new = pattern[..., None] * signs(words[:, 5], c).to(x)[:, None, None, :]
    new = new + old / (_rooted(sizes, order) + TINY)
    length = _rooted(rest.view(-1, 1, 1, 1) / c + mass, order)
    return into, out_of, new * (length / (_rooted(_mass(new, into.inside, order), order) + TINY))


def _projected(x: Tensor, proposal: Tensor, eps: Tensor) -> Tensor:
    """The proposal projected onto ball and box, in place: only the values that differ from the clean ones are sorted.

    They are few: what a projection has brought back to zero stays there until a window covers it.
    """
    # Channels last, as images lie in memory on a CPU.
    clean, moved = x.permute(0, 2, 3, 1), proposal.permute(0, 2, 3, 1)
    places = (moved != clean).nonzero(as_tuple=True)
    row, count = places[0], torch.zeros(len(x), dtype=torch.int64, device=x.device)
    count.index_add_(0, row, torch.ones_like(row))
    rank = torch.arange(len(row), device=x.device) - (count.cumsum(0) - count)[row]
    few = torch.zeros(2, len(x), max(int(count.max()), 1), dtype=x.dtype, device=x.device)
    few[0, row, rank], few[1, row, rank] = clean[places], moved[places]
    moved[places] = L1().project(few[0], few[1], eps)[row, rank]
    return proposal


def _mass(content: Tensor, inside: Tensor, order: int) -> Tensor:
    """The sum of |content|^order over the places of a window, per channel: [b, 1, 1, c]."""
    size = content.square() if order == 2 else content.abs()
    return (size * inside[..., None]).sum((1, 2), keepdim=True)


def _rooted(mass: Tensor, order: int) -> Tensor:
    return mass.sqrt() if order == 2 else mass
