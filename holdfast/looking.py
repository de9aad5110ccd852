"""`attack`: look at what an attack does to a few images, without measuring."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow
from torch import Tensor

from holdfast import disk
from holdfast.attacks.executor import Found
from holdfast.codec import canonical
from holdfast.configs import AttackConfig
from holdfast.data.batches import Pixels8, fingerprint, to_pixels
from holdfast.data.decode import decode, fit
from holdfast.data.sources import images_for, open_source
from holdfast.devices import device_of
from holdfast.errors import ConfigError, ConflictError, DataError
from holdfast.evaluation import few
from holdfast.evaluation.rows import radius
from holdfast.evaluation.starts import Delta
from holdfast.evaluation.verified_files import FILE, FILES
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder
from holdfast.progress import Say
from holdfast.records import Attack, Cell, Data, Judge, Model, Surrogate
from holdfast.reporting.gallery import class_name
from holdfast.reporting.look import Look, write

SHOWN = 8
READ = ("arch", "options", "mean", "std", "size", "resize", "interpolation")
"""Fields that say how an encoder and its images are read."""
DRAWN = ("split", "classes")
"""Fields that choose among the images of `data`."""
Arrays = dict[str, npt.NDArray[np.generic]]


class Shown(NamedTuple):
    """The images that are looked at.

    Attributes:
        data: their record; the source of images that were named one by one is `files`, their ids are their paths.
        ids: one name each.
        pixels: uint8 [h, w, 3] each, of one size.
        labels: int64 [b], or None.
        classes: names of the labels; empty where there are none.
    """

    data: Data
    ids: list[str]
    pixels: list[Pixels8]
    labels: Tensor | None
    classes: tuple[str, ...]


def attacked(
    encoder: Encoder,
    images: Tensor | Sequence[Tensor],
    labels: Tensor | None,
    config: AttackConfig,
    *,
    ids: Sequence[str] = (),
    delta: Delta | None = None,
    surrogate: Encoder | None = None,
) -> Found:  # parameters: images with what belongs to them; a record would only rename it
    """Attack images through the embedding, or through the encoder's own head.

    Args:
        encoder: left as it was. Through classification, the output of a module without a head of its own is its logits.
        images: float32 [b, 3, h, w] in [0, 1], or b images [3, h, w] of one size.
        labels: int64 [b]; for classification without them, the clean predictions.
        config: method, eps, norm, steps, push...
        ids: names that key the random start; empty = their positions.
        delta: where to begin: perturbations [b, 3, h, w], or one [3, h, w] for all; or a file (`starts.read_delta`).
        surrogate: the encoder that the attack is made on, where it is not `encoder`; None = as the config says.

    Returns:
        The worst iterates in the order of the images, scored on `encoder`.

    Raises:
        PixelError: images outside [0, 1].
        DataError: images of different sizes, labels or a delta that do not fit.
        ConfigError: an unknown harm, an eps that is no radius, no head to attack through, probabilities for logits, or
            an encoder without gradients for a method that follows them.
        TrustError: outputs that are not finite.
    """
    return few.pursued(few.aimed(encoder, images, labels, config, ids=ids, delta=delta, surrogate=surrogate))


def look(config: AttackConfig, say: Say) -> Path:
    """Attack a few images; write `gallery.html`, the adversarial images without loss, and as PNG files of 8 bits.

    Args:
        config: encoder, images or data, method, eps...
        say: prints a line.

    Returns:
        The page. Beside it `adversarial.npz` holds float32 images [b, h, w, 3] with everything that `holdfast verify`
        needs to judge them anew.

    Raises:
        ConfigError: no encoder was named, or an attack that cannot be.
        DataError: images that cannot be read, or of different sizes.
        ConflictError: the folder holds a run of another verb.
    """
    out = Path(config.out)
    if (out / "run.yaml").exists():
        raise ConflictError(f"{out} holds a run of another verb.", next="Choose another --out.")
    if not config.encoder:
        raise ConfigError("No encoder was named.", next="holdfast attack ENCODER --images cat.png dog.png")
    record = Model(spec=config.encoder, arch=config.arch, options=config.options, mean=config.mean, std=config.std)
    encoder = load(record, device=device_of(config.device))
    shown = _shown(config, encoder)
    pixels = to_pixels(torch.from_numpy(np.stack(shown.pixels)).permute(0, 3, 1, 2))
    labels = shown.labels if config.through == "classification" else None
    aim = few.aimed(encoder, pixels, labels, config, ids=shown.ids, classes=shown.classes)
    found = few.pursued(aim)
    arrays = _arrays(aim, shown, found)
    about = _about(config, aim, arrays, shown)
    say(f"attack  {about}")
    _write(out, arrays, shown)
    looks = _looks(aim, arrays, found, shown)
    return write(out / "gallery.html", looks, title=f"{encoder.name} under attack", about=about, next=next_step(config))


def next_step(config: AttackConfig) -> str:
    """The command that measures the same encoder, read as it was here, on images that are read as these were.

    Args:
        config: of the verb.
    """
    data = "imgs/" if config.images else config.data
    words = ["holdfast", "bench", config.encoder, "--data", data]
    for name in (*READ, *(() if config.images else DRAWN)):
        value = getattr(config, name)
        if value:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join([*words, "--out", "runs/bench"])


# -- what is kept ------------------------------------------------------------------------------------------------------


def _arrays(aim: few.Aim, shown: Shown, found: Found) -> Arrays:
    """Everything about the adversarial images: what they are, what was said of them, and the cell that they are of."""
    rounded = (found.pixels * 255).round() / 255
    views = {"clean": aim.pixels, "now": found.pixels, "rounded": rounded}
    seen = {name: _numpy(few.outcomes(aim, view)) for name, view in views.items()}
    none, labelled = np.full(len(shown.ids), -1), aim.record.through == "classification"
    norm = (found.pixels.double() - aim.pixels.double()).flatten(1)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[aim.record.norm]
    arrays: Arrays = {
        "id": np.array(shown.ids),
        "clean": np.stack(shown.pixels),
        "before": np.stack(shown.pixels),
        "adversarial": found.pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy(),
        "label": aim.rows["label"].cpu().numpy() if labelled else none,
        "clean_prediction": seen["clean"].get("prediction", none),
        **seen["now"],
        "rounded_score": seen["rounded"]["score"],
        "attack_norm": torch.linalg.vector_norm(norm, order, dim=1).cpu().numpy(),
        "eps": np.array(aim.record.eps),
        "norm": np.array(aim.record.norm),
        "attack": np.array(canonical(aim.record).decode()),
        "encoder": np.array(aim.encoder.digest()),
        "cell": np.array(canonical(_cell(aim, shown)).decode()),
        "classes": np.array(shown.classes, dtype=np.str_),
    }
    if labelled:
        arrays["rounded_correct"] = seen["rounded"]["correct"]
    return arrays


def _cell(aim: few.Aim, shown: Shown) -> Cell:
    """The cell that these images would be of, were they measured."""
    through, (other, _) = aim.record.through, aim.made_on
    judge = Judge(task=through, head="own" if through == "classification" else "none", level=aim.task.level)
    attack: Attack = aim.record
    if other is not aim.encoder:
        attack = msgspec.structs.replace(attack, surrogate=Surrogate(encoder=other.model, judge=judge))
    model = msgspec.structs.replace(aim.encoder.model, name=aim.encoder.name)
    return Cell(data=shown.data, stages=(attack,), encoder=model, judge=judge)


def _write(out: Path, arrays: Arrays, shown: Shown) -> None:
    def fill(file: object) -> None:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # an open file, as NumPy takes it

    disk.write(out / FILE, fill)
    for old in out.glob("[0-9][0-9][0-9]-*.png"):
        old.unlink()
    for at, name in enumerate(shown.ids):
        picture = io.BytesIO()
        Pillow.fromarray(_rounded(arrays)[at]).save(picture, format="PNG")
        disk.write(out / f"{at:03d}-{Path(name).stem}.png", picture.getvalue())


# -- what is said ------------------------------------------------------------------------------------------------------


def _about(config: AttackConfig, aim: few.Aim, arrays: Arrays, shown: Shown) -> str:
    record, count = aim.record, len(arrays["id"])
    reach = f"{record.norm} radius {radius(record.eps, record.norm)}" if record.eps else f"nearest in {record.norm}"
    push = f" on {record.push}" if record.push else ""
    drawn = "another class" if record.through == "classification" else "another image"
    goal = f" towards {config.target or drawn}" if record.aim == "towards" else ""
    made = f", made on {aim.made_on[0].name}" if aim.made_on[0] is not aim.encoder else ""
    said = f"{record.method}-{record.steps}{push} through the {record.through} of {aim.encoder.name}{goal}{made}"
    said = f"{count} image{'' if count == 1 else 's'}, {said}, {reach}."
    if record.through == "embedding" and record.aim == "away":
        return said
    changed = "changed" if shown.labels is None else "misclassified"
    aimed = "taken for what it was aimed at" if count == 1 else "taken for what they were aimed at"
    lost, kept = (int((arrays[key].astype(np.float64) > 0).sum()) for key in ("score", "rounded_score"))
    are = f"{'is' if count == 1 else 'are'} {changed if record.aim == 'away' else aimed}"
    return f"{said} {lost} of {count} {are}, {kept} also when rounded to 8 bits."


def _looks(aim: few.Aim, arrays: Arrays, found: Found, shown: Shown) -> list[Look]:
    delta = arrays["adversarial"].astype(np.float64) - aim.pixels.permute(0, 2, 3, 1).double().cpu().numpy()
    texts = [_said(arrays, found, at, shown) for at in range(len(delta))]
    return [
        Look(str(name), arrays["clean"][at], _rounded(arrays)[at], delta[at].astype(np.float32), texts[at])
        for at, name in enumerate(arrays["id"].tolist())
    ]


def _said(arrays: Arrays, found: Found, at: int, shown: Shown) -> str:
    """What became of one image, in words."""
    score, rounded = float(arrays["score"][at]), float(arrays["rounded_score"][at])
    length = f"moved by {float(arrays['attack_norm'][at]):.3g}"
    if "prediction" not in arrays:
        start = float(found.trace["start_score"][at])
        return (
            f"L2 distance to the clean embedding {score:.3g} ({start:.3g} for noise), {rounded:.3g} in 8 bits; {length}"
        )
    names = [str(name) for name in arrays["classes"].tolist()]
    label, before, now = (
        class_name(int(arrays[key][at]), names) for key in ("label", "clean_prediction", "prediction")
    )
    # Without a label there is nothing to be right or wrong about: the clean prediction is what may change.
    clean = f"clean prediction {before}" if shown.labels is None else f"label {label}: predicted {before}"
    verdict = f"{clean}, attacked {now} ({float(arrays['confidence'][at]):.0%}); {length}"
    if score <= 0:
        return f"{verdict}; survives"
    return f"{verdict}; {'still so' if rounded > 0 else 'no longer so'} when rounded to 8 bits"


def _rounded(arrays: Arrays) -> npt.NDArray[np.uint8]:
    levels: npt.NDArray[np.uint8] = (torch.from_numpy(arrays["adversarial"]) * 255).round().to(torch.uint8).numpy()
    return levels


def _numpy(found: dict[str, Tensor]) -> Arrays:
    return {name: part.cpu().numpy() for name, part in found.items()}


# -- what is shown -----------------------------------------------------------------------------------------------------


def _shown(config: AttackConfig, encoder: Encoder) -> Shown:
    """The files that were named, or the first of the data."""
    geometry = encoder.geometry
    if config.images:
        # A file may have any shape, so that it is cut to the square that the encoder expects.
        size = config.size or geometry.size
        resize = config.resize or (size if config.size else geometry.resize)
        way = config.interpolation or geometry.interpolation
        cut = [fit(decode(file), resize=resize, size=size, interpolation=way, name=file) for file in config.images]
        if len({image.shape for image in cut}) > 1:
            first = cut[0].shape
            at = next(at for at, image in enumerate(cut) if image.shape != first)
            raise DataError(
                f"The images have different sizes: {config.images[0]} is {first[0]}x{first[1]}, "
                f"{config.images[at]} {cut[at].shape[0]}x{cut[at].shape[1]} pixels.",
                next="Cut them to one: --size 224.",
            )
        ids = list(config.images)
        digest = fingerprint(ids, None)
        data = Data(source=FILES, split="all", size=size, resize=resize, interpolation=way, digest_of_images=digest)
        return Shown(data, ids, cut, None, ())
    asked = images_for(config, geometry, split=config.split, default="test", limit=config.limit or SHOWN)
    source = open_source(asked)
    labels = None if source.labels is None else torch.tensor(source.labels)
    pixels = [source.read(i).pixels for i in range(len(source))]
    return Shown(source.data, source.ids, pixels, labels, source.classes)
