"""What a folder keeps for whoever judges it anew: adversarial images, outcomes and records, cell by cell.

What is missing or cannot be read is named with its cell, so that it does not hide the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from holdfast.codec import read_json
from holdfast.errors import DataError
from holdfast.evaluation.store import load_arrays, read, shows
from holdfast.evaluation.verified_records import malformed
from holdfast.records import Cell, Result

Arrays = Mapping[str, npt.NDArray[np.generic]]

FILE = "adversarial.npz"
FILES = "files"
"""The source of a cell whose images were named one by one: their ids are their paths."""


class Stored(NamedTuple):
    """What lies on disk of one cell that is done.

    Attributes:
        file: of its adversarial images.
        cell: what they were made for.
        arrays: `id`, `clean`, `before`, `adversarial`, [k, ...] each; empty where no image was kept.
        recorded: per-image outcomes in the same order: `prediction`, `margin`, `l2`, `correct`...
        whole: the same of all images of the cell, [n, ...]; empty where they cannot be read.
        result: its record; None outside of a run.
        why: its images cannot be judged; empty = nothing is known against it.
    """

    file: Path
    cell: Cell
    arrays: Arrays
    recorded: Arrays
    whole: Arrays
    result: Result | None = None
    why: str = ""


def stored(folder: Path) -> Iterator[Stored]:
    """What lies in a folder of each cell, those of an encoder together; the galleries of maps are passed over.

    Raises:
        DataError: the record of the run, or the file of an `attack`, is not whole.
    """
    if (folder / FILE).is_file():
        arrays = load_arrays(folder / FILE, next="Make it again: holdfast attack.")
        if "cell" not in arrays:
            raise DataError(f"{folder / FILE} does not say what it holds.", next="Make it again: holdfast attack.")
        cell = read_json(Cell, str(arrays["cell"]).encode())
        yield Stored(folder / FILE, cell, arrays, arrays, arrays)
    if (folder / "run.yaml").is_file():
        done = [result for result in read(folder).results if result.status == "done"]
        for result in sorted(done, key=lambda result: (result.cell.encoder.digest_of_weights, result.id)):
            yield _stored(folder, result)


def _stored(folder: Path, result: Result) -> Stored:
    """What lies on disk of a cell, with the reason where a part of it cannot be read."""
    file = folder / "gallery" / f"{result.id}.npz"
    part = Stored(file, result.cell, {}, {}, {}, result)
    try:
        part = part._replace(whole=load_arrays(folder / "images" / file.name))
        bad = malformed(part.whole)
        if result.cell.attack is None or not file.exists():
            missing = "its images are missing; the same bench command makes them again"
            return part._replace(why=missing if not bad and shows(result.cell, part.whole) else "")
        gallery = load_arrays(file)
    except DataError as error:
        return part._replace(why=str(error))
    if bad:
        return part._replace(why="its outcomes are malformed")
    row_of = {str(name): row for row, name in enumerate(part.whole["id"].tolist())}
    rows = [row_of.get(str(name), -1) for name in gallery.get("id", np.array([])).tolist()]
    known = {name: values[rows] for name, values in part.whole.items()} if min(rows, default=-1) >= 0 else {}
    return part._replace(arrays=gallery, recorded=known)
