"""What the victim itself shows about an attack: asked once per attacked image, with three more passes.

Carlini et al. 2019 (arXiv 1902.06705, section 4) ask for it: is the answer the same twice, is it the image's own, is it
made of logits, and were the pixels images at all? Read by `evaluation.cell_checks`; documented in `evaluation.flags`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.attacks.harm import Out, See

REPEATED = "check_repeated"
COMPANY = "check_company"
PROBABILITIES = "check_probabilities"
OUTSIDE = "check_outside"

SUM_TOLERANCE = 1e-3
"""How far from 1 the outputs of an image may add up to and still count as probabilities."""
LEAST_SPREAD = 1e-3
"""Gaps are measured in units of the spread of an image's logits, at least so much of their size: where all logits are
nearly one large number, the last digits of float32 are no disagreement."""


def evidence(see: See, pixels: Tensor, out: Out) -> dict[str, Tensor]:
    """What is to be known of the victim of a classification attack before its verdicts are believed.

    Three passes: the same pixels again; the second half of them replaced by negatives (1 - pixels), of which the first
    half is compared; and the other way round. Negatives are other company however few images a batch is padded from.
    The global random state is as before afterwards.

    Args:
        see: of the frozen victim in float32, computing every time (a `see` that keeps what it saw would agree with
            itself).
        pixels: attacked images, float32 [b, 3, h, w], as they were judged: padded, b at least 2.
        out: what the same victim answered to them: `logits` [b, k].

    Returns:
        [b] each: `check_repeated` and `check_company`, the largest gap of a logit to that of the same image seen again,
        and seen in other company, in units of the spread of the image's logits; `check_probabilities`, whether its
        outputs are not negative and add up to 1; `check_outside`, how far its pixels lie outside [0, 1].
    """
    logits, half = out["logits"].detach(), len(pixels) // 2
    first, second = pixels.clone(), pixels.clone()
    first[half:], second[:half] = 1 - pixels[half:], 1 - pixels[:half]
    devices = [pixels.device] if pixels.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        again = see(pixels)["logits"]
        alone = torch.cat([see(first)["logits"][:half], see(second)["logits"][half:]])
    return {
        REPEATED: _gap(again, logits),
        COMPANY: _gap(alone, logits),
        PROBABILITIES: (logits >= 0).all(1) & ((logits.double().sum(1) - 1).abs() <= SUM_TOLERANCE),
        OUTSIDE: torch.maximum(-pixels.flatten(1).amin(1), pixels.flatten(1).amax(1) - 1).clamp_min(0),
    }


def _gap(one: Tensor, other: Tensor) -> Tensor:
    """Largest difference of a logit, in units of the spread of the image's logits: [b, k] twice -> [b]."""
    one, other = one.double(), other.double()
    spread = (other.amax(1) - other.amin(1)).maximum(LEAST_SPREAD * other.abs().amax(1))
    return (one - other).abs().amax(1) / spread.clamp_min(torch.finfo(torch.float32).tiny)
