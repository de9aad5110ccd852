"""From a config to cells, and from cells to jobs: what is measured. Suites are named grids with a version."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import msgspec

from holdfast.attacks.executor import SMALLEST
from holdfast.attacks.methods import settled as complete
from holdfast.codec import Record
from holdfast.configs import BenchConfig
from holdfast.corruptions.frost import VARIABLE, find_published, load_published
from holdfast.corruptions.table import entry
from holdfast.corruptions.table import names as corruption_names
from holdfast.errors import ConfigError, nearest
from holdfast.records import Attack, Cell, Corruption, Data, Judge, Model, Stage
from holdfast.tasks.classification import Classification
from holdfast.tasks.embedding import Embedding
from holdfast.tasks.task import Task

ENCODERS_PER_JOB = 4


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
        about: in one line.
    """

    name: str
    version: int = 2
    limit: int
    attack_limit: int
    corruptions: tuple[str, ...]
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    attacks: tuple[Attack, ...] = ()
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
_LINF = tuple(e / 255 for e in (0.25, 0.5, 1, 2, 4, 8))
SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="quick",
            limit=500,
            attack_limit=200,
            corruptions=_FIFTEEN,
            attacks=_grid(_LINF, (Attack(push="ce", steps=20), Attack(through="embedding", push="mse", steps=20))),
            about="500 images, 15 corruptions, 200 attacked with PGD-20 and EmbedAttack at six radii: a first look",
        ),
        Suite(
            name="standard",
            limit=5000,
            attack_limit=1000,
            corruptions=corruption_names(),
            attacks=_grid(
                _LINF,
                (
                    *_against(_HEADS, "classification", steps=50),
                    *_against(_VECTORS, "embedding", steps=20),
                ),
            ),
            about="5,000 images, 19 corruptions, 1,000 attacked with PGD-50 on two harms, EmbedAttack with 20 steps",
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
                ),
            ),
            about="every image, 19 corruptions, PGD-100 with 5 restarts on two harms, EmbedAttack with 50 steps twice",
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


class Subject(NamedTuple):
    """One encoder with the images that it is shown.

    Attributes:
        model: with its digest.
        images: what clean and corrupted accuracy is measured on.
        attacked: the subset of them that is attacked.
        fit: what heads and banks are fitted on; None = there is no such split, and the bank is made of `images`.
        own_head: whether the checkpoint's own head judges classification.
        given_head: the judge of classification whose head lies in a file; None = there is no such file.
        looked_at: the subset whose saliency is recorded; None = none.
        folder: images and corruption of every condition of an official set; empty = corruptions are made here.
        clean: whether there are clean images; without them nothing but accuracy under corruption can be measured.
    """

    model: Model
    images: Data
    attacked: Data
    fit: Data | None
    own_head: bool
    given_head: Judge | None = None
    looked_at: Data | None = None
    folder: tuple[tuple[Data, Corruption], ...] = ()
    clean: bool = True


class Job(NamedTuple):
    """Cells whose pixels are made together: one data and one list of stages; with an attack, one encoder."""

    data: Data
    stages: tuple[Stage, ...]
    cells: tuple[Cell, ...]

    @property
    def key(self) -> str:
        """Names the job's lease and unfinished blocks: the same for the same cells alone."""
        return hashlib.sha256(" ".join(cell.id for cell in self.cells).encode()).hexdigest()[:16]


def suite(name: str) -> Suite:
    """The suite of that name; `ConfigError` names the nearest."""
    if name not in SUITES:
        raise ConfigError(f'no suite is called "{name}".', next=nearest(name, SUITES))
    return SUITES[name]


