"""A page of attacked images to look at: clean, adversarial, and the difference, amplified as far as the page says."""

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


class Look(NamedTuple):
    """One image: name, clean and adversarial uint8 [h, w, 3], perturbation in pixel units, and what happened."""

    id: str
    clean: Pixels
    adversarial: Pixels
    delta: npt.NDArray[np.float32]
    text: str


def write(path: Path, looks: Sequence[Look], *, title: str, about: str, next: str) -> Path:  # noqa: A002
    """Write the page: one file, no network, no script.

    Args:
        path: of the HTML file.
        looks: the images.
        title: of the page.
        about: what was done, in a sentence.
        next: the command that measures.

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
            "images": [
                ("clean", data_uri(look.clean)),
                ("adversarial", data_uri(look.adversarial)),
                (f"difference \N{MULTIPLICATION SIGN} {factor}", data_uri(amplified(look.delta, factor))),
            ],
        }
        for look in looks
    ]
    template = environment.get_template("look.html.jinja")
    page = template.render(title=title, about=about, next=next, factor=factor, tiles=tiles)
    return disk.write(path, page)
