"""From a record to attacks: one line per method."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from holdfast import records
from holdfast.attacks.autoattack import auto_pgd, standard
from holdfast.attacks.balls import ball
from holdfast.attacks.cascade import Member
from holdfast.attacks.executor import Attack, Stage, Stop
from holdfast.attacks.fab import FAB
from holdfast.attacks.momentum import MomentumPGD
from holdfast.attacks.noise import Noise
from holdfast.attacks.pgd import PGD
from holdfast.attacks.square import Square
from holdfast.errors import ConfigError, nearest

MADRY_STEP = 2.5
# Measured on a plain CIFAR-10 ResNet at 1/255, 20 steps: a quarter fools more images than an eighth, and sooner.
SHORTEST_STEP = 0.25
FAST_STEP = 1.25
FINISH = 10
LAST_SEARCH = 5
"""Forward passes that FAB ends with."""
AIMED = ("fab", "autoattack")
"""Methods that aim at classes of their own accord, so that the victim has to rank them."""


class Method(NamedTuple):
    """One way of attacking.

    Attributes:
        about: in one line.
        members: from a settled record and the number of classes (0 = not known).
        steps: where the record leaves them open.
        pushes: harms that it brings itself, so that a record names none; empty = it raises any.
        norms: of the balls that it knows.
        through: tasks that it can attack.
        nearest: whether it also looks for the nearest adversarial image, without a radius.
        gradient: whether it needs one.
        fixed: whether its steps are what defines it, so that a run's `steps` does not change them.
    """

    about: str
    members: Callable[[records.Attack, int], tuple[Member, ...]]
    steps: int
    pushes: tuple[str, ...] = ()
    norms: tuple[str, ...] = ("linf", "l2", "l1")
    through: tuple[str, ...] = ("classification", "embedding", "segmentation", "depth")
    nearest: bool = False
    gradient: bool = True
    fixed: bool = False


def step_size(eps: float, alpha: float, steps: int) -> float:
    """A step in pixel units: `alpha`, or where it is 0, 2.5 * eps / steps (Madry et al. 2018), at least eps / 4.

    The worst iterate is kept, so that a step too long to settle costs nothing, and one too short to arrive does.
    """
    return alpha or eps * max(MADRY_STEP / steps, SHORTEST_STEP)


def _pgd(record: records.Attack, classes: int) -> tuple[Member, ...]:
    relative = step_size(record.eps, record.alpha, record.steps) / record.eps
    return _one(record, classes, PGD(ball(record.norm), record.steps, relative, begin=record.start, seed=record.seed))


def _fgsm(record: records.Attack, classes: int) -> tuple[Member, ...]:
    relative = (record.alpha or record.eps) / record.eps
    if record.start == "random":
        # From a random start a step of the radius alone reaches no far wall (Wong et al. 2020, arXiv 2001.03994).
        relative = max(relative, FAST_STEP) if not record.alpha else relative
    return _one(record, classes, PGD(ball(record.norm), record.steps, relative, begin=record.start, seed=record.seed))


def _momentum(record: records.Attack, classes: int) -> tuple[Member, ...]:
    relative = step_size(record.eps, record.alpha, record.steps) / record.eps
    attack = MomentumPGD(ball(record.norm), record.steps, relative, begin=record.start, seed=record.seed)
    return _one(record, classes, attack)


def _apgd(record: records.Attack, classes: int) -> tuple[Member, ...]:
    return _one(record, classes, auto_pgd(record))


def _fab(record: records.Attack, classes: int) -> tuple[Member, ...]:
    attack = FAB(ball(record.norm), record.steps, seed=record.seed)
    return (Member("fab", attack, "margin_target", stages(record, _known(record, classes))),)


def _sea(record: records.Attack, classes: int) -> tuple[Member, ...]:
    wide = tuple(
        Stage(restart=i, radius=radius, share=share, carry=at > 0)
        for i in range(record.restarts)
        for at, (radius, share) in enumerate(SEA_RADII)
    )
    return (Member("sea", auto_pgd(record), record.push, wide),)


def _square(record: records.Attack, classes: int) -> tuple[Member, ...]:
    push = SCORED[record.through]  # a harm of the task; Square raises the score itself
    attack = Square(ball(record.norm), record.steps, seed=record.seed)
    return (Member("square", attack, push, stages(record, classes)),)


def _noise(record: records.Attack, classes: int) -> tuple[Member, ...]:
    return _one(record, classes, Noise(ball(record.norm), record.steps, seed=record.seed))


def _autoattack(record: records.Attack, classes: int) -> tuple[Member, ...]:
    return standard(record, _known(record, classes))


TRACEABLE = ("pgd", "mpgd", "apgd", "noise")
"""Methods whose iterates can be judged on the way."""
HEADS = ("classification",)
SCORED = {"classification": "margin", "embedding": "mse", "segmentation": "ce", "depth": "l2"}
WIDER = ("sea",)
"""Methods whose last pass begins where a wider ball's ended, and at no random point."""
# From wide to the ball itself, each pass from the projection of what the one before found (arXiv 2306.12941).
SEA_RADII = ((2.0, 0.3), (1.5, 0.3), (1.0, 0.4))
METHODS: dict[str, Method] = {
    "pgd": Method("projected gradient descent (Madry et al. 2018), the worst iterate kept", _pgd, 20),
    "fgsm": Method(
        "one step from the clean image, as long as the radius (Goodfellow et al. 2015); of an embedding, from a random "
        "one, 1.25 times as long",
        _fgsm,
        1,
        fixed=True,
    ),
    "mpgd": Method("PGD with momentum (MI-FGSM, Dong et al. 2018), which transfers better", _momentum, 20),
    "apgd": Method("PGD that sets its own step (Auto-PGD, Croce and Hein 2020; L1: 2021)", _apgd, 100),
    "sea": Method(
        "a member of the segmentation ensemble: APGD from twice the radius inwards (Croce et al. 2024)",
        _sea,
        300,
        norms=("linf", "l2"),
        through=records.DENSE_TASKS,
    ),
    "fab": Method(
        "the nearest adversarial image, by hyperplanes (Croce and Hein 2020); --eps 0 = its distance",
        _fab,
        100,
        pushes=("margin_target",),
        through=HEADS,
        nearest=True,
    ),
    "square": Method(
        "random windows, no gradient (Andriushchenko et al. 2020)", _square, 5000, pushes=("margin",), gradient=False
    ),
    "noise": Method("random points of the ball: what a gradient must beat", _noise, 20, gradient=False),
    "autoattack": Method(
        "AutoAttack standard: APGD on cross-entropy, targeted APGD, targeted FAB, Square (Croce and Hein 2020)",
        _autoattack,
        100,
        pushes=("ce", "dlr_target", "margin_target", "margin"),
        through=HEADS,
        fixed=True,
    ),
}


