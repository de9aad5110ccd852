"""`attack`: look at what an attack does to a few images, without measuring."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from holdfast import disk, draws
from holdfast.attacks.board import laid
from holdfast.attacks.cascade import cascade
from holdfast.attacks.executor import SMALLEST, Found
from holdfast.attacks.harm import check_pixels
from holdfast.attacks.methods import build, settled, stop_of
from holdfast.configs import AttackConfig
from holdfast.data.batches import Pixels8, to_pixels
from holdfast.data.decode import decode, fit
from holdfast.data.sources import images_for, open_source
from holdfast.devices import device_of
from holdfast.errors import ConfigError, ConflictError, DataError
from holdfast.evaluation.rows import radius
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder
from holdfast.progress import Say
from holdfast.records import Attack, Model
from holdfast.reporting.look import Look, write
from holdfast.tasks.classification import Classification
from holdfast.tasks.embedding import Embedding
from holdfast.tasks.task import Task, victim

SHOWN = 8


def attacked(
    encoder: Encoder, pixels: Tensor, labels: Tensor | None, config: AttackConfig, *, ids: Sequence[str] = ()
) -> Found:
    """Attack images through the embedding, or through the encoder's own head.

    Args:
        encoder: left as it was.
        pixels: float32 [b, 3, h, w] in [0, 1].
        labels: int64 [b]; for classification without them, the clean predictions.
        config: eps, norm, steps, push...
        ids: names that key the random start; empty = their positions.

    Returns:
        The worst iterates in the order of the images.

    Raises:
        PixelError: images outside [0, 1].
        ConfigError: an unknown harm, an eps that is no radius, or no head to attack through.
    """
    check_pixels(pixels)
    task: Task = Embedding() if config.through == "embedding" else Classification(known=encoder.classes)
    record = settled(
        Attack(
            through=config.through,
            push=config.push or next(iter(task.pushes)),
            norm=config.norm,
            eps=config.eps,
            alpha=config.alpha,
            steps=config.steps,
            restarts=config.restarts,
            seed=config.seed,
        )
    )
    if config.through == "classification" and encoder.head is None:
        raise ConfigError(f"{encoder.name} has no head to attack through.", next="Attack --through embedding.")
    if config.through == "classification" and labels is not None:
        _check_labels(labels, len(pixels), encoder.classes)
    members = build(record, classes=task.classes)
    device = encoder.mean.device
    pixels = laid(pixels.to(device))
    rows = {
        "key": draws.keys(ids or [str(i) for i in range(len(pixels))]).to(device),
        "eps": torch.full((len(pixels),), config.eps or torch.inf, device=device),
    }
    with victim(encoder, task, members[0].push) as harm:
        if config.through == "classification":
            with torch.no_grad():
                rows["label"] = harm.see(pixels)["logits"].argmax(1) if labels is None else labels.to(device)
        truth = task.truth(pixels, rows, harm.see)
        slots = max(SMALLEST, min(len(pixels), 64))
        stop = stop_of(record, lost=task.stop)
        return cascade(members, harm, task.pushes, pixels, truth, slots=slots, stop=stop)


def _check_labels(labels: Tensor, images: int, classes: int) -> None:
    fits = isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.shape == (images,)
    if not fits or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        shown = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        span = f" in {int(labels.min())}..{int(labels.max())}" if fits else ""
        raise DataError(f"labels are {shown}{span}.", next=f"Give int64 of shape [{images}], from 0 to {classes - 1}.")


def look(config: AttackConfig, say: Say) -> Path:
    """Attack a few images and write `gallery.html` with them, and the adversarial images as PNG files.

    Args:
        config: encoder, images or data, eps...
        say: prints a line.

    Returns:
        The page.

    Raises:
        ConfigError: no encoder was named, or an attack that cannot be.
        DataError: images that cannot be read, or of different sizes.
    """
    out = Path(config.out)
    if (out / "run.yaml").exists():
        raise ConflictError(f"{out} holds a run of another verb.", next="Choose another --out.")
    if not config.encoder:
        raise ConfigError("No encoder was named.", next="holdfast attack ENCODER --images cat.png dog.png")
    record = Model(spec=config.encoder, arch=config.arch, options=config.options, mean=config.mean, std=config.std)
    encoder = load(record, device=device_of(config.device))
    ids, images, labels = _images(config, encoder)
    pixels = to_pixels(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    found = attacked(encoder, pixels, labels, config, ids=ids)
    adversarial = (found.pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    delta = (found.pixels.cpu() - pixels).permute(0, 2, 3, 1).numpy()
    unit = "L2 distance to the clean embedding" if config.through == "embedding" else "margin, lost above 0"
    looks = []
    for old in out.glob("[0-9][0-9][0-9]-*.png"):
        old.unlink()
    for i, name in enumerate(ids):
        score, start = float(found.score[i]), float(found.trace["start_score"][i])
        looks.append(Look(name, images[i], adversarial[i], delta[i], f"{unit}: {score:.3g} ({start:.3g} for noise)"))
        file = io.BytesIO()
        Pillow.fromarray(adversarial[i]).save(file, format="PNG")
        disk.write(out / f"{i:03d}-{Path(name).stem}.png", file.getvalue())
    reach = f"{config.norm} radius {radius(config.eps, config.norm)}"
    about = f"PGD-{config.steps} through the {config.through} of {encoder.name}, {reach}."
    say(f"attack  {len(ids)} images, {about}")
    data = "imgs/" if config.images else config.data
    asked = f"holdfast bench {config.encoder} --data {data} --out runs/bench"
    return write(out / "gallery.html", looks, title=f"{encoder.name} under attack", about=about, next=asked)


def _images(config: AttackConfig, encoder: Encoder) -> tuple[list[str], list[Pixels8], Tensor | None]:
    """Names, pixels and labels: the files that were named, or the first of the data."""
    geometry = encoder.geometry
    if config.images:
        # A file may have any shape, so that it is cut to the square that the encoder expects.
        size = config.size or geometry.size
        resize = config.resize or (size if config.size else geometry.resize)
        cut = [
            fit(decode(file), resize=resize, size=size, interpolation=geometry.interpolation, name=file)
            for file in config.images
        ]
        if len({image.shape for image in cut}) > 1:
            raise DataError("The images have different sizes.", next="Cut them to one: --size 224.")
        return list(config.images), cut, None
    data = images_for(config, geometry, split=config.split, default="test", limit=config.limit or SHOWN)
    source = open_source(data)
    labels = None if source.labels is None else torch.tensor(source.labels)
    return source.ids, [source.read(i).pixels for i in range(len(source))], labels