def settled(config: BenchConfig) -> BenchConfig:
    """The config with everything that was left to the suite written out.

    Raises:
        ConfigError: an unknown suite or corruption; a norm without radii; an attack that cannot be.
    """
    chosen = suite(config.suite)
    # The names in a folder are its own; they are looked at where it is opened.
    corruptions = config.corruptions or () if config.corrupted else chosen.corruptions
    if config.corruptions is not None and not config.corrupted:
        corruptions = _corruptions(config.corruptions)
    if config.corrupted:
        _refuse_ways(config)
    if config.heads and "classification" not in config.tasks:
        raise ConfigError("--heads were given, and no classification asked for.", next="Add --tasks classification.")
    if config.chunk < SMALLEST or config.block < 1:
        raise ConfigError(
            f"chunk {config.chunk}, block {config.block}.", next=f"Take --chunk {SMALLEST} or more, --block 1 or more."
        )
    if config.eps is not None and not config.eps:
        raise ConfigError("--eps was given without a radius.", next="Write --eps 2/255 4/255, or leave it out.")
    # A folder has the severities that it has.
    severities = (() if config.corrupted else chosen.severities) if config.severities is None else config.severities
    if not all(1 <= severity <= 5 for severity in severities):
        raise ConfigError(f"severities {severities}.", next="Severities are 1 to 5.")
    return msgspec.structs.replace(
        config,
        limit=config.limit or chosen.limit,
        attack_limit=chosen.attack_limit if config.attack_limit is None else config.attack_limit,
        tasks=tuple(dict.fromkeys(config.tasks)),
        corruptions=tuple(dict.fromkeys(corruptions)),
        severities=tuple(dict.fromkeys(severities)),
        textures=textures(config.textures) if "frost" in corruptions and not config.corrupted else "drawn",
        attacks=_attacks(config, config.attacks or chosen.attacks),
        eps=None,
        steps=None,
        norm="",
    )


def _refuse_ways(config: BenchConfig) -> None:
    """What is read from a folder was made already: nothing can be asked of how."""
    defaults = BenchConfig()
    for name in ("variant", "corruption_mode", "storage", "textures"):
        if getattr(config, name) != getattr(defaults, name):
            raise ConfigError(
                f"{config.corrupted} holds corrupted images; --{name.replace('_', '-')} {getattr(config, name)} would "
                "change nothing.",
                next="Leave it out, or leave --corrupted out to make them here.",
            )


def textures(asked: Literal["auto", "drawn", "published"]) -> Literal["drawn", "published"]:
    """Which textures frost is made of: `auto` = the published ones where they are found.

    Raises:
        ConfigError: `HOLDFAST_FROST` names a folder that does not hold them.
    """
    if asked == "auto":
        if os.environ.get(VARIABLE):
            load_published()  # a folder that was named must hold them
        return "published" if find_published() is not None else "drawn"
    return asked


def cells(config: BenchConfig, subjects: Sequence[Subject]) -> list[Cell]:
    """Every cell of the grid, clean first, then corruptions, then attacks.

    Args:
        config: as `settled` returns it, with a `variant` where corruptions are asked for.
        subjects: the encoders with their images.
    """
    grid = []
    for subject in subjects:
        judges = [_judge(config, subject, task) for task in config.tasks]
        corrupted = subject.folder if config.corrupted else tuple((subject.images, stage) for stage in made(config))
        conditions: list[tuple[Data, tuple[Stage, ...]]] = [(subject.images, ())] if subject.clean else []
        for data, stages in [*conditions, *((images, (stage,)) for images, stage in corrupted)]:
            grid += [Cell(data=data, stages=stages, encoder=subject.model, judge=judge) for judge in judges]
        if subject.looked_at is not None:
            judge = _looker(config, subject)
            grid += [
                Cell(data=subject.looked_at, stages=stages, encoder=subject.model, judge=judge)
                for stages in [(), *((stage,) for _, stage in corrupted)]
            ]
        for attack in config.attacks if subject.clean else ():
            grid += [
                Cell(data=subject.attacked, stages=(attack,), encoder=subject.model, judge=judge) for judge in judges
            ]
    return grid


def made(config: BenchConfig) -> list[Corruption]:
    """The corruptions that are made here, one record per name and severity."""
    if not config.corruptions:
        return []
    if not config.variant:
        raise ConfigError("Corruptions need a severity table.", next="Add --variant imagenet224.")
    return [
        Corruption(
            name=name,
            severity=severity,
            variant=config.variant,
            seed=config.seed,
            mode=config.corruption_mode,
            storage=config.storage,
            textures="published" if name == "frost" and config.textures == "published" else "drawn",
        )
        for name in config.corruptions
        for severity in config.severities or ()
    ]


