"""Where a bench finds its encoders, images and heads: loads, opens, fits; each once, kept by its digest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from torch import nn

from holdfast.configs import BenchConfig
from holdfast.data import corrupted
from holdfast.data.batches import Source, require_labels
from holdfast.data.sources import images_for, open_source, parse, splits
from holdfast.data.stages import Sides, check_alike, check_cut, check_images, folder
from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.dense_judges import DenseHeads
from holdfast.evaluation.plan import ENCODERS_PER_JOB, Job, Subject
from holdfast.models.checkpoint import load, series
from holdfast.models.encoder import Encoder, Geometry
from holdfast.models.heads import read_head
from holdfast.records import DENSE_TASKS, Cell, Corruption, Data, Judge, Model
from holdfast.tasks.classification import Classification
from holdfast.tasks.embedding import Embedding, bank
from holdfast.tasks.features import Extracted, cached
from holdfast.tasks.saliency import Saliency
from holdfast.tasks.task import Task
from holdfast.training.probe import fit_linear
from holdfast.views import worded

KEPT_ENCODERS = ENCODERS_PER_JOB
KEPT_PARTNERS = 2


class Stock:
    """Encoders, images and tasks of a bench.

    Args:
        config: as `plan.settled` returns it.
        handed: encoders or modules that were given in Python, before those that the config names.
        device: where encoders live.
        heads: folder for cached features.
    """

    def __init__(self, config: BenchConfig, handed: Sequence[nn.Module], *, device: torch.device, heads: Path) -> None:
        self.config, self.device, self.heads = config, device, heads
        self._handed: dict[str, Encoder] = {}
        self._encoders: dict[str, Encoder] = {}
        self._sources: dict[str, Source] = {}
        self._tasks: dict[str, Task] = {}
        self._features: dict[str, Extracted] = {}
        self._partners: dict[str, Source] = {}
        self._heads: dict[str, nn.Linear] = {}
        self._dense = DenseHeads(config, device)
        self._maps: dict[tuple[str, str, int], Saliency] = {}
        self._digests: dict[str, Data] = {}
        self._folder = folder(config.corrupted, config.corruptions, config.severities) if config.corrupted else None
        self.subjects = [self._subject(model) for model in self._named(handed)]

    # -- what the evaluation asks for ----------------------------------------------------------------------------------

    def encoder(self, model: Model) -> Encoder:
        """The encoder of a record; the latest few are kept."""
        digest = model.digest_of_weights
        if digest in self._handed:
            return self._handed[digest]
        if digest not in self._encoders:
            found = load(msgspec.structs.replace(model, digest_of_weights=""), device=self.device)
            if found.digest() != digest:
                raise ConfigError(
                    f"{model.spec} has changed since this run began.", next="Choose another --out, or --replace."
                )
            self._keep(digest, found)
        return self._encoders[digest]

    def source(self, data: Data) -> Source:
        """The images of a record, opened once."""
        digest = data.digest()
        if digest not in self._sources:
            self._sources[digest] = open_source(data)
            # A corrupted set has a listing per condition: the latest few are enough.
            stored = [d for d, source in self._sources.items() if source.data.source in corrupted.KINDS]
            for old in stored[:-KEPT_PARTNERS]:
                del self._sources[old]
        return self._sources[digest]

    def partner(self, data: Data, corruption: Corruption) -> Source:
        """The corrupted versions of images, from the folder that the stage names; the latest few are kept open."""
        key = f"{data.digest()} {corruption.digest()}"
        if key not in self._partners:
            assert self._folder is not None, "a stage has a root where the config names a folder"
            kind, name, severity = self._folder.kind, corruption.name, corruption.severity
            self._partners[key] = corrupted.partner(
                self.source(data), kind, corruption.root, name, severity, size=self.config.size
            )
            while len(self._partners) > KEPT_PARTNERS:
                self._partners.pop(next(iter(self._partners)))
        return self._partners[key]

    def task(self, cell: Cell) -> Task:
        """The judge of a cell, with its head fitted where it has one to fit."""
        judge, model = cell.judge, cell.encoder
        if judge.task == "saliency":
            return self._saliency(cell)
        return self._judge(judge, model, cell.data)

    def _judge(self, judge: Judge, model: Model, data: Data) -> Task:
        if judge.task in DENSE_TASKS:
            return self._dense.task(judge, self.source(data))
        within = self.source(data).within if judge.task == "classification" else ()
        key = msgspec.json.encode((judge, model.digest_of_weights, within), order="deterministic").decode()
        if key not in self._tasks:
            self._tasks[key] = self._fitted(judge, model, within)
        return self._tasks[key]

    def _saliency(self, cell: Cell) -> Task:
        """Maps of one encoder; it is theirs alone, so that a reloaded encoder needs others."""
        judge, encoder, source = cell.judge, self.encoder(cell.encoder), self.source(cell.data)
        key = (judge.digest(), cell.data.digest(), id(encoder))
        if key not in self._maps:
            # The class that is explained is the one that classification would name.
            named = msgspec.structs.replace(judge, task="classification", target="")
            judged = self._judge(named, cell.encoder, cell.data) if judge.head != "none" else None
            self._maps[key] = Saliency(
                encoder=encoder,
                head=judged.head if isinstance(judged, Classification) else None,
                target=judge.target or "similarity",
                head_level=judge.level,
                labelled=source.labels is not None,
                size=min(source.read(0).pixels.shape[:2]),
            )
            while len(self._maps) > KEPT_ENCODERS:
                self._maps.pop(next(iter(self._maps)))
        return self._maps[key]

    def fits(self, todo: Sequence[Job]) -> list[tuple[Model, Data]]:
        """Encoder and images of every head or bank that jobs need and that is not on disk yet."""
        wanted: dict[Path, tuple[Model, Data]] = {}
        for cell in (cell for job in todo for cell in job.cells):
            if cell.judge.fit is not None and cell.judge.task != "saliency":
                path = self._path(cell.judge.fit, cell.encoder, cell.judge.level)
                wanted[path] = (cell.encoder, cell.judge.fit)
        return [found for path, found in wanted.items() if not path.exists()]

    # -- how it is found -----------------------------------------------------------------------------------------------

    def _named(self, handed: Sequence[nn.Module]) -> list[Model]:
        """The records of all encoders, with digests and names that differ."""
        config, models = self.config, []
        if config.heads and len(config.heads) != len(config.encoders):
            raise ConfigError(
                f"{len(config.heads)} heads for {len(config.encoders)} encoders.", next="Name one head for each."
            )
        heads = dict(zip(config.encoders, config.heads))
        for module in handed:
            encoder = load(module, device=self.device)
            self._handed[encoder.digest()] = encoder
            models.append(msgspec.structs.replace(encoder.model, name=encoder.name))
        for spec in config.encoders:
            words, inner = worded(spec)
            for path in series(Path(inner)) if _is_series(Path(inner)) else [inner]:
                bare = Model(
                    spec=f"{words}{path}",
                    arch=config.arch,
                    options=config.options,
                    mean=config.mean,
                    std=config.std,
                    head=heads.get(spec, ""),
                )
                models.append(self._loaded(bare))
        models += [self._loaded(model) for model in config.models]
        self._dense.check(len(models))
        if not models:
            raise ConfigError("No encoder was named.", next="holdfast bench ENCODER... --data imgs/ --out runs/b")
        return _distinct(models)

    def _loaded(self, model: Model) -> Model:
        encoder = load(model, device=self.device)
        self._keep(encoder.digest(), encoder)
        return msgspec.structs.replace(encoder.model, name=encoder.name)

    def _keep(self, digest: str, encoder: Encoder) -> None:
        self._encoders[digest] = encoder
        while len(self._encoders) > KEPT_ENCODERS:
            self._encoders.pop(next(iter(self._encoders)))

    def _subject(self, model: Model) -> Subject:
        config, encoder = self.config, self.encoder(model)
        _check_crops(model, config.data)
        if parse(config.data)[0] in corrupted.KINDS:
            return self._corrupted_alone(model)
        shown = self._open(encoder.geometry, config.split, "test", config.limit)
        attacked = self._part(encoder.geometry, shown, config.attack_limit or 0)
        encoder.dims(config.level)
        fit = self._fit(encoder.geometry, shown)
        if len(self.source(fit or shown)) < 2:
            raise DataError(
                "One image cannot be compared with another.", next="Take more: --limit, --fit-limit, or 0 for all."
            )
        given = self._given(model, shown) if "classification" in config.tasks else None
        own = given is None and "classification" in config.tasks and self._owns_head(encoder, shown)
        if "classification" in config.tasks and not own and given is None and fit is None:
            raise DataError(
                f"{config.data} has no split to fit a head on besides the one that is measured ({shown.split}).",
                asked=f"Accuracy of {model.spec}, which has no head of its own, was asked for.",
                next="Name one with --fit-split, or measure without labels: --tasks embedding.",
            )
        dense = self._dense.judges(model, encoder, self.source(shown))
        looked_at = self._part(encoder.geometry, shown, config.saliency) if config.saliency else None
        conditions: tuple[tuple[Data, Corruption], ...] = ()
        if self._folder is not None:
            check_cut(self._folder, Sides(shown.resize, shown.size, shown.interpolation))
            check_images(self._folder, self.source(shown))
            conditions = tuple((shown, stage) for stage in self._folder.stages)
        return Subject(model, shown, attacked, fit, own, given, looked_at, conditions, dense=dense)

    def _corrupted_alone(self, model: Model) -> Subject:
        """A subject of an official set without its clean images: accuracy through the checkpoint's own head."""
        config, encoder = self.config, self.encoder(model)
        assert self._folder is not None, "benching names the set itself where it is alone"
        conditions: list[tuple[Data, Corruption]] = []
        first_source: Source | None = None
        for stage in self._folder.stages:
            split = f"{stage.name}/{stage.severity}"
            if config.split in ("", split):
                data = self._open(encoder.geometry, split, split, config.limit)
                first_source = first_source or self.source(data)
                check_alike(first_source, self.source(data))
                conditions.append((data, stage))
        if not conditions:
            raise DataError(f"{config.data} has no {config.split}.", next="Leave --split out, or write --split fog/3.")
        first = conditions[0][0]
        given = self._given(model, first)
        if given is None and not self._owns_head(encoder, first):
            raise DataError(
                f"{encoder.name} has no head of its own, and {config.data} nothing to fit one on.",
                next="Name the clean images, with a training split: --data CLEAN --corrupted FOLDER.",
            )
        return Subject(model, first, first, None, given is None, given, None, tuple(conditions), clean=False)

    def _part(self, geometry: Geometry, shown: Data, limit: int) -> Data:
        """The first so many images of the subset that is shown; the same record where that is all of them."""
        part = self._open(geometry, self.config.split, "test", limit)
        return shown if len(self.source(part)) >= len(self.source(shown)) else part

    def _open(self, geometry: Geometry, split: str, default: str, limit: int) -> Data:
        """A record of images with its digest, in the geometry of the folder that they belong to, else the encoder's."""
        sides = self._folder.sides if self._folder is not None else None
        data = images_for(self.config, sides or geometry, split=split, default=default, limit=limit)
        asked = data.digest()
        if asked not in self._digests:
            source = open_source(data)
            self._digests[asked] = source.data
            if data.source not in corrupted.KINDS:
                self._sources[source.data.digest()] = source
        return self._digests[asked]

    def _fit(self, geometry: Geometry, shown: Data) -> Data | None:
        """The images to fit on; None where the data has no split but the one that is measured."""
        there, wanted = splits(self.config.data), self.config.fit_split
        if wanted == shown.split or (wanted == "train" and wanted not in there):
            return None
        return self._open(geometry, wanted, wanted, self.config.fit_limit)

    def _given(self, model: Model, shown: Data) -> Judge | None:
        """The judge whose head lies in the file that the model names; None where it names none."""
        if not model.head:
            return None
        if self.config.head != "auto":
            raise ConfigError(
                f"{model.head} was given as a head, and --head {self.config.head} asks for another.",
                next="Leave one of the two out.",
            )
        found, encoder, source = read_head(model.head), self.encoder(model), self.source(shown)
        require_labels(source)
        level = model.head_level or found.level or "pooled"
        have, want = tuple(found.linear.weight.shape), (len(source.classes), encoder.dims(level))
        if have != want:
            raise ConfigError(
                f"{model.head} holds a head of {have[1]} features for {have[0]} classes; {encoder.name} has {want[1]} "
                f"at {level}, {self.config.data} has {want[0]} classes.",
                next="Name the level that it reads (head_level in models), or leave the head out.",
            )
        self._heads[found.digest] = found.linear.to(self.device)
        return Judge(task="classification", head="given", level=level, digest_of_head=found.digest)

    def _owns_head(self, encoder: Encoder, shown: Data) -> bool:
        wanted, source = self.config.head, self.source(shown)
        require_labels(source)
        if len(source.classes) < 2:
            raise DataError(
                f"{self.config.data} holds one class, {source.classes[0]}: nothing can be confused.",
                next="Name more with --classes, or measure without labels: --tasks embedding.",
            )
        if wanted == "linear" or (wanted == "auto" and encoder.head is None):
            return False
        if encoder.head is None:
            raise ConfigError(f"{encoder.name} has no classification head of its own.", next="Fit one: --head linear.")
        if encoder.classes != len(source.classes):
            raise ConfigError(
                f"The head of {encoder.name} knows {encoder.classes} classes, {self.config.data} has "
                f"{len(source.classes)}.",
                next="Fit a head here: --head linear.",
            )
        return True

    def _fitted(self, judge: Judge, model: Model, within: tuple[int, ...]) -> Task:
        if judge.head == "own":
            return Classification(within=within, known=self.encoder(model).classes)
        if judge.head == "given":
            head = self._heads[judge.digest_of_head]
            return Classification(head, judge.level, within=within, known=head.out_features)
        assert judge.fit is not None, "plan gives a fit to every judge without an own head"
        held = self._extracted(judge.fit, model, judge.level)
        if judge.task == "embedding":
            return Embedding(bank(held.vectors, held.keys, held.labels, seed=judge.fit.seed), judge.level)
        assert held.labels is not None, "_owns_head asked for labels"
        classes = len(self.source(judge.fit).classes)
        head = fit_linear(held.vectors, held.labels, classes=classes, seed=self.config.seed)
        return Classification(head.to(self.device), judge.level, within=within, known=classes)

    def _extracted(self, fit: Data, model: Model, level: str) -> Extracted:
        """Features of the fit images, in memory and on disk under the digests of encoder, images and level."""
        path = self._path(fit, model, level)
        if path.name not in self._features:
            encoder, source = self.encoder(model), self.source(fit)
            self._features[path.name] = cached(path, encoder, source, level=level, chunk=self.config.chunk)
        return self._features[path.name]

    def _path(self, fit: Data, model: Model, level: str) -> Path:
        read = Judge(task="embedding", head="bank", level=level, fit=fit)
        # Weights alone do not say how they are read: the whole record does, but for the name on the page.
        record = msgspec.structs.replace(model, name="", head="", head_level="")
        return self.heads / f"{record.digest()[:16]}-{read.digest()[:16]}.safetensors"