def method(name: str) -> Method:
    """The method of that name; `ConfigError` names the nearest."""
    if name not in METHODS:
        raise ConfigError(f'no attack is called "{name}".', asked="A method was named:", next=nearest(name, METHODS))
    return METHODS[name]


def settled(record: records.Attack) -> records.Attack:
    """The record with everything that was left to the method written out, or refused.

    Raises:
        ConfigError: no such method; a norm, a task, a radius or a count that it cannot have; no gradient at the start.
    """
    chosen = method(record.method)
    record = msgspec.structs.replace(
        record, steps=record.steps or chosen.steps, push="" if chosen.pushes else record.push
    )
    if record.method == "fgsm" and record.start == "random" and record.through != "embedding":
        record = msgspec.structs.replace(record, start="zero")  # as published; an embedding has no gradient there
    if record.norm not in chosen.norms:
        raise ConfigError(f"{record.method} knows no {record.norm} ball.", next=f"It knows {', '.join(chosen.norms)}.")
    if record.through not in chosen.through:
        raise ConfigError(
            f"{record.method} attacks {' and '.join(chosen.through)}, and was to attack {record.through}.",
            next="Take pgd or apgd, which raise any harm.",
        )
    if record.steps < 1 or record.restarts < 1 or record.alpha < 0 or record.targets < 0 or record.samples < 1:
        raise ConfigError(
            f"an attack with alpha {record.alpha:g}, {record.steps} steps, {record.restarts} restarts, "
            f"{record.targets} targets, {record.samples} samples.",
            next="alpha and targets must be 0 or more, the others at least 1.",
        )
    if record.push.endswith("_target") and not record.targets and record.aim == "away" and not chosen.pushes:
        raise ConfigError(
            f"{record.push} raises one class, and none is aimed at.",
            next="Aim at the likeliest nine, targets 9 (--targets 9), or name one (--target); or take "
            f"{record.push.removesuffix('_target')}.",
        )
    if record.traced and (record.traced < 0 or not traceable(record)):
        raise ConfigError(
            f"{record.traced} steps of {record.method} with {record.restarts} restarts, {record.targets} targets, "
            f"{record.precision} were to be traced.",
            next=f"Steps are traced of {', '.join(TRACEABLE)} in float32, from one start, at one target or none.",
        )
    if record.aim == "towards" and record.through == "classification" and chosen.pushes:
        raise ConfigError(
            f"{record.method} was to aim at one class, and goes through targets of its own.",
            next="Take pgd or apgd with aim towards, or give targets.",
        )
    _check_radius(record, chosen)
    if record.start == "zero" and record.through == "embedding":
        raise ConfigError(
            "An embedding attack from the clean image: its gradient is exactly zero there.", next='Use start "random".'
        )
    return record


