"""The fast adaptive boundary attack: Croce and Hein, Minimally distorted adversarial examples with a fast adaptive
boundary attack, ICML 2020 (arXiv 1907.02044).

    w, f = gradient and value of z_s - z_label at x_i, s the class whose hyperplane f + <w, z - x_i> = 0 is nearest
    d_i, d_0 = shortest shifts of x_i and of the clean x into this hyperplane, inside the box
    x_{i+1} = clamp((1 - a) (x_i + eta d_i) + a (x + eta d_0)),  a = min(|d_i| / (|d_i| + |d_0|), alpha_max)
    where x_{i+1} is misclassified: it is kept if nearer than all before, and x_{i+1} <- x + beta (x_{i+1} - x)

It looks for the nearest adversarial image; the radius only decides whether one counts. A step judges x_i, goes back
where that is misclassified, and moves: two forward passes and one backward pass (one per wrong class where it is
untargeted), as in AutoAttack's version, whose 100 gradients and judged iterates it has too. `finish` judges the last
iterate and makes the paper's final search, which AutoAttack left out: three secant steps from the nearest adversarial
image towards the clean one. That is five forward passes more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.balls import Ball, begun
from holdfast.attacks.executor import Stage, State
from holdfast.attacks.harm import Harm, Rows, ascent, judged
from holdfast.attacks.hyperplane import Plane, plane
from holdfast.errors import ConfigError, TrustError

PUSH = "margin_target"
"""The harm that FAB needs: the logit of `rows["target"]` minus that of the label."""

SEARCHES = 3
BEYOND = 0.05
"""Share of the way from the secant's root to the lost end that a search goes further: on the root rounding decides."""

SMALLEST_SHIFT = 1e-8
OUTSIDE = torch.finfo(torch.float32).min
"""The score of what lies outside the radius: it is no outcome, however wrong the label."""


@dataclass(frozen=True)
class FAB:
    """Start, step, finish of FAB; the defaults are those of AutoAttack.

    The harm must be `margin_target`. A stage with a target goes towards that class alone; one without looks at every
    class of `rows["ranked"]` int64 [b, r], at the price of r backward passes (on 1000 classes, rank fewer).

    Restart 0 begins at the clean image, the others at a random point of half the radius. A row with infinite `eps` is
    in minimal-norm mode, to be run with `stop="nearest"`.

    Attributes:
        ball: whose norm is minimised.
        steps: gradient steps.
        seed: of random starts, which are keyed by image and restart.
        eta: how far beyond the hyperplane a step goes, 1 = onto it.
        alpha_max: largest weight of the clean image's own projection.
        beta: how far towards an adversarial iterate the next one starts, seen from the clean image.
    """

    ball: Ball
    steps: int = 100
    seed: int = 0
    eta: float = 1.05
    alpha_max: float = 0.1
    beta: float = 0.9

    def start(self, harm: Harm, x: Tensor, rows: Rows, stage: Stage) -> State:
        """State at the start: `pixels`; `best` and `distance`, `height` (its score): nearest lost; `eps`, `aimed`."""
        eps = rows["eps"] * stage.radius
        if stage.carry:
            pixels = begun(self.ball, "given", x, rows, eps)
        elif stage.restart:
            half = eps.where(torch.isfinite(eps), plane(self.ball).reach) / 2
            pixels = begun(self.ball, "random", x, rows, half, "fab", self.seed, stage.restart)
        else:
            pixels = x.clone()
        return {
            "pixels": pixels,
            "best": x.clone(),
            "distance": x.new_full((len(x),), torch.inf),
            "height": x.new_zeros(len(x)),
            "eps": eps,
            "aimed": torch.full_like(rows["key"], stage.target >= 0, dtype=torch.bool),
        }

    def step(self, harm: Harm, x: Tensor, rows: Rows, state: State, t: Tensor) -> State:
        """Judge the pending iterate and move it: the new state with `seen`, `value`, `score`, `flat`, `broken`."""
        seen = state["pixels"]
        score = judged(harm, seen, rows)
        backed = x + self.beta * (seen - x)
        at = torch.where(_wide(score > 0), backed, seen)
        edge = nearest_edge(harm, plane(self.ball), at, rows, state["aimed"], t)
        return {
            **self._kept(x, state, seen, score),
            "pixels": self._moved(x, at, edge),
            "seen": seen,
            "score": self._counted(x, seen, score, state["eps"]),
            "value": edge.value,
            "flat": edge.flat,
            "broken": edge.broken,
        }

    def finish(self, harm: Harm, x: Tensor, rows: Rows, state: State) -> State:
        """Judge the last iterate, then search between the nearest lost one and the clean image.

        Gives `seen` (where none was lost, the last iterate), `score` and `carry`.
        """
        last = state["pixels"]
        score = judged(harm, last, rows)
        kept = self._kept(x, state, last, score)
        found = torch.isfinite(kept["distance"])
        outer, height = kept["best"], kept["height"]
        inner, depth = x, judged(harm, x, rows)
        for _ in range(SEARCHES):
            root = (depth / (depth - height).where(found, 1)).clamp(0, 1).where(found, 0)
            between = inner + _wide(root + BEYOND * (1 - root)) * (outer - inner)
            level = judged(harm, between, rows)
            lost = found & (level > 0)
            outer, height = torch.where(_wide(lost), between, outer), level.where(lost, height)
            inner, depth = torch.where(_wide(lost), inner, between), depth.where(lost, level)
        seen = torch.where(_wide(found), outer, last)
        counted = self._counted(x, seen, height.where(found, score), state["eps"])
        return {**kept, "seen": seen, "score": counted, "carry": seen}

    def _moved(self, x: Tensor, at: Tensor, edge: Edge) -> Tensor:
        """The next iterate: a little beyond the hyperplane, a little towards where the clean image would meet it."""
        shift = plane(self.ball).shift
        back = (edge.gradient * (at - x)).flatten(1).sum(1)
        near = shift(at, edge.gradient, -edge.value)
        own = shift(x, edge.gradient, back - edge.value)
        length, own_length = (self.ball.norm(d).clamp_min(SMALLEST_SHIFT) for d in (near, own))
        alpha = _wide((length / (length + own_length)).clamp_max(self.alpha_max))
        return ((1 - alpha) * (at + self.eta * near) + alpha * (x + self.eta * own)).clamp(0, 1)

    def _kept(self, x: Tensor, state: State, seen: Tensor, score: Tensor) -> dict[str, Tensor]:
        """The state with this iterate as the best where it is lost and nearer than all before."""
        distance = self.ball.norm(seen - x)
        nearer = (score > 0) & (distance < state["distance"])
        return {
            **state,
            "best": torch.where(_wide(nearer), seen, state["best"]),
            "distance": distance.where(nearer, state["distance"]),
            "height": score.where(nearer, state["height"]),
        }

    def _counted(self, x: Tensor, seen: Tensor, score: Tensor, eps: Tensor) -> Tensor:
        """The score inside the radius; measured in float64, so that nothing outside is let in by rounding."""
        return score.where(self.ball.norm(seen.double() - x.double()) <= eps, OUTSIDE)


