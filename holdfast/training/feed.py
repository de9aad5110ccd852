"""What the next step works on, made while this one runs: images read, and on a CPU the views drawn, one step ahead."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.data.batches import Rows
from holdfast.training.methods.method import Method
from holdfast.training.pool import Pool


class Chosen(NamedTuple):
    """The images of one step.

    Attributes:
        numbers: in the pool, int64 [b].
        rows: "key" int64 [b], another one for each image in each epoch; "label" on the device, where there are labels.
    """

    numbers: Tensor
    rows: Rows


class Fed(NamedTuple):
    """What a step works on.

    Attributes:
        views: as the method draws them.
        rows: of the images.
    """

    views: dict[str, Tensor]
    rows: Rows


def feed(
    pool: Pool, method: Method, steps: int, chosen: Callable[[int], Chosen], *, first: int = 0
) -> Generator[Fed, None, None]:
    """Views for the steps first..steps-1, in order.

    What is made depends on the images and their keys alone (`Method.views` reads no weight), so that being ahead
    changes no number. On a GPU views are drawn where they are asked for, since its own queue runs ahead;
    images that lie in files are read ahead there too.

    Args:
        pool: the images.
        method: draws views.
        steps: where to end.
        chosen: the images of a step.
        first: where to begin.

    Yields:
        Views on the device of the pool.

    Raises:
        DataError: an image that cannot be decoded, at the step that needs it.
    """
    here = pool.device.type == "cpu"
    if not here and not pool.in_files:
        for step in range(first, steps):
            numbers, rows = chosen(step)
            yield Fed(_drawn(method, pool.pixels(numbers), rows), rows)
        return

    def make(step: int) -> tuple[Tensor | dict[str, Tensor], Rows]:
        numbers, rows = chosen(step)
        pixels = pool.pixels(numbers)
        return (_drawn(method, pixels, rows) if here else pixels), rows

    with ThreadPoolExecutor(1, thread_name_prefix="feed") as maker:
        waiting = maker.submit(make, first) if first < steps else None
        for step in range(first, steps):
            assert waiting is not None
            made, rows = waiting.result()
            waiting = maker.submit(make, step + 1) if step + 1 < steps else None
            yield Fed(made if isinstance(made, dict) else _drawn(method, made, rows), rows)


def _drawn(method: Method, pixels: Tensor, rows: Rows) -> dict[str, Tensor]:
    with torch.no_grad():
        return method.views(pixels, rows)
