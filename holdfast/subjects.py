"""Where a bench finds its encoders, images and heads: loads, opens, fits; each once, kept by its digest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from torch import nn

from holdfast.configs import BenchConfig
from holdfast.data.batches import Source, require_labels
from holdfast.data.sources import images_for, open_source, splits
from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.plan import Job, Subject
from holdfast.models.checkpoint import load, series
from holdfast.models.encoder import Encoder, Geometry
from holdfast.records import Cell, Data, Judge, Model
from holdfast.tasks.classification import Classification
from holdfast.tasks.embedding import Embedding, bank
from holdfast.tasks.features import Extracted, cached
from holdfast.tasks.task import Task
from holdfast.training.probe import fit_linear

KEPT_ENCODERS = 4


class Stock:
    """Encoders, images and tasks of a bench.

    Args:
        config: as `plan.settled` returns it.
        handed: encoders or modules that were given in Python, before those that the config names.
        device: where encoders live.
        heads: folder for cached features.
    """

    def __init__(
        self, config: BenchConfig, handed: Sequence[nn.Module], *, device: torch.device, heads: Path
    ) -> None:
        self.config, self.device, self.heads = config, device, heads
        self._handed: dict[str, Encoder] = {}
        self._encoders: dict[str, Encoder] = {}
        self._sources: dict[str, Source] = {}
        self._tasks: dict[str, Task] = {}
        self._features: dict[str, Extracted] = {}
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
        return self._sources[digest]

    def task(self, cell: Cell) -> Task:
        """The judge of a cell, with its head fitted where it has one to fit."""
        key = msgspec.json.encode((cell.judge, cell.encoder.digest_of_weights), order="deterministic").decode()
        if key not in self._tasks:
            self._tasks[key] = self._fitted(cell.judge, cell.encoder)
        return self._tasks[key]

    def fits(self, todo: Sequence[Job]) -> list[tuple[Model, Data]]:
        """Encoder and images of every head or bank that jobs need and that is not on disk yet."""
        wanted: dict[Path, tuple[Model, Data]] = {}
        for cell in (cell for job in todo for cell in job.cells):
            if cell.judge.fit is not None:
                path = self._path(cell.judge.fit, cell.encoder, cell.judge.level)
                wanted[path] = (cell.encoder, cell.judge.fit)
        return [found for path, found in wanted.items() if not path.exists()]

    # -- how it is found -----------------------------------------------------------------------------------------------

    def _named(self, handed: Sequence[nn.Module]) -> list[Model]:
        """The records of all encoders, with digests and names that differ."""
        config, models = self.config, []
        for module in handed:
            encoder = load(module, device=self.device)
            self._handed[encoder.digest()] = encoder
            models.append(msgspec.structs.replace(encoder.model, name=encoder.name))
        for spec in config.encoders:
            for path in series(Path(spec)) if _is_series(Path(spec)) else [spec]:
                bare = Model(
                    spec=str(path), arch=config.arch, options=config.options, mean=config.mean, std=config.std
                )
                models.append(self._loaded(bare))
        models += [self._loaded(model) for model in config.models]
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
        shown = self._open(encoder.geometry, config.split, "test", config.limit)
        attacked = self._open(encoder.geometry, config.split, "test", config.attack_limit or 0)
        if len(self.source(attacked)) >= len(self.source(shown)):
            attacked = shown
        encoder.dims(config.level)
        fit = self._fit(encoder.geometry, shown)
        if len(self.source(fit or shown)) < 2:
            raise DataError(
                "One image cannot be compared with another.", next="Take more: --limit, --fit-limit, or 0 for all."
            )
        own = "classification" in config.tasks and self._owns_head(encoder, shown)
        if "classification" in config.tasks and not own and fit is None:
            raise DataError(
                f"{config.data} has no split to fit a head on besides the one that is measured ({shown.split}).",
                asked=f"Accuracy of {model.spec}, which has no head of its own, was asked for.",
                next="Name one with --fit-split, or measure without labels: --tasks embedding.",
            )
        return Subject(model, shown, attacked, fit, own)

    def _open(self, geometry: Geometry, split: str, default: str, limit: int) -> Data:
        """A record of images in the geometry that the encoder expects, with its digest."""
        data = images_for(self.config, geometry, split=split, default=default, limit=limit)
        source = open_source(data)
        self._sources[source.data.digest()] = source
        return source.data

    def _fit(self, geometry: Geometry, shown: Data) -> Data | None:
        """The images to fit on; None where the data has no split but the one that is measured."""
        there, wanted = splits(self.config.data), self.config.fit_split
        if wanted == shown.split or (wanted == "train" and wanted not in there):
            return None
        return self._open(geometry, wanted, wanted, self.config.fit_limit)

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
            raise ConfigError(
                f"{encoder.name} has no classification head of its own.", next="Fit one: --head linear."
            )
        if encoder.classes != len(source.classes):
            raise ConfigError(
                f"The head of {encoder.name} knows {encoder.classes} classes, {self.config.data} has "
                f"{len(source.classes)}.",
                next="Fit a head here: --head linear.",
            )
        return True

    def _fitted(self, judge: Judge, model: Model) -> Task:
        if judge.head == "own":
            return Classification()
        assert judge.fit is not None, "plan gives a fit to every judge without an own head"
        held = self._extracted(judge.fit, model, judge.level)
        if judge.task == "embedding":
            return Embedding(bank(held.vectors, held.keys, held.labels, seed=judge.fit.seed), judge.level)
        assert held.labels is not None, "_owns_head asked for labels"
        classes = len(self.source(judge.fit).classes)
        head = fit_linear(held.vectors, held.labels, classes=classes, seed=self.config.seed)
        return Classification(head.to(self.device), judge.level)

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
        record = msgspec.structs.replace(model, name="")
        return self.heads / f"{record.digest()[:16]}-{read.digest()[:16]}.safetensors"


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
