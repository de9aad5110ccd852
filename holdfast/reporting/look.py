"""A page of attacked images to look at: clean, adversarial, and the difference, amplified as far as the page says.

Where a head answers for every pixel, its answers and the truth stand beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined

from holdfast import disk
from holdfast.reporting.gallery import Pixels, amplified, data_uri, factor_of

SMALL = 96
BESIDE = 4
"""So many pictures of an image stand side by side."""


class Look(NamedTuple):
    """One image.

    Attributes:
        id: its name.
        clean: uint8 [h, w, 3].
        adversarial: the same.
        delta: the perturbation in pixel units, [h, w, 3].
        text: what happened.
        answers: names with pictures of truth, answers and errors, as `dense_pictures.pictures` gives them.
    """

    id: str
    clean: Pixels
    adversarial: Pixels
    delta: npt.NDArray[np.float32]
    text: str
    answers: tuple[tuple[str, Pixels], ...] = ()


class Key(NamedTuple):
    """How answers are to be read: a sentence, and names with colours (`dense_pictures.legend`)."""

    text: str
    colours: tuple[tuple[str, str], ...] = ()


KEYS = {
    "segmentation": "Wrong pixels are bright in the pictures of errors, right ones dark, grey ones have no label.",
    "depth": "Depth runs from dark (the nearest measured in the image) to bright (the furthest), errors from dark "
    "(none) to bright (half of the furthest, or more); grey was not measured.",
}


def write(
    path: Path,
    looks: Sequence[Look],
    *,
    title: str,
    about: str,
    next: str,  # noqa: A002
    key: Key | None = None,
) -> Path:
    """Write the page: one file, no network, no script.

    Args:
        path: of the HTML file.
        looks: the images.
        title: of the page.
        about: what was done, in a sentence.
        next: the command that measures.
        key: to the answers; None where there are none.

    Returns:
        `path`.
    """
    loader = PackageLoader("holdfast", "reporting")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    factor = factor_of(max((float(np.abs(look.delta).max()) for look in looks), default=0.0))
    tiles = [
        {
            "id": look.id,
            "text": look.text,
            "small": max(look.clean.shape[:2]) <= SMALL,
            "rows": _rows(
                [
                    ("clean", look.clean),
                    ("adversarial", look.adversarial),
                    (f"difference \N{MULTIPLICATION SIGN} {factor}", amplified(look.delta, factor)),
                    *look.answers,
                ]
            ),
        }
        for look in looks
    ]
    template = environment.get_template("look.html.jinja")
    page = template.render(title=title, about=about, next=next, factor=factor, tiles=tiles, key=key)
    return disk.write(path, page)


def _rows(pictures: Sequence[tuple[str, Pixels]]) -> list[list[tuple[str, str]]]:
    """Names with data URIs, at most four side by side."""
    named = [(name, data_uri(picture)) for name, picture in pictures]
    return [named[first : first + BESIDE] for first in range(0, len(named), BESIDE)]