@dataclass(frozen=True)
class Edge:
    """The linearised boundary that is nearest to each row.

    Attributes:
        gradient: its normal, [b, 3, h, w]; zero where none was found.
        value: of the function there, [b]; the boundary is where it is 0.
        flat: whether there was no gradient, bool [b].
        broken: whether a gradient was not finite, bool [b].
    """

    gradient: Tensor
    value: Tensor
    flat: Tensor
    broken: Tensor


def nearest_edge(harm: Harm, plane: Plane, pixels: Tensor, rows: Rows, aimed: Tensor, t: Tensor) -> Edge:
    """Linearise the boundaries to other classes and take the nearest in the dual norm.

    Args:
        harm: its push is a function of `rows["target"]`, above 0 where that class is preferred.
        plane: the norm.
        pixels: where, [b, 3, h, w].
        rows: `target` of rows that are aimed, `ranked` [b, r] for the others.
        aimed: whether only `rows["target"]` is looked at, bool [b].
        t: progress, [b].

    Raises:
        ConfigError: rows without a target and no ranked classes.
        TrustError: the harm is not finite, or does not depend on the pixels.
    """
    if bool(aimed.all()):
        look = ascent(harm, pixels, rows, t)
        return Edge(look.gradient, look.value, look.flat, look.broken)
    if "ranked" not in rows:
        raise ConfigError("FAB looks for the nearest class, and none are named.", next='Give rows["ranked"].')
    # The graphs of all passes are held at once: each is asked for every class, and no pass is made twice.
    with torch.enable_grad():
        leaf = pixels.detach().requires_grad_()
        outs = [harm.see(leaf) for _ in range(harm.samples)]
    nearest = torch.full_like(t, torch.inf)
    gradient, value, broken = torch.zeros_like(pixels), torch.zeros_like(t), torch.zeros_like(aimed)
    ranked = rows["ranked"]
    for rank in range(ranked.shape[1]):
        aim = {**rows, "target": rows["target"].where(aimed, ranked[:, rank]) if "target" in rows else ranked[:, rank]}
        with torch.enable_grad():
            each = torch.stack([harm.push(out, aim, t) for out in outs]).mean(0)
            slope = _slope(each, leaf, last=rank + 1 == ranked.shape[1])
        each = each.detach()
        steep = plane.dual(slope)
        broken = broken | ~torch.isfinite(steep)
        distance = (each.abs() / steep.where(steep > 0, 1)).where(torch.isfinite(steep) & (steep > 0), torch.inf)
        closer = distance < nearest
        nearest = distance.where(closer, nearest)
        value = each.where(closer, value)
        gradient = torch.where(_wide(closer), slope, gradient)
    return Edge(gradient, value, ~torch.isfinite(nearest), broken)


def _slope(each: Tensor, leaf: Tensor, *, last: bool) -> Tensor:
    """The gradient of one class's function; the graph is kept for the next one."""
    if not each.requires_grad:
        raise TrustError(
            "The harm does not depend on the pixels: the victim has no gradient.",
            next="Attack it without one: method square.",
        )
    if not bool(torch.isfinite(each.detach()).all()):
        raise TrustError("The harm of an image is not finite.", next="Look for overflow in the encoder.")
    (slope,) = torch.autograd.grad(each.sum(), leaf, retain_graph=not last)
    return slope


def _wide(rows: Tensor) -> Tensor:
    return rows.view(-1, 1, 1, 1)
