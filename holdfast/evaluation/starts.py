"""Where an attack begins, given by hand: a perturbation, or images that another attack has found."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import DataError

Delta = Tensor | str | Path


def read_delta(given: Delta, pixels: Tensor) -> Tensor:
    """Where an attack begins, as pixels in [0, 1]; whatever is outside the ball is projected into it.

    Args:
        given: perturbations in pixel units, [b, 3, h, w] or [3, h, w] for all images; or a file: .pt or .pth with such
            a tensor, .npz with `delta` or with images `adversarial` (as `holdfast attack` writes), [b, h, w, 3] each.
        pixels: the images, [b, 3, h, w].

    Raises:
        DataError: no such file, or a delta that does not fit the images.
    """
    found = _read(Path(given)) if isinstance(given, str | Path) else given
    if isinstance(found, dict):
        moved = found["adversarial"]
    elif found.shape in (pixels.shape, pixels.shape[1:]) and found.is_floating_point():
        moved = pixels + found.to(pixels)
    else:
        moved = torch.empty(0)
    if moved.shape != pixels.shape or not bool(torch.isfinite(moved).all()):
        shown = list((found["adversarial"] if isinstance(found, dict) else found).shape)
        raise DataError(
            f"the delta has shape {shown}, or numbers that are not finite.",
            asked=f"An attack on images of shape {list(pixels.shape)} was to begin at a given delta:",
            next="Give a float tensor of that shape, or [3, h, w] for all images.",
        )
    return moved.to(pixels).clamp(0, 1)


def _read(path: Path) -> Tensor | dict[str, Tensor]:
    try:
        if path.suffix != ".npz":
            return cast(Tensor, torch.load(path, map_location="cpu", weights_only=True))
        with np.load(path, allow_pickle=False) as archive:
            name = next(name for name in ("adversarial", "delta") if name in archive.files)
            held = torch.from_numpy(np.ascontiguousarray(archive[name])).permute(0, 3, 1, 2).contiguous()
        return {name: held} if name == "adversarial" else held
    except Exception as error:
        raise DataError(
            f"{path} holds no delta ({type(error).__name__}).",
            next='Give .npz with "delta" or "adversarial", or .pt with a tensor.',
        ) from None
