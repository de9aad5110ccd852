"""Suites: named grids with a version, and which attacks a config asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from holdfast.attacks.methods import METHODS, TRACEABLE, settled, traceable
from holdfast.codec import Record
from holdfast.configs import BenchConfig
from holdfast.corruptions.table import entry
from holdfast.corruptions.table import names as corruption_names
from holdfast.errors import ConfigError, nearest
from holdfast.records import DENSE_TASKS, Attack, Norm
from holdfast.tasks.classification import Classification
from holdfast.tasks.depth import ENSEMBLE as MEASURED
from holdfast.tasks.embedding import Embedding
from holdfast.tasks.segmentation import ENSEMBLE as SEGMENTED
from holdfast.tasks.task import Task
from holdfast.tasks.token_drift import EVERY

SMALL = 64
"""Side in pixels up to which images count as small: CIFAR and Tiny-ImageNet, not ImageNet."""
PROTOCOL: dict[str, tuple[float, float]] = {"linf": (8 / 255, 4 / 255), "l2": (0.5, 3.0), "l1": (12.0, 60.0)}
"""Radii that papers report, for small and for large images: Linf and L2 of RobustBench (Croce et al. 2021, arXiv
2010.09670), L1 of Croce and Hein 2021 (arXiv 2103.01208); L2 3.0 of Engstrom et al. 2019 (the robustness library)."""


class Suite(Record, frozen=True, kw_only=True):
    """A named grid.

    Attributes:
        name: of the suite.
        version: raised whenever a number of it would change.
        limit: images; 0 = all.
        attack_limit: of them attacked; 0 = all.
        corruptions: names.
        severities: of each.
        attacks: each with its epsilon.
        paper: attacks that are made at the radius that papers report for images of their size.
        about: in one line.
    """

    name: str
    version: int = 5
    limit: int
    attack_limit: int
    corruptions: tuple[str, ...]
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    attacks: tuple[Attack, ...] = ()
    paper: tuple[Attack, ...] = ()
    about: str


def _grid(eps: Iterable[float], templates: Iterable[Attack]) -> tuple[Attack, ...]:
    return tuple(msgspec.structs.replace(attack, eps=e) for attack in templates for e in eps)


def _against(
    task: Task, through: Literal["classification", "embedding"], *, steps: int, restarts: int = 1
) -> list[Attack]:
    """The attacks that a claim of robustness on a task must survive."""
    return [
        Attack(method=member.method, through=through, push=member.push, steps=steps, restarts=restarts)
        for member in task.ensemble
    ]


_FIFTEEN = tuple(name for name in corruption_names() if entry(name).in_mce)
_HEADS, _VECTORS = Classification(), Embedding()
# Dense heads: every patch token; pixel cross-entropy and SegPGD; full SILog with its gradient term, and squared metres.
_DENSE = (
    Attack(through="embedding", push="mse", level=EVERY, steps=20),
    Attack(through="segmentation", push="ce", steps=20),
    Attack(through="segmentation", push="segpgd", steps=20),
    Attack(through="depth", push="silog_gradient", steps=20),
    Attack(through="depth", push="l2", steps=20),
)
_ENSEMBLES = (
    *(Attack(method="sea", through="segmentation", push=push, steps=300) for push in SEGMENTED),
    *(Attack(method="apgd", through="depth", push=push, steps=100) for push in MEASURED),
)
_LINF = tuple(e / 255 for e in (0.25, 0.5, 1, 2, 4, 8))
# Without these two nobody knows whether the gradient was any use.
_CONTROLS = (Attack(push="margin", steps=20), Attack(method="noise", push="ce", steps=20))
SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="quick",
            limit=500,
            attack_limit=200,
            corruptions=_FIFTEEN,
            attacks=_grid(
                _LINF, (Attack(push="ce", steps=20), Attack(through="embedding", push="mse", steps=20), *_DENSE)
            ),
            about="500 images, 15 corruptions, 200 attacked with PGD-20 and EmbedAttack at six radii: a first look",
        ),
        Suite(
            name="standard",
            limit=5000,
            attack_limit=1000,
            corruptions=corruption_names(),
            attacks=_grid(_LINF, (Attack(push="ce", steps=20), *_against(_VECTORS, "embedding", steps=20), *_DENSE)),
            paper=(*_CONTROLS, Attack(method="autoattack", push=""), *_ENSEMBLES),
            about="5,000 images, 19 corruptions, 1,000 attacked: PGD-20 and EmbedAttack at six radii, AutoAttack "
            "at that of papers (Linf 8/255 up to 64 px, else 4/255)",
        ),
        Suite(
            name="full",
            limit=0,
            attack_limit=0,
            corruptions=corruption_names(),
            attacks=_grid(
                _LINF,
                (
                    *_against(_HEADS, "classification", steps=100, restarts=5),
                    *_against(_VECTORS, "embedding", steps=50, restarts=2),
                    Attack(through="embedding", push="mse", level=EVERY, steps=50, restarts=2),
                    Attack(method="autoattack", push=""),
                    *_ENSEMBLES,
                ),
            ),
            paper=(
                Attack(method="noise", push="ce", steps=20),
                Attack(method="autoattack", push="", norm="l2"),
                Attack(method="autoattack", push="", norm="l1"),
            ),
            about="every image, 19 corruptions, PGD-100 with 5 restarts on two harms, EmbedAttack with 50 steps twice, "
            "AutoAttack at six radii of Linf and at those of the papers of L2 and L1",
        ),
        Suite(
            name="corruptions",
            limit=0,
            attack_limit=0,
            corruptions=corruption_names(),
            attacks=(),
            about="every image, 19 corruptions at five severities, no attack",
        ),
    )
}


def suite(name: str) -> Suite:
    """The suite of that name; `ConfigError` names the nearest."""
    if name not in SUITES:
        raise ConfigError(f'no suite is called "{name}".', next=nearest(name, SUITES))
    return SUITES[name]


def paper_attacks(chosen: Suite, side: int) -> tuple[Attack, ...]:
    """The attacks of a suite at the radius that papers report for images with sides of so many pixels."""
    return tuple(msgspec.structs.replace(attack, eps=paper_radius(attack.norm, side)) for attack in chosen.paper)


def paper_radius(norm: Norm, side: int) -> float:
    """See `PROTOCOL`."""
    small, large = PROTOCOL[norm]
    return small if side <= SMALL else large


def suite_attacks(config: BenchConfig) -> tuple[Attack, ...]:
    """The attacks of the config's suite; where radii are given, also those that it makes at the papers' radius."""
    chosen = suite(config.suite)
    found = chosen.attacks
    if config.eps is not None:
        found += tuple(attack for attack in chosen.paper if config.norm or attack.norm == "linf")
    dense = any(task in DENSE_TASKS for task in config.tasks)
    return tuple(attack for attack in found if dense or attack.level != EVERY)


def named_attacks(config: BenchConfig) -> tuple[Attack, ...]:
    """The attacks that `methods` names, through every task of the config that they can attack, at the suite's radii.

    Raises:
        ConfigError: an unknown method, or one that can attack none of the tasks; or `attacks` beside it.
    """
    if not config.methods:
        return ()
    if config.attacks:
        raise ConfigError("--methods and attack records were given.", next="Give one of them.")
    found = []
    for name in config.methods:
        if name not in METHODS:
            raise ConfigError(f'no attack is called "{name}".', next=nearest(name, METHODS))
        tasks = [task for task in config.tasks if task in METHODS[name].through]
        if not tasks:
            raise ConfigError(
                f"{name} attacks {' and '.join(METHODS[name].through)}, which was not asked for.",
                next=f"Add --tasks {METHODS[name].through[0]}.",
            )
        pushes = {"classification": "ce", "embedding": "mse", "segmentation": "ce", "depth": "silog_gradient"}
        members = SEGMENTED if name == "sea" else ()  # an ensemble is all of its members
        found += [Attack(method=name, through=task, push=p) for task in tasks for p in members or (pushes[task],)]
    return tuple(found) if config.eps is not None else _grid(_LINF, found)


def transfers(attack: Attack) -> bool:
    """Whether an attack on one encoder is worth showing to another: one harm, raised by its gradient, in a ball."""
    chosen = METHODS[attack.method]
    return chosen.gradient and not chosen.pushes and attack.eps > 0 and attack.surrogate is None


def chosen_attacks(config: BenchConfig, attacks: tuple[Attack, ...]) -> tuple[Attack, ...]:
    """Attacks with what the config says about all of them: norm, radii, steps, samples, precision, seed; settled.

    Raises:
        ConfigError: radii of another norm; an attack through a task that was not asked for, or one that cannot be.
    """
    if config.norm and config.eps is None and any(attack.norm != config.norm for attack in attacks):
        raise ConfigError(
            f"Radii of another norm cannot be taken for {config.norm}.", next=f"Add --norm {config.norm} --eps ..."
        )
    stray = [attack for attack in config.attacks if attack.through not in config.tasks]
    if stray:
        raise ConfigError(
            f"An attack through {stray[0].through} was asked for, and that task was not.",
            next=f"Add it: --tasks {' '.join([*config.tasks, stray[0].through])}.",
        )
    if any(attack.start == "given" for attack in config.attacks):
        raise ConfigError(
            "An attack of a bench was to begin at a given delta, and a bench has none.",
            next='Use start "random"; holdfast.attack takes a delta.',
        )
    if config.traced and attacks and not any(traceable(attack) for attack in attacks):
        raise ConfigError(
            f"--traced {config.traced} was given, and no attack goes through its ball in one pass of steps.",
            next=f"Steps are traced of {', '.join(TRACEABLE)}: add --methods {TRACEABLE[0]}, or leave --traced out.",
        )
    changed = [
        msgspec.structs.replace(
            attack,
            norm=config.norm or attack.norm,
            steps=attack.steps if config.steps is None or METHODS[attack.method].fixed else config.steps,
            samples=attack.samples if config.samples is None else config.samples,
            precision=config.precision or attack.precision,
            seed=attack.seed or config.seed,
            traced=config.traced if config.traced is not None and traceable(attack) else attack.traced,
        )
        for attack in attacks
        if attack.through in config.tasks
    ]
    if config.eps is not None:
        templates = list(dict.fromkeys(msgspec.structs.replace(attack, eps=1.0) for attack in changed))
        changed = list(_grid(config.eps, templates))
    return tuple(dict.fromkeys(settled(attack) for attack in changed))