def _check_radius(record: records.Attack, chosen: Method) -> None:
    if record.eps == 0 and chosen.nearest:
        return
    if not record.eps > 0:
        more = "" if record.eps < 0 else " Without a radius: fab finds the nearest adversarial image."
        raise ConfigError(f"an attack of radius {record.eps:g}.", next=f"Pixels span [0, 1]: write --eps 8/255.{more}")
    if record.norm == "linf" and record.eps > 1:
        raise ConfigError(
            f"eps {record.eps:g} is more than the whole range of a pixel, which spans [0, 1].",
            asked=f"An attack within {record.eps:g} of every pixel (Linf) was asked for.",
            next=f"Did you mean {record.eps:g}/255?",
        )


def build(record: records.Attack, *, classes: int = 0) -> tuple[Member, ...]:
    """The attacks that a record names, to be run as a cascade.

    Args:
        record: settled here, if it was not.
        classes: that the victim tells apart; 0 = not known, or none.

    Raises:
        ConfigError: as `settled`; or a method that needs the number of classes, or more of them; or a ratio of logits
            where there are too few of them for it.
    """
    record = settled(record)
    _check_ratio(record, classes)
    members = method(record.method).members(record, classes)
    if record.precision == "fp32" or record.eps == 0 or not method(record.method).gradient:
        return members
    # Survivors of the coarser precision are attacked once more in float32, from where it left them. Noise and Square
    # follow no gradient, and stay what they are.
    last = PGD(ball(record.norm), FINISH, 1 / FINISH, begin="given", seed=record.seed)
    return (*members, Member("float32", last, members[0].push.removesuffix("_target"), exact=True))


class Budget(NamedTuple):
    """What an attack costs for an image that it never loses: gradients, and forward passes without one."""

    gradients: int
    forwards: int


def budget(record: records.Attack, *, classes: int = 10) -> Budget:
    """What an attack costs at most, per image, the clean image included."""
    gradients, forwards = 0, 1
    for member in build(record, classes=max(classes, 2)):
        for stage in member.stages:
            looks = stage.looks(member.attack.steps) * record.samples
            blind = isinstance(member.attack, Square | Noise)
            fans = classes - 1 if isinstance(member.attack, FAB) and stage.target < 0 else 1
            gradients += 0 if blind else looks * fans
            fab = isinstance(member.attack, FAB)
            forwards += (LAST_SEARCH if fab else 1) * record.samples + (looks if blind or fab else 0)
    return Budget(gradients, forwards)


def traceable(record: records.Attack) -> bool:
    """Whether an attack is one pass of steps inside its ball, whose iterates can be put on one axis."""
    one = record.restarts == 1 and record.targets <= 1 and record.precision == "fp32" and record.eps > 0
    # In L1, APGD comes from wider radii.
    return one and record.method in TRACEABLE and (record.method, record.norm) != ("apgd", "l1")


def traced_steps(record: records.Attack) -> tuple[int, ...]:
    """The steps, from 0, whose iterates are judged: evenly spaced from the first look to the last, all where few."""
    if not record.traced:
        return ()
    last = record.steps - 1
    most = min(record.traced, record.steps)
    return tuple(dict.fromkeys(round(at * last / max(most - 1, 1)) for at in range(most)))


def stop_of(record: records.Attack, *, lost: bool) -> Stop:
    """What ends a row of this attack: without a radius nothing does, nor where the task knows no loss."""
    if record.eps == 0:
        return "nearest"
    return "lost" if lost else "never"


def _check_ratio(record: records.Attack, classes: int) -> None:
    """AutoAttack takes a plain difference where two logits make no ratio; whoever names the ratio is told."""
    push = record.push.removesuffix("_target")
    if push == "dlr" and record.through in HEADS and 0 < classes < 3:
        plain = record.push.replace("dlr", "margin")
        raise ConfigError(
            f"the victim has {classes} logits.",
            asked=f"{record.push} was asked for: a margin in units of the spread of the three largest logits.",
            next=f"Take {plain}, which any two logits have, or ce.",
        )


def _known(record: records.Attack, classes: int) -> int:
    if classes < 2:
        raise ConfigError(
            f"{record.method} needs to know how many classes there are, and the victim knows {classes}.",
            next="Give it a head that tells at least two classes apart, or take pgd.",
        )
    return classes


def _one(record: records.Attack, classes: int, attack: Attack) -> tuple[Member, ...]:
    """One attack on the record's push, over its restarts and targets; with targets, on the push's targeted form."""
    push = f"{record.push.removesuffix('_target')}_target" if record.targets else record.push
    return (Member(record.method, attack, push, stages(record, classes)),)


def stages(record: records.Attack, classes: int) -> tuple[Stage, ...]:
    """Every target, each from every restart; untargeted where the record names no targets.

    Raises:
        ConfigError: targets without classes.
    """
    if not record.targets:
        return tuple(Stage(restart=i) for i in range(record.restarts))
    if classes < 2:
        raise ConfigError(
            f"{record.targets} classes were to be aimed at, and the victim knows {classes}.", next="Leave targets out."
        )
    aimed = range(min(record.targets, classes - 1))
    return tuple(Stage(restart=i, target=target) for target in aimed for i in range(record.restarts))
