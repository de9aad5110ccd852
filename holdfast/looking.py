"""`attack`: look at what an attack does to a few images, without measuring."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow
from torch import Tensor

from holdfast import disk
from holdfast.attacks.executor import Found
from holdfast.configs import AttackConfig
from holdfast.data.batches import batches, fingerprint, to_pixels
from holdfast.data.decode import decode, fit
from holdfast.data.sources import images_for, open_source
from holdfast.devices import device_of
from holdfast.errors import ConfigError, ConflictError, DataError
from holdfast.evaluation import few
from holdfast.evaluation.dense_pictures import TRUTHS
from holdfast.evaluation.few_heads import Head, decided, dense_head
from holdfast.evaluation.few_kept import Arrays, Kept, Shown, kept, record
from holdfast.evaluation.rows import radius
from holdfast.evaluation.starts import Delta
from holdfast.evaluation.verified_files import FILE, FILES
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder, Geometry
from holdfast.progress import Say
from holdfast.records import Data, Model
from holdfast.reporting.dense_pictures import legend, pictures
from holdfast.reporting.gallery import class_name
from holdfast.reporting.look import KEYS, Key, Look, write

SHOWN = 8
READ = ("arch", "options", "mean", "std", "size", "resize", "interpolation")
"""Fields that say how an encoder and its images are read."""
DRAWN = ("split", "classes")
"""Fields that choose among the images of `data`."""
HEADS = ("segmentation_heads", "depth_heads", "window", "stride", "depth_crop")
"""Fields that say which dense head answers, and how."""
RECORD = "attack.json"
ANSWERED = {
    "segmentation": (("pixel accuracy", "pixel_accuracy", "{:.0%}"), ("mIoU of the image", "miou", "{:.0%}")),
    "depth": (("RMSE", "rmse", "{:.3g} m"), ("AbsRel", "abs_rel", "{:.3g}")),
}
"""What the page says of an image: in words, as a metric, and how it is written."""


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
    """Attack images through the embedding, the encoder's own head, or a dense head from a file.

    Args:
        encoder: left as it was. Through classification, the output of a module without a head of its own is its logits.
        images: float32 [b, 3, h, w] in [0, 1], or b images [3, h, w] of one size.
        labels: int64 [b]; for classification without them, the clean predictions. Through a dense head masks, int64
            [b, h, w], or depth in metres, float32 [b, h, w].
        config: method, eps, norm, steps, push...
        ids: names that key the random start; empty = their positions.
        delta: where to begin: perturbations [b, 3, h, w], or one [3, h, w] for all; or a file (`starts.read_delta`).
        surrogate: the encoder that the attack is made on, where it is not `encoder`; None = as the config says.

    Returns:
        The worst iterates in the order of the images, scored on `encoder`.

    Raises:
        PixelError: images outside [0, 1].
        DataError: images of different sizes, labels or a delta that do not fit.
        ConfigError: an unknown harm, an eps that is no radius, no head to attack through or one that does not fit,
            probabilities for logits, or an encoder without gradients for a method that follows them.
        CheckpointError: a dense head that cannot be read.
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
        needs to judge them anew, through a dense head also what that answered; `attack.json` the numbers of each image.

    Raises:
        ConfigError: no encoder was named, or an attack that cannot be.
        CheckpointError: an encoder or a head that cannot be read.
        DataError: images that cannot be read, of different sizes, or without what a dense head is compared with.
        ConflictError: the folder holds a run of another verb.
    """
    out = Path(config.out)
    if (out / "run.yaml").exists():
        raise ConflictError(f"{out} holds a run of another verb.", next="Choose another --out.")
    if not config.encoder:
        raise ConfigError("No encoder was named.", next="holdfast attack ENCODER --images cat.png dog.png")
    config = decided(config)
    model = Model(spec=config.encoder, arch=config.arch, options=config.options, mean=config.mean, std=config.std)
    encoder = load(model, device=device_of(config.device))
    shown = _shown(config, encoder)
    head = dense_head(config, encoder, shown.source)
    pixels = to_pixels(torch.from_numpy(np.stack(shown.pixels)).permute(0, 3, 1, 2))
    task = None if head is None else head.task
    aim = few.aimed(encoder, pixels, shown.truth, config, ids=shown.ids, classes=shown.classes, task=task)
    found = few.pursued(aim)
    held = kept(aim, shown, found.pixels, head)
    about = _about(config, aim, held.arrays, shown, head)
    say(f"attack  {about}")
    _write(out, held)
    looks = _looks(aim, held, found, shown, head)
    key = None if head is None else Key(KEYS[head.judge.task], legend(held.arrays))
    page, next_line = out / "gallery.html", next_step(config)
    return write(page, looks, title=f"{encoder.name} under attack", about=about, next=next_line, key=key)


def next_step(config: AttackConfig) -> str:
    """The command that measures the same encoder, read as it was here, on images that are read as these were.

    Args:
        config: of the verb.
    """
    data = "imgs/" if config.images else config.data
    words = ["holdfast", "bench", config.encoder, "--data", data]
    for name in (*READ, *HEADS, *(() if config.images else DRAWN)):
        value = getattr(config, name)
        if value and value != "none":
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join([*words, "--out", "runs/bench"])


# -- what is kept ------------------------------------------------------------------------------------------------------


def _write(out: Path, held: Kept) -> None:
    def fill(file: object) -> None:
        np.savez_compressed(file, **held.arrays)  # type: ignore[arg-type]  # an open file, as NumPy takes it

    disk.write(out / FILE, fill)
    for old in out.glob("[0-9][0-9][0-9]-*.png"):
        old.unlink()
    names = [f"{at:03d}-{Path(name).stem}.png" for at, name in enumerate(held.arrays["id"].tolist())]
    for name, image in zip(names, _rounded(held.arrays)):
        picture = io.BytesIO()
        Pillow.fromarray(image).save(picture, format="PNG")
        disk.write(out / name, picture.getvalue())
    disk.write(out / RECORD, json.dumps(record(held, names), indent=1) + "\n")


# -- what is said ------------------------------------------------------------------------------------------------------


def _about(config: AttackConfig, aim: few.Aim, arrays: Arrays, shown: Shown, head: Head | None) -> str:
    attack, count = aim.record, len(arrays["id"])
    reach = f"{attack.norm} radius {radius(attack.eps, attack.norm)}" if attack.eps else f"nearest in {attack.norm}"
    push = f" on {attack.push}" if attack.push else ""
    drawn = "another class" if attack.through == "classification" else "another image"
    goal = f" towards {config.target or drawn}" if attack.aim == "towards" else ""
    made = f", made on {aim.made_on[0].name}" if aim.made_on[0] is not aim.encoder else ""
    said = f"{attack.method}-{attack.steps}{push} through the {attack.through}{'' if head is None else ' head'} of "
    said += f"{aim.encoder.name}{goal}{made}"
    said = f"{count} image{'' if count == 1 else 's'}, {said}, {reach}."
    if attack.through == "embedding" and attack.aim == "away":
        return said
    if head is not None:
        return f"{said} {_on_average(arrays, attack.through)}{_foreign(head)}"
    changed = "changed" if shown.truth is None else "misclassified"
    aimed = "taken for what it was aimed at" if count == 1 else "taken for what they were aimed at"
    lost, kept = (int((arrays[key].astype(np.float64) > 0).sum()) for key in ("score", "rounded_score"))
    are = f"{'is' if count == 1 else 'are'} {changed if attack.aim == 'away' else aimed}"
    return f"{said} {lost} of {count} {are}, {kept} also when rounded to 8 bits."


def _on_average(arrays: Arrays, task: str) -> str:
    """What became of the pixels of all images, in words."""
    views = (float(arrays[name].mean(dtype=np.float64)) for name in ("clean_score", "score", "rounded_score"))
    if task == "segmentation":
        clean, now, rounded = (f"{score:.0%}" for score in views)
        what = f"Of an image's labelled pixels {clean} are wrong when clean"
    else:
        clean, now, rounded = (f"{score:.3g} m" for score in views)
        what = f"The RMSE of an image is {clean} when clean"
    return f"{what}, {now} under attack and {rounded} when rounded to 8 bits, on average."


def _foreign(head: Head) -> str:
    return " The head was fitted on another encoder than this." if head.own is False else ""


def _looks(aim: few.Aim, held: Kept, found: Found, shown: Shown, head: Head | None) -> list[Look]:
    arrays = held.arrays
    delta = arrays["adversarial"].astype(np.float64) - aim.pixels.permute(0, 2, 3, 1).double().cpu().numpy()
    if head is None:
        texts = [_said(arrays, found, at, shown.truth is not None) for at in range(len(delta))]
    else:
        texts = [_answered(held, at, head.judge.task) for at in range(len(delta))]
    rounded = _rounded(arrays)
    return [
        Look(str(name), arrays["clean"][at], rounded[at], delta[at].astype(np.float32), texts[at], pictures(arrays, at))
        for at, name in enumerate(arrays["id"].tolist())
    ]


def _answered(held: Kept, at: int, task: str) -> str:
    """What became of the pixels of one image, in words."""
    numbers, told = held.numbers[at], []
    for title, metric, form in ANSWERED[task]:
        if metric in numbers["clean"]:
            clean, now, rounded = (form.format(numbers[view][metric]) for view in ("clean", "attacked", "rounded"))
            told.append(f"{title} {clean}, attacked {now} ({rounded} in 8 bits)")
    moved = f"moved by {float(held.arrays['attack_norm'][at]):.3g}"
    return "; ".join([*(told or ["no pixel has a truth"]), moved])


def _said(arrays: Arrays, found: Found, at: int, labelled: bool) -> str:
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
    clean = f"label {label}: predicted {before}" if labelled else f"clean prediction {before}"
    verdict = f"{clean}, attacked {now} ({float(arrays['confidence'][at]):.0%}); {length}"
    if score <= 0:
        return f"{verdict}; survives"
    return f"{verdict}; {'still so' if rounded > 0 else 'no longer so'} when rounded to 8 bits"


def _rounded(arrays: Arrays) -> npt.NDArray[np.uint8]:
    levels: npt.NDArray[np.uint8] = (torch.from_numpy(arrays["adversarial"]) * 255).round().to(torch.uint8).numpy()
    return levels


# -- what is shown -----------------------------------------------------------------------------------------------------


def _shown(config: AttackConfig, encoder: Encoder) -> Shown:
    """The files that were named, or the first of the data."""
    geometry = encoder.geometry
    if config.images:
        return _of_files(config, geometry)
    asked = images_for(config, geometry, split=config.split, default="test", limit=config.limit or SHOWN)
    source = open_source(asked)
    (batch,) = batches(source, size=max(len(source), 1))
    truth = batch.rows.get({"classification": "label", **TRUTHS}.get(config.through, ""))
    pixels = list((batch.pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return Shown(source.data, source.ids, pixels, truth, source.classes, source)


def _of_files(config: AttackConfig, geometry: Geometry) -> Shown:
    if config.through in TRUTHS:
        wanted = {"segmentation": "masks", "depth": "measured depth"}[config.through]
        raise DataError(
            "files that are named one by one have none.",
            asked=f"An attack through {config.through} is judged by {wanted}:",
            next="Name images that have them: --data street/ --limit 4. holdfast ls layouts shows how they lie.",
        )
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