def jobs(grid: Sequence[Cell], *, shard: str = "") -> list[Job]:
    """Cells whose pixels are made together, in a fixed order; of them every n-th where `shard` is `i/n`.

    Raises:
        ConfigError: a shard that is not `i/n` with 1 <= i <= n.
    """
    groups: dict[bytes, list[Cell]] = {}
    for cell in grid:
        attacked = cell.attack is not None
        key = msgspec.json.encode((cell.data, cell.stages, cell.encoder if attacked else None), order="deterministic")
        groups.setdefault(key, []).append(cell)
    made = [Job(part[0].data, part[0].stages, tuple(part)) for group in groups.values() for part in _few(group)]
    first, every = _shard(shard)
    return made[first::every]


def _few(group: list[Cell]) -> list[list[Cell]]:
    """The cells of a group, at most `ENCODERS_PER_JOB` encoders together."""
    encoders = list(dict.fromkeys(cell.encoder.digest() for cell in group))
    places = {digest: at // ENCODERS_PER_JOB for at, digest in enumerate(encoders)}
    parts: dict[int, list[Cell]] = {}
    for cell in group:
        parts.setdefault(places[cell.encoder.digest()], []).append(cell)
    return list(parts.values())


def _shard(text: str) -> tuple[int, int]:
    if not text:
        return 0, 1
    part, slash, of = text.partition("/")
    if not (slash and part.isdigit() and of.isdigit() and 1 <= int(part) <= int(of)):
        raise ConfigError(f'shard "{text}" is not i/n with 1 <= i <= n.', next="Write --shard 1/4 ... --shard 4/4.")
    return int(part) - 1, int(of)


def _judge(config: BenchConfig, subject: Subject, task: str) -> Judge:
    if task == "embedding":
        return Judge(task="embedding", head="bank", level=config.level, fit=subject.fit or subject.images)
    if subject.given_head is not None:
        return subject.given_head
    if subject.own_head:
        return Judge(task="classification", head="own")
    return Judge(task="classification", head="linear", level=config.level, fit=subject.fit)


def _looker(config: BenchConfig, subject: Subject) -> Judge:
    """The judge of saliency: through the head that judges classification, or, without one, the embedding."""
    judge = _judge(config, subject, "classification")
    has_head = judge.head in ("own", "given") or judge.fit is not None
    target = config.saliency_target
    if target == "auto":
        target = "predicted" if "classification" in config.tasks and has_head else "similarity"
    if target != "similarity" and not ("classification" in config.tasks and has_head):
        raise ConfigError(
            f"{subject.model.name} has no head here that could name a {target} class.",
            next="Use --saliency-target similarity, or add --tasks classification.",
        )
    if target == "similarity":
        return Judge(task="saliency", head="none", target=target, level=config.level)
    return msgspec.structs.replace(judge, task="saliency", target=target)


def _corruptions(asked: tuple[str, ...]) -> tuple[str, ...]:
    known = corruption_names()
    if asked == ("none",):
        return ()
    if asked == ("all",):
        return known
    for name in asked:
        if name not in known:
            raise ConfigError(f'no corruption is called "{name}".', next=nearest(name, known))
    return asked


def _attacks(config: BenchConfig, attacks: tuple[Attack, ...]) -> tuple[Attack, ...]:
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
    changed = [
        msgspec.structs.replace(
            attack,
            norm=config.norm or attack.norm,
            steps=attack.steps if config.steps is None else config.steps,
            seed=attack.seed or config.seed,
        )
        for attack in attacks
        if attack.through in config.tasks
    ]
    if config.eps is not None:
        templates = list(dict.fromkeys(msgspec.structs.replace(attack, eps=1.0) for attack in changed))
        changed = list(_grid(config.eps, templates))
    return tuple(dict.fromkeys(complete(attack) for attack in changed))
