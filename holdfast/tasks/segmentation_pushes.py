"""What attacks on segmentation raise, and the defects of published attacks by name.

With z the K logits of a pixel, p = softmax(z), y its label, CE = -ln p_y, "right" where z is largest at y, t the share
of the attack that is done, l = t / 2, and every mean over all labelled pixels of the image:

    ce         mean CE
    segpgd     mean (1 - l) CE where right, l CE where wrong     Gu et al. 2022, arXiv 2207.12391: l = (i - 1) / 2T
    cospgd     mean cos(p, onehot y) CE, the cosine a constant   Agnihotri et al. 2023, arXiv 2302.02213
    masked     mean CE where right, 0 where wrong                L_MCE of SEA
    balanced   mean w_y CE where right, 0 where wrong            L_MCE-Bal of SEA: w_y ~ 1 / (pixels of class y)
    js         mean Jensen-Shannon divergence of p and onehot y  L_JS of SEA
    margin     mean DLR margin where right, 0 where wrong        (best other - z_y) / (z_1 - z_3), free of scale
    spherical  mean -z_y / ||z|| where right, 0 where wrong      of SEA's first version alone

SEA is the ensemble of Croce, Singh and Hein (arXiv 2306.12941). As published (ECCV 2024) it is `masked`, `balanced` and
`js`, 300 steps of Auto-PGD each; its first version (2023) had `masked`, `segpgd`, `js` and `spherical`. Pixels that are
wrong have the largest gradient of CE; each of these harms takes it from them in its own way.

A masked harm falls when a pixel turns wrong, so that its own value says nothing about progress: what Auto-PGD compares
iterates by is here the share of wrong pixels, and the gradient is that of the harm. (SEA's code compares by plain CE.
Of a small net on 24 drawn scenes at 10/255, 60 steps of `masked` left 28 % of pixels right when compared by their own
value, 19 % by CE, 12 % by the share.) `segpgd` changes with t, and its values at different steps do not compare: raise
it by PGD.

Towards a target, `rows["target_mask"]` or the class `rows["target"]` everywhere, with y and "right" by the target and
each raised as its negative: `ce_target`; `segpgd_target` with l where the pixel is there already and 1 - l elsewhere;
`cospgd_target` with 1 - cos for cos; `margin_target`, over the pixels that are not there.

Defects of the published SegPGD of Kowalczuk et al. 2024 (arXiv 2407.12588), each against `segpgd`:

    segpgd_double_softmax    CE of softmax(p): probabilities are taken for logits
    segpgd_per_mask_means    (1 - l) mean over right + l mean over wrong: shares of pixels weigh nothing (where one of
                             them is empty it is 0 here, and was NaN there)
    segpgd_without_first     pixels of class 0 are left out of CE
    segpgd_published         all three, which was run

All are per image, 0 where nothing is labelled, and finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from holdfast.attacks.harm import Out, Push, Rows
from holdfast.attacks.scores import TINY
from holdfast.data.batches import IGNORE
from holdfast.errors import ConfigError
from holdfast.tasks.segmentation_pixels import Pixels, largest

Loss = Callable[[Pixels, Tensor], Tensor]
"""From pixels and progress [b] to what is raised, [b]."""


def ce(read: Pixels, t: Tensor) -> Tensor:
    """Mean cross-entropy in nats: [b]."""
    return read.mean(read.ce)


def segpgd(read: Pixels, t: Tensor) -> Tensor:
    """Mean of cross-entropy with weight 1 - t/2 where right and t/2 where wrong: [b]."""
    return read.mean(_weights(read, t) * read.ce)


def cospgd(read: Pixels, t: Tensor) -> Tensor:
    """Mean of cross-entropy, each pixel's times the cosine of its probabilities and the one-hot label: [b]."""
    return read.mean(_cosine(read) * read.ce)


def masked(read: Pixels, t: Tensor) -> Tensor:
    """Mean of cross-entropy where right and 0 where wrong, compared by the share of wrong pixels: [b]."""
    return _compared(read.mean(read.ce * read.right), by=~read.right, read=read)


