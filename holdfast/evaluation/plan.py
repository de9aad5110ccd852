"""From a config to cells, and from cells to jobs: what is measured."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import msgspec

from holdfast.attacks.executor import SMALLEST
from holdfast.configs import BenchConfig
from holdfast.corruptions.frost import VARIABLE, find_published, load_published
from holdfast.corruptions.table import names as corruption_names
from holdfast.data import dense
from holdfast.data.sources import parse
from holdfast.errors import ConfigError, nearest
from holdfast.evaluation.suites import chosen_attacks, named_attacks, paper_attacks, suite, suite_attacks, transfers
from holdfast.records import Attack, Cell, Corruption, Data, Judge, Model, Stage, Surrogate

ENCODERS_PER_JOB = 4
TaskName = Literal["classification", "embedding", "segmentation", "depth"]


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
        dense: judges whose heads answer for every pixel, by task.
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
    dense: Mapping[str, Judge] = MappingProxyType({})


class Job(NamedTuple):
    """Cells whose pixels are made together: one data and one list of stages; with an attack, one encoder."""

    data: Data
    stages: tuple[Stage, ...]
    cells: tuple[Cell, ...]

    @property
    def key(self) -> str:
        """Names the job's lease and unfinished blocks: the same for the same cells alone."""
        return hashlib.sha256(" ".join(cell.id for cell in self.cells).encode()).hexdigest()[:16]


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
    tasks = _tasks(config)
    if config.heads and "classification" not in tasks:
        raise ConfigError("--heads were given, and no classification asked for.", next="Add --tasks classification.")
    if config.chunk < SMALLEST or config.block < 1:
        raise ConfigError(
            f"chunk {config.chunk}, block {config.block}.", next=f"Take --chunk {SMALLEST} or more, --block 1 or more."
        )
    if config.steps is not None and config.steps < 1:
        raise ConfigError(f"steps {config.steps}.", next="Leave --steps out for each attack's own, or give at least 1.")
    if config.eps is not None and not config.eps:
        raise ConfigError("--eps was given without a radius.", next="Write --eps 2/255 4/255, or leave it out.")
    # A folder has the severities that it has.
    severities = (() if config.corrupted else chosen.severities) if config.severities is None else config.severities
    if not all(1 <= severity <= 5 for severity in severities):
        raise ConfigError(f"severities {severities}.", next="Severities are 1 to 5.")
    asked = msgspec.structs.replace(config, tasks=tasks)
    return msgspec.structs.replace(
        config,
        limit=config.limit or chosen.limit,
        attack_limit=chosen.attack_limit if config.attack_limit is None else config.attack_limit,
        tasks=tasks,
        corruptions=tuple(dict.fromkeys(corruptions)),
        severities=tuple(dict.fromkeys(severities)),
        textures=textures(config.textures) if "frost" in corruptions and not config.corrupted else "drawn",
        attacks=chosen_attacks(asked, named_attacks(asked) or config.attacks or suite_attacks(asked)),
        methods=(),
        eps=None,
        steps=None,
        samples=None,
        traced=None,
        precision="",
        norm="",
    )


def at_protocol(config: BenchConfig, asked: BenchConfig, side: int) -> BenchConfig:
    """The config with the attacks whose radius depends on the size of the images, where the suite's are asked for.

    Args:
        config: as `settled` returns it.
        asked: before that.
        side: of the images, in pixels.
    """
    if asked.attacks or asked.methods or asked.eps is not None or asked.norm:
        return config
    asked = msgspec.structs.replace(asked, tasks=config.tasks)
    found = chosen_attacks(asked, paper_attacks(suite(asked.suite), side))
    return msgspec.structs.replace(config, attacks=tuple(dict.fromkeys((*config.attacks, *found))))


def _tasks(config: BenchConfig) -> tuple[TaskName, ...]:
    """The tasks that were asked for, or those that the images and heads allow.

    Raises:
        ConfigError: a dense task without heads, or heads of a task that was not asked for.
    """
    heads: dict[TaskName, tuple[str, ...]] = {"segmentation": config.segmentation_heads, "depth": config.depth_heads}
    labelled: tuple[TaskName, ...] = () if parse(config.data)[0] in dense.READERS else ("classification",)
    usual: tuple[TaskName, ...] = (*labelled, "embedding")
    tasks = tuple(dict.fromkeys(config.tasks)) or (*usual, *(task for task, given in heads.items() if given))
    for task, given in heads.items():
        if task in tasks and not given:
            raise ConfigError(
                f"{task} was asked for, and no head was given that answers it.",
                next=f"holdfast probe ENCODER --task {task} --data {config.data} --out runs/{task}; then "
                f"--{task}-heads runs/{task}",
            )
        if given and task not in tasks:
            raise ConfigError(f"--{task}-heads were given, and {task} not asked for.", next=f"Add --tasks {task}.")
    return tasks


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
        for attack in _on(config, subject, subjects) if subject.clean else ():
            grid += [
                Cell(data=subject.attacked, stages=(attack,), encoder=subject.model, judge=judge) for judge in judges
            ]
    return grid


def _on(config: BenchConfig, subject: Subject, subjects: Sequence[Subject]) -> list[Attack]:
    """The attacks on one encoder; with transfer also those that are made on every other one."""
    attacks = list(config.attacks)
    if config.transfer == "each-other":
        for other in subjects:
            if other.model.digest() != subject.model.digest():
                attacks += [_made_on(config, other, attack) for attack in config.attacks if transfers(attack)]
    return attacks


def _made_on(config: BenchConfig, other: Subject, attack: Attack) -> Attack:
    surrogate = Surrogate(encoder=other.model, judge=_judge(config, other, attack.through))
    return msgspec.structs.replace(attack, surrogate=surrogate)


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
    if task in subject.dense:
        return subject.dense[task]
    if task == "embedding":
        # Attacks on its patch tokens see images as the dense heads do.
        window, stride = (config.window, config.stride) if subject.dense else (0, 0)
        fit = subject.fit or subject.images
        return Judge(task="embedding", head="bank", level=config.level, fit=fit, window=window, stride=stride)
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