def _check_crops(model: Model, data: str) -> None:
    """Crops that are perturbed each for itself lie in the images: both must say the same.

    Raises:
        ConfigError: one says it and the other does not.
    """
    reads, gives = worded(model.spec)[0], worded(data)[0]
    wanted = reads.replace("apart:", "") if "apart" in reads else ""
    if wanted != gives:
        what = f"reads crops that lie apart ({reads})" if wanted else "reads whole images"
        raise ConfigError(
            f"{model.name or model.spec} {what}, {data} holds {f'crops ({gives})' if gives else 'whole images'}.",
            asked="An attack on each of n crops needs both.",
            next=f"Write --data {wanted}{worded(data)[1]}, or the encoder as "
            f"{gives + 'apart:' if gives else ''}{worded(model.spec)[1]}.",
        )


def _is_series(path: Path) -> bool:
    """A folder that is no run of `train`: every checkpoint in it is one encoder."""
    return path.is_dir() and not (path / "encoder.safetensors").exists()


def _distinct(models: Sequence[Model]) -> list[Model]:
    """The records under names that differ; the same weights twice are refused."""
    named: list[Model] = []
    seen: dict[str, str] = {}
    for model in models:
        if model.digest_of_weights in seen:
            raise ConfigError(
                f"{model.spec} and {seen[model.digest_of_weights]} hold the same weights.",
                next="Name each encoder once.",
            )
        seen[model.digest_of_weights] = model.spec
        taken, name, count = {m.name for m in named}, model.name, 2
        while name in taken:
            name, count = f"{model.name} ({count})", count + 1
        named.append(msgspec.structs.replace(model, name=name))
    return named