def balanced(read: Pixels, t: Tensor) -> Tensor:
    """As `masked`, each pixel's weight one over the size of its class, compared by the share of wrong pixels: [b].

    mIoU is at most the mean over classes of their recall, which this one lowers. Sizes are those of the images that the
    head was fitted on, on average over which weights are 1; without them it is a `ConfigError`.
    """
    return _compared(read.mean(_class_weights(read) * read.ce * read.right), by=~read.right, read=read)


def js(read: Pixels, t: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence of probabilities and one-hot label, from 0 to ln 2: [b].

    With one of two distributions one-hot, the other counts by p = p_y alone: ln 2 - ((1 + p) ln(1 + p) - p ln p) / 2.
    Its gradient vanishes where p is 1, and also where it goes to 0.
    """
    p = (-read.ce).exp()
    return read.mean(math.log(2) - ((1 + p) * p.log1p() + p * read.ce) / 2)


def margin(read: Pixels, t: Tensor) -> Tensor:
    """Mean DLR margin where right and 0 where wrong, compared by the share of wrong pixels: [b]."""
    apart, spread = _margins(read)
    return _compared(read.mean(apart / spread * read.right), by=~read.right, read=read)


def spherical(read: Pixels, t: Tensor) -> Tensor:
    """Mean of minus the label's logit over the logits' length where right, compared by the share wrong: [b]."""
    falls = -_at(read.logits, read.label) / _length(read.logits)
    return _compared(read.mean(falls * read.right), by=~read.right, read=read)


def ce_target(read: Pixels, t: Tensor) -> Tensor:
    """Minus the mean cross-entropy of the target: [b]."""
    return -ce(read, t)


def segpgd_target(read: Pixels, t: Tensor) -> Tensor:
    """Minus the mean cross-entropy of the target with weight t/2 where it is reached, 1 - t/2 elsewhere: [b]."""
    return -read.mean((1 - _weights(read, t)) * read.ce)


def cospgd_target(read: Pixels, t: Tensor) -> Tensor:
    """Minus the mean cross-entropy of the target, each pixel's times 1 - cosine: [b]."""
    return -read.mean((1 - _cosine(read)) * read.ce)


def margin_target(read: Pixels, t: Tensor) -> Tensor:
    """Minus the mean DLR margin where the target is not reached, compared by the share where it is: [b].

    The spread of the logits is a constant here: to widen it would be the shorter way for a target that is far behind.
    """
    apart, spread = _margins(read)
    return _compared(-read.mean(apart / spread.detach() * ~read.right), by=read.right, read=read)


def double_softmax(read: Pixels, t: Tensor) -> Tensor:
    """`segpgd` on probabilities taken for logits: [b]."""
    return segpgd(_softened(read), t)


def per_mask_means(read: Pixels, t: Tensor) -> Tensor:
    """`segpgd` with one mean over right and another over wrong pixels: [b]."""
    return (1 - t / 2) * read.mean(read.ce, read.right) + t / 2 * read.mean(read.ce, ~read.right)


def without_first(read: Pixels, t: Tensor) -> Tensor:
    """`segpgd` on the pixels that are not of class 0: [b]."""
    return segpgd(_first_left_out(read), t)


def published(read: Pixels, t: Tensor) -> Tensor:
    """`per_mask_means` on probabilities taken for logits and on the pixels that are not of class 0: [b]."""
    return per_mask_means(_first_left_out(_softened(read)), t)


LOSSES: Mapping[str, Loss] = {
    "ce": ce,
    "segpgd": segpgd,
    "cospgd": cospgd,
    "masked": masked,
    "balanced": balanced,
    "js": js,
    "margin": margin,
    "spherical": spherical,
    "segpgd_double_softmax": double_softmax,
    "segpgd_per_mask_means": per_mask_means,
    "segpgd_without_first": without_first,
    "segpgd_published": published,
}
"""Away from `rows["mask"]`; the first is the default."""
TARGETED: Mapping[str, Loss] = {
    "ce_target": ce_target,
    "segpgd_target": segpgd_target,
    "cospgd_target": cospgd_target,
    "margin_target": margin_target,
}
"""Towards a target."""


def target_mask(rows: Rows) -> Tensor:
    """What is aimed at, int64 [b, h, w]: `rows["target_mask"]`, or the class `rows["target"]` [b] where labelled."""
    if "target_mask" in rows:
        return rows["target_mask"]
    return rows["target"][:, None, None].where(rows["mask"] != IGNORE, IGNORE)


def _away(loss: Loss) -> Push:
    def push(out: Out, rows: Rows, t: Tensor) -> Tensor:
        return loss(Pixels(out["logits"], rows["mask"], rows.get("sizes"), out.get("answer")), t)

    return push


def _towards(loss: Loss) -> Push:
    def push(out: Out, rows: Rows, t: Tensor) -> Tensor:
        return loss(Pixels(out["logits"], target_mask(rows), given=out.get("answer")), t)

    return push


PUSHES: Mapping[str, Push] = {
    **{name: _away(loss) for name, loss in LOSSES.items()},
    **{name: _towards(loss) for name, loss in TARGETED.items()},
}
"""All harms by name, on `out["logits"]` [b, K, h, w] and `rows["mask"]` int64 [b, h, w]; the first is the default."""


def _compared(raised: Tensor, *, by: Tensor, read: Pixels) -> Tensor:
    """The gradient of what is raised [b], and as its value the share of labelled pixels in `by` [b, h, w]: [b]."""
    return raised - raised.detach() + read.mean(by.to(raised))


def _weights(read: Pixels, t: Tensor) -> Tensor:
    """1 - t/2 where right and t/2 where wrong, [b, h, w]."""
    late = (t / 2)[:, None, None]
    return torch.where(read.right, 1 - late, late)


def _at(values: Tensor, label: Tensor) -> Tensor:
    """Values [b, K, h, w] at the labels [b, h, w]."""
    return values.gather(1, label[:, None]).squeeze(1)


def _cosine(read: Pixels) -> Tensor:
    """Of probabilities and one-hot label, p_y / ||p||, a constant to the gradient: [b, h, w]."""
    return (-read.ce.detach()).exp() / _length(read.logits.detach().softmax(1))


def _length(values: Tensor) -> Tensor:
    """Euclidean, of [b, K, h, w] -> [b, h, w]; its gradient at 0 is 0."""
    return values.square().sum(1).clamp_min(TINY**2).sqrt()


def _class_weights(read: Pixels) -> Tensor:
    """(all pixels) / (number of classes) / (pixels of the label's class), of the classes that there are: [b, h, w]."""
    if read.sizes is None:
        raise ConfigError(
            "the head does not say how many.",
            asked="The harm balanced weighs classes by their pixels in the images that the head was fitted on:",
            next="Fit it again with holdfast probe, or give them (Segmentation(..., sizes=...)); or take masked.",
        )
    sizes = read.sizes
    there = (sizes > 0).sum(1, keepdim=True).clamp_min(1)
    weights = sizes.sum(1, keepdim=True) / there / sizes.clamp_min(1)
    return weights.gather(1, read.label.flatten(1)).view_as(read.ce)


def _margins(read: Pixels) -> tuple[Tensor, Tensor]:
    """Best other logit minus the label's, and z_1 - z_3 that it is measured in (1 with two classes), [b, h, w] each."""
    z, places = read.logits, largest(read, min(read.logits.shape[1], 3))
    # The best other logit is the largest one, or where the label has that, the second.
    other = torch.where(places[0] == read.label, places[1], places[0])
    apart = _at(z, other) - _at(z, read.label)
    return apart, _at(z, places[0]) - _at(z, places[2]) + TINY if len(places) > 2 else torch.ones_like(apart)


def _softened(read: Pixels) -> Pixels:
    """With probabilities for logits."""
    return replace(read, logits=read.logits.softmax(1))


def _first_left_out(read: Pixels) -> Pixels:
    """Without the pixels of class 0."""
    return replace(read, mask=read.mask.where(read.mask != 0, IGNORE))
