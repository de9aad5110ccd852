"""Clean features of many images at once: what heads and banks are fitted on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from holdfast import disk, draws
from holdfast.attacks.executor import SMALLEST
from holdfast.data.batches import Source, batches
from holdfast.errors import TrustError
from holdfast.models.encoder import Encoder, frozen
from holdfast.progress import Bar, say
from holdfast.tasks.task import at_level


class Extracted(NamedTuple):
    """Vectors float32 [n, d] on the CPU, image keys int64 [n], labels int64 [n] or None."""

    vectors: Tensor
    keys: Tensor
    labels: Tensor | None


def extract(encoder: Encoder, source: Source, *, level: str, chunk: int) -> Extracted:
    """The vector of a level for every image of a source, in order, by the frozen encoder in evaluation mode.

    Args:
        encoder: gives the vectors; left as it was.
        source: the images.
        level: as `Encoder.vector` takes it.
        chunk: images per pass, at least 8; the last one is padded, so that all run the same kernels.

    Raises:
        TrustError: a parameter or buffer changed on the way.
    """
    device, digest, chunk = encoder.mean.device, encoder.digest(), max(chunk, SMALLEST)
    vectors: list[Tensor] = []
    with frozen(encoder, norm="eval"), torch.no_grad(), Bar(f"features of {encoder.name}", len(source)) as bar:
        for batch in batches(source, size=chunk):
            at = torch.arange(chunk) % len(batch.ids)
            vectors.append(at_level(encoder, batch.pixels[at].to(device), level)[: len(batch.ids)].cpu())
            bar.advance(len(batch.ids))
        check_unchanged(encoder, digest)
    labels = None if source.labels is None else torch.tensor(source.labels, dtype=torch.int64)
    return Extracted(torch.cat(vectors), draws.keys(source.ids), labels)


def check_unchanged(encoder: Encoder, digest: str) -> None:
    """Refuse to go on with an encoder that is not what it was.

    Raises:
        TrustError: its digest is another one.
    """
    if encoder.digest() != digest:
        raise TrustError(
            f"Weights or buffers of {encoder.name} changed while it was frozen; nothing was written.",
            next="Look for a hook or a layer that writes into itself in evaluation mode.",
        )


def cached(path: Path, encoder: Encoder, source: Source, *, level: str, chunk: int) -> Extracted:
    """As `extract`, kept in a file: the caller names it after encoder, images and level."""
    if path.exists():
        try:
            held = load_file(path)
            return Extracted(held["vectors"], held["keys"], held.get("labels"))
        except (SafetensorError, KeyError):
            say(f"{path} is damaged; its features are computed anew")
    found = extract(encoder, source, level=level, chunk=chunk)
    tensors = {"vectors": found.vectors, "keys": found.keys}
    if found.labels is not None:
        tensors["labels"] = found.labels
    disk.write(path, save(tensors))
    return found
