"""One atomic record per cell with its per-image outcomes beside it, and how a run is read back.

run.yaml           the resolved config, command line, environment, and which weights and images it is about
cells/<id>.json    `records.Result`; writing it is the commit of a cell
images/<id>.npz    per-image outcomes, arrays [n] (counts of a dense task [n, ...]), with their "id"
gallery/<id>.npz   images chosen by rule
blocks/<key>/      outcomes of unfinished jobs, and attacks under way
checks.json        whether the attacks are to be believed, read from the records
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt
from rich.table import Table

from holdfast import disk
from holdfast.codec import build, pretty, read_json, to_yaml
from holdfast.configs import BenchConfig
from holdfast.errors import ConfigError, ConflictError, DataError, TrustError
from holdfast.evaluation.identity import RunRecord, conflict, differences
from holdfast.evaluation.rows import called, order, rows
from holdfast.records import Cell, Environment, Result

Outcomes = dict[str, npt.NDArray[np.generic]]

OURS: tuple[str, ...] = ("run.yaml", "cells", "images", "gallery", "blocks", "leases", "heads")
CHECKS = "checks.json"
OURS += ("report.html", "results.csv", "table.tex", CHECKS)
SHARED = ("heads", "leases", "log.txt")
_AGAIN = "Remove it and run the same bench command again."


class Store:
    """A run's folder, for writing.

    Args:
        folder: made by `open`, or by the first `put`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def open(
        self,
        config: BenchConfig,
        *,
        replace: bool = False,
        cells: Sequence[Cell] = (),
        environment: Environment | None = None,
    ) -> RunRecord:
        """Begin the run, or continue the one that is there.

        Args:
            config: as `plan.settled` returns it.
            replace: remove a run that was made with another config, or of other weights or images.
            cells: the whole grid; so that a run whose weights or images have changed on disk is not mixed with the new.
            environment: for the record.

        Returns:
            The record of the run, old or new.

        Raises:
            ConflictError: the folder holds another run and `replace` was not given, or files of something else.
        """
        asked = RunRecord(
            config=config,
            command=_command(),
            environment=environment,
            models={called(cell): cell.encoder.digest_of_weights for cell in cells},
            images=tuple(sorted({cell.data.digest_of_images for cell in cells})),
            cells=len(cells),
            made=_made(cells),
        )
        path = self.folder / "run.yaml"
        if path.exists():
            found = _read_run(path)
            changes = differences(found, asked)
            if not changes:
                return found
            if not replace and self._holds_results():
                raise conflict(self.folder, changes)
            self._clear()
        else:
            self._refuse_strangers()
        disk.write(path, to_yaml(asked))
        return asked

    def has(self, cell: Cell) -> bool:
        """Whether the cell is done; a failed one is not, nor one whose images were lost, so that they are tried again.

        Raises:
            DataError: its record is not whole, or its outcomes, where they say whether it has a gallery.
        """
        path, images = (self.folder / "cells" / f"{cell.id}.json", self.folder / "images" / f"{cell.id}.npz")
        if not path.exists() or not images.exists() or _read_result(path).status != "done":
            return False
        gallery = self.folder / "gallery" / images.name
        return not _direct(cell) or gallery.exists() or not shows(cell, load_arrays(images))

    def put(self, result: Result, outcomes: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Keep a cell: outcomes first, then the record, which commits them.

        Args:
            result: of the cell.
            outcomes: arrays [n, ...] under their names, "id" among them; empty for a failed cell.

        Raises:
            TrustError: an outcome is not finite, of another length, or would need pickle.
        """
        if result.status == "done":
            _check(outcomes)
            _save(self.folder / "images" / f"{result.id}.npz", outcomes)
        disk.write(self.folder / "cells" / f"{result.id}.json", pretty(result) + "\n")

    def put_block(self, key: str, index: int, outcomes: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Keep block `index` of the unfinished job `key`: arrays under any names."""
        _save(self.folder / "blocks" / key / f"{index}.npz", outcomes)

    def blocks(self, key: str) -> dict[int, Outcomes]:
        """The finished blocks of a job by index.

        Raises:
            DataError: one of them is not whole.
        """
        paths = (self.folder / "blocks" / key).glob("*.npz")
        return {int(path.stem): load_arrays(path) for path in sorted(paths, key=lambda p: int(p.stem))}

    def drop_blocks(self, key: str) -> None:
        """Remove the blocks of a job whose cells are kept."""
        shutil.rmtree(self.folder / "blocks" / key, ignore_errors=True)

    def put_gallery(self, cell: str, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Keep images of the cell with that id; nothing where there are none."""
        if arrays:
            _save(self.folder / "gallery" / f"{cell}.npz", arrays)

    def _holds_results(self) -> bool:
        """Whether anything would be lost: outcomes of a cell, or a block of one."""
        return any((self.folder / "images").glob("*.npz")) or any((self.folder / "blocks").glob("*/*.npz"))

    def _clear(self) -> None:
        """Remove a run's own files, the config last, so that a killed removal is taken up again."""
        for name in reversed(OURS):
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _refuse_strangers(self) -> None:
        if not self.folder.exists():
            return
        others = sorted(p.name for p in self.folder.iterdir() if p.name not in SHARED and not p.name.startswith("."))
        if others:
            raise ConflictError(
                f"{self.folder} has no run.yaml and holds other files: {', '.join(others[:5])}.",
                next="Choose another --out.",
            )


@dataclass(frozen=True)
class Run:
    """A run as it lies on disk.

    Attributes:
        folder: of the run.
        record: config, command, environment, weights, images.
        results: of every cell on disk, failed ones too; by encoder, then clean, corrupted, attacked.
    """

    folder: Path
    record: RunRecord
    results: list[Result]
    _kept: dict[str, Outcomes] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.resolve().name

    @property
    def config(self) -> BenchConfig:
        """With everything that was left to the suite written out."""
        return self.record.config

    @property
    def environment(self) -> Environment | None:
        """Where the run began; without a record of it, where its first cell was made."""
        return self.record.environment or next((r.environment for r in self.results), None)

    @property
    def failed(self) -> list[Result]:
        """The failed cells."""
        return [r for r in self.results if r.status == "failed"]

    def outcomes(self, cell: str) -> Outcomes:
        """Per-image outcomes of the cell with that id, arrays [n]; kept in memory once read.

        Raises:
            DataError: there are none, or the file is not whole.
        """
        if cell not in self._kept:
            self._kept[cell] = load_arrays(self.folder / "images" / f"{cell}.npz")
        return self._kept[cell]

    def gallery(self, cell: str) -> Outcomes:
        """Images of the cell with that id; empty where none were kept."""
        path = self.folder / "gallery" / f"{cell}.npz"
        return load_arrays(path) if path.exists() else {}

    def rows(self) -> list[dict[str, Any]]:
        """One flat dictionary per metric, for any dataframe; a failed cell gives one row with its error as reason."""
        return [row for result in self.results for row in rows(self.name, result)]

    def table(self) -> Table:
        """The summary as a rich table: measurements down, encoders across; `rows` has everything."""
        # The summary reads runs, so that it cannot be imported before they exist.
        from holdfast.evaluation.summary import table

        return table(self)


def read(folder: str | Path) -> Run:
    """Read a run back.

    Raises:
        DataError: there is no run, or a file in it is not whole.
    """
    folder = Path(folder)
    path = folder / "run.yaml"
    if not path.exists():
        raise DataError(f"{folder} holds no run.yaml.", next="Give the --out of a `holdfast bench`.")
    record = _read_run(path)
    results = [_read_result(p) for p in sorted((folder / "cells").glob("*.json"))]
    places = {name: at for at, name in enumerate(record.models)}
    return Run(folder, record, sorted(results, key=lambda r: order(r, places)))


def shows(cell: Cell, outcomes: Mapping[str, npt.NDArray[np.generic]]) -> bool:
    """Whether a measured cell has a gallery of adversarial images, by its outcomes alone.

    It has one where it is judged by the head that was attacked, unless every image was lost before the attack. (The
    rule of `adversarial.lost_before`, written again, since whoever verifies a run reads no attack's code.)

    Args:
        cell: of the run.
        outcomes: of all of its images, arrays [n, ...] under their names.
    """
    attack = cell.attack
    if attack is None or not _direct(cell) or not len(outcomes.get("id", ())):
        return False
    if "clean_correct" in outcomes:
        return bool(outcomes["clean_correct"].astype(bool).any())
    drifts = attack.through == "embedding" and attack.scored == "drift" and attack.aim == "away"
    if drifts or attack.through in ("segmentation", "depth") or "attack_clean_score" not in outcomes:
        return True
    return bool((outcomes["attack_clean_score"].astype(np.float64) <= 0).any())


def _direct(cell: Cell) -> bool:
    """Whether the cell is attacked, and judged by the head that the attack goes through."""
    return cell.attack is not None and cell.attack.through == cell.judge.task


def _made(cells: Sequence[Cell]) -> str:
    """A digest over the judges and stages of a grid, whatever the order; empty for an empty grid."""
    parts = sorted({part.digest() for cell in cells for part in (cell.judge, *cell.stages)})
    return hashlib.sha256(" ".join(parts).encode()).hexdigest() if parts else ""


def _command() -> str:
    """The command line; `python -m holdfast` is written as holdfast."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return shlex.join(["holdfast" if program == "__main__.py" else program, *sys.argv[1:]])


def _check(outcomes: Mapping[str, npt.NDArray[np.generic]]) -> None:
    if "id" not in outcomes:
        raise TrustError("Per-image outcomes without their image ids were to be kept.")
    n = len(outcomes["id"])
    for name, values in outcomes.items():
        if values.ndim == 0 or len(values) != n:
            raise TrustError(f'Outcome "{name}" has shape {values.shape}, and there are {n} images.')
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values.astype(np.float64)).all():
            raise TrustError(f'Outcome "{name}" is not finite.', next="A value that does not exist is left out.")


def _save(path: Path, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    for name, values in arrays.items():
        if values.dtype.hasobject:
            raise TrustError(f'"{name}" holds Python objects, which would need pickle.')

    def fill(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, values in arrays.items():
                # A name may hold a slash ("cell/outcome"); NumPy's own writer takes keyword arguments alone.
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(values), allow_pickle=False)

    disk.write(path, fill)


def load_arrays(path: Path, *, next: str = _AGAIN) -> Outcomes:  # noqa: A002 - the word of the errors
    """The arrays of an .npz file by name.

    Args:
        path: of the file.
        next: what to do about one that is not whole.

    Raises:
        DataError: there is none, or it is not whole, or it holds Python objects.
    """
    try:
        # NumPy leaves a file open that it opened itself and could not read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing.", next="Run the same bench command again; it makes what is missing."
        ) from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, KeyError, NotImplementedError) as error:
        raise _broken(path, error, next) from None


def _read_result(path: Path) -> Result:
    try:
        result = read_json(Result, path.read_bytes())
    except (msgspec.DecodeError, ConfigError) as error:
        raise _broken(path, error) from None
    if result.id != path.stem:
        raise DataError(f"{path} holds the record of cell {result.id}.", next="Remove it and run the same bench again.")
    return result


def _read_run(path: Path) -> RunRecord:
    try:
        return build(RunRecord, msgspec.yaml.decode(path.read_bytes()), origin=str(path))
    except (msgspec.DecodeError, ConfigError, AttributeError, TypeError) as error:
        raise DataError(f"{path} is not the record of a bench: {error}", next="Choose another --out.") from None


def _broken(path: Path, error: Exception, next: str = _AGAIN) -> DataError:  # noqa: A002 - the word of the errors
    # NumPy's advice, to load what is broken unsafely, is not passed on.
    why = "it is no archive of plain arrays" if "pickle" in str(error) else str(error) or type(error).__name__
    return DataError(f"{path} is not whole or not ours ({why}).", next=next)
