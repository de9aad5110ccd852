"""Reads what people have as encoders: timm names, hub repositories, weights files, runs, factories; and writes ours."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from safetensors.torch import save as save_safetensors
from torch import nn

import holdfast
from holdfast import disk
from holdfast.codec import build
from holdfast.errors import CheckpointError, ConfigError
from holdfast.models import architectures, cifar, containers, matching
from holdfast.models.architectures import Manners
from holdfast.models.encoder import NECK, Encoder, Geometry
from holdfast.models.multicrop import MultiCrop
from holdfast.records import Model
from holdfast.views import worded

FILE = "encoder.safetensors"


def load(
    spec: str | Path | nn.Module | Model,
    *,
    model: Model | None = None,
    device: str | torch.device = "cpu",
    **fields: Any,
) -> Encoder:
    """An encoder in evaluation mode.

    Args:
        spec: a timm name (its published weights), `hf-hub:owner/name`, a weights file, a run folder,
            `package.module:factory`, `random:ARCH` or `random:ARCH:SEED`, a module, or a `Model`. `crops:16:` or
            `patches:16:` before any of them averages features over so many views (`multicrop`).
        model: `Model` with the other fields, where `spec` is a text or a module.
        device: where to.
        fields: of `Model`: `arch` and `weights` are for bare weights files, `options` for whatever is built here,
            `mean`, `std` and `name` for all.

    Returns:
        The encoder. A bare module is taken to expect pixels in [0, 1] where neither it nor `mean` and `std` say
        otherwise; an `Encoder` comes back as it is.

    Raises:
        CheckpointError: no such weights, or they do not fit; nothing is loaded in part.
        ConfigError: an unknown architecture, option or field.
    """
    if isinstance(spec, Encoder) and model is None and not fields:
        return spec.to(device)
    wish = _wish(spec, model, fields)
    words, inner = worded(wish.spec)
    wish = msgspec.structs.replace(wish, spec=inner)
    # A module that was handed over keeps its modes: it may be in the middle of a training loop.
    encoder = _module(spec, wish) if isinstance(spec, nn.Module) else _opened(wish).eval()
    encoder = encoder.to(device)
    if words:
        encoder = MultiCrop(encoder, words, msgspec.structs.replace(encoder.model, spec=words + wish.spec)).eval()
        encoder = encoder.to(device)
    if wish.digest_of_weights and wish.digest_of_weights != encoder.digest():
        raise CheckpointError(
            f"the weights of {wish.spec} are not those of the record ({wish.digest_of_weights[:12]}).",
            next="Put the old file back, or start anew with --replace.",
        )
    return encoder


def save(encoder: Encoder, path: str | Path, *, extra: Mapping[str, str] | None = None) -> Path:
    """Write an encoder so that `load` opens it without being told an architecture.

    Args:
        encoder: any; one whose module was handed over needs `arch` in its `Model` to be opened by name again.
        path: a `.safetensors` file, or a folder, in which `encoder.safetensors` is written.
        extra: further metadata of the file, text by text.

    Returns:
        The file.
    """
    file = Path(path)
    file = file if file.suffix == ".safetensors" else file / FILE
    if isinstance(encoder, MultiCrop):
        raise ConfigError(f"{encoder.name} reads crops; its weights are the encoder's own.", next="Save that.")
    parts = {"": encoder.trunk, f"{NECK}.": encoder.neck}
    tensors = {
        prefix + n: t.detach().cpu().contiguous().clone()
        for prefix, part in parts.items()
        for n, t in (part.state_dict() if part is not None else {}).items()
    }
    model = encoder.model
    ours = {
        "format": "pt",
        "holdfast": holdfast.__version__,
        "arch": model.arch,
        "options": json.dumps([o for o in model.options if not o.startswith("num_classes=")]),
        "classes": str(encoder.classes),
        "mean": json.dumps(encoder.mean.flatten().tolist()),
        "std": json.dumps(encoder.std.flatten().tolist()),
        "geometry": json.dumps(encoder.geometry),
        "digest": model.digest_of_weights,
    }
    if encoder.neck is not None:
        ours[NECK] = json.dumps([encoder.dim, encoder.dims(NECK)])
    return disk.write(file, save_safetensors(tensors, {**(extra or {}), **ours}))


def series(folder: str | Path) -> list[Path]:
    """The checkpoints of a folder in natural order (`epoch9` before `epoch10`): weights files and run folders.

    A run folder is a series of one.

    Raises:
        CheckpointError: there are none.
    """
    root = Path(folder)
    if (root / FILE).is_file():
        return [root / FILE]
    if not root.is_dir():
        raise CheckpointError(f"no folder {root}.", next="Check the path.")
    _unfinished(root)
    visible = [p for p in root.iterdir() if not p.name.startswith(".")]
    found = [p for p in visible if (p.is_file() and p.suffix in containers.SUFFIXES) or (p / FILE).is_file()]
    if not found:
        raise CheckpointError(
            f"{root} holds no checkpoints.",
            next=f"Weights files end in {', '.join(containers.SUFFIXES)}; a run has {FILE}.",
        )
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]


def _wish(spec: str | Path | nn.Module | Model, model: Model | None, fields: dict[str, Any]) -> Model:
    base = spec if isinstance(spec, Model) else model or Model(spec="")
    if isinstance(spec, nn.Module):
        base = msgspec.structs.replace(base, spec=f"module:{type(spec).__name__}")
    elif not isinstance(spec, Model):
        base = msgspec.structs.replace(base, spec=str(spec))
    return build(Model, {**msgspec.structs.asdict(base), **fields})


def _opened(wish: Model) -> Encoder:
    kind, _, rest = wish.spec.partition(":")
    options = architectures.parse(wish.options)
    path = Path(wish.spec)
    if kind == "random" and rest:
        return _random(rest, options, wish)
    if kind == "module":
        raise CheckpointError(f"{wish.spec} was handed over in Python.", next="Save it, or hand it over again.")
    if kind == "hf-hub":
        return _made(architectures.hub(rest, options), wish, arch="")
    if path.is_dir():
        return _file(_run_file(path), wish)
    if path.exists() or "/" in wish.spec or path.suffix in containers.SUFFIXES:
        return _file(path, wish)
    if rest:
        made = architectures.build(wish.spec, options)
        return _given(made, wish) if isinstance(made, Encoder) else _made(made, wish, arch=wish.spec)
    if wish.spec in cifar.ARCHITECTURES:
        raise CheckpointError(
            f"{wish.spec} is an architecture without published weights.",
            next=f'Give a weights file with arch {wish.spec}, or say "random:{wish.spec}".',
        )
    return _made(architectures.pretrained(wish.spec, options), wish, arch=wish.spec)


def _random(rest: str, options: dict[str, Any], wish: Model) -> Encoder:
    arch, _, seed = rest.rpartition(":") if re.search(r":\d+$", rest) else (rest, "", "0")
    if "num_classes" not in options and ":" not in arch:
        options = {**options, "num_classes": 0}
    return _made(architectures.build(arch, options, seed=int(seed)), wish, arch=arch, fresh=True)


def _module(module: nn.Module, wish: Model) -> Encoder:
    return _given(module, wish) if isinstance(module, Encoder) else _made(module, wish, arch=wish.arch)


def _given(encoder: Encoder, wish: Model) -> Encoder:
    """An encoder that was made elsewhere, under the name that was asked for; its normalisation is its own."""
    if wish.mean is not None or wish.std is not None:
        raise ConfigError("an Encoder has its mean and std already.", next="Leave mean and std out.")
    old = encoder.model
    model = msgspec.structs.replace(wish, arch=wish.arch or old.arch, options=wish.options or old.options)
    return Encoder(
        encoder.trunk,
        mean=encoder.mean.flatten().tolist(),
        std=encoder.std.flatten().tolist(),
        geometry=encoder.geometry,
        model=model,
        neck=encoder.neck,
    )


def _of(name: str, neck: nn.Module | None) -> str:
    """The prefix of the part that a tensor belongs to."""
    return f"{NECK}." if neck is not None and name.startswith(f"{NECK}.") else ""


def _neck(width: int, dim: int) -> nn.Sequential:
    """A neck of EMP-SSL's shape, its weights still to come; the global generator is left as it is."""
    with torch.random.fork_rng(devices=[]):
        return nn.Sequential(nn.Linear(width, dim), nn.BatchNorm1d(dim), nn.ReLU())


def _made(trunk: nn.Module, wish: Model, *, arch: str, fresh: bool = False) -> Encoder:
    """An encoder around a trunk; a module that says no normalisation takes pixels in [0, 1]."""
    said = architectures.manners(trunk, arch, fresh=fresh)
    own = Manners(said.mean or (0.0, 0.0, 0.0), said.std or (1.0, 1.0, 1.0), said.geometry)
    return _dressed(trunk, own, msgspec.structs.replace(wish, arch=arch))


def _dressed(trunk: nn.Module, own: Manners, model: Model) -> Encoder:
    mean, std = model.mean or own.mean, model.std or own.std
    if mean is None or std is None:
        raise CheckpointError(
            f"{model.spec} does not say which mean and std its pixels had.",
            next="Give mean and std: solo-learn's CIFAR-10 nets have 0.4914 0.4822 0.4465 and 0.2470 0.2435 0.2616.",
        )
    return Encoder(trunk, mean=mean, std=std, geometry=own.geometry, model=model)


def _unfinished(folder: Path) -> None:
    """Say what a folder of ours is that holds no encoder yet, or never will."""
    if (folder / "state.pt").is_file():
        raise CheckpointError(
            f"{folder} is a training that has not come to its end.", next="The same train command continues it."
        )
    if (folder / "probe.json").is_file():
        raise CheckpointError(f"{folder} is a probe: a head without its encoder.", next="Name the encoder itself.")


def _run_file(folder: Path) -> Path:
    if (folder / FILE).is_file():
        return folder / FILE
    _unfinished(folder)
    files = sorted(p.name for p in folder.iterdir() if p.suffix in containers.SUFFIXES)
    if files:
        raise CheckpointError(
            f"{folder} is no run: it has no {FILE}, but {len(files)} weights files.",
            next=f"Name one: {folder / files[-1]}.",
        )
    raise CheckpointError(
        f"{folder} is no run: it has no {FILE}.", next="Name a weights file, or train into that folder."
    )


def _file(path: Path, wish: Model) -> Encoder:
    content = containers.read(path, weights=wish.weights)
    if content.metadata.get("holdfast"):
        return _ours(path, content, wish)
    guess = matching.likely(content.tensors)
    if not wish.arch:
        raise CheckpointError(
            f"{path} does not say its architecture.",
            next=f'This looks like {guess}: say arch "{guess}".' if guess else "Say its arch: holdfast ls models.",
        )
    trunk = _fitted(path, content, wish)
    said = architectures.manners(trunk, wish.arch, fresh=False)
    if ":" in wish.arch and said.mean is None:
        said = Manners((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), said.geometry)
    return _dressed(trunk, said, msgspec.structs.replace(wish, weights=wish.weights or _branch(content.branch)))


def _branch(where: str) -> str:
    """The branch as a record should name it: where a training state holds several."""
    return where if {"teacher", "student"} & {*where.split(".")} else ""


def _fitted(path: Path, content: containers.Content, wish: Model) -> nn.Module:
    """The architecture with the file's weights, its head among them."""
    options = architectures.parse(wish.options)
    wanted = options.pop("num_classes", None) if ":" not in wish.arch else None
    trunk = architectures.build(wish.arch, options if ":" in wish.arch else {**options, "num_classes": 0})
    word = "" if wish.weights and wish.weights in content.branch else wish.weights
    found = matching.fit(content.tensors, trunk, file=path.name, arch=wish.arch, weights=word)
    trunk.load_state_dict(_counters(trunk) | found.body)
    classes = len(found.head["weight"]) if found.head else 0
    if wanted is not None and wanted != classes:
        raise CheckpointError(
            f"{path} knows {classes} classes.", asked=f"Asked for num_classes={wanted}:", next="Leave num_classes out."
        )
    if found.head and ":" not in wish.arch and not _BRANCHED & {*content.branch.split(".")}:
        _attach(trunk, found.head, path, wish.arch)
    return trunk


_BRANCHED = {"teacher", "student"}


def _counters(trunk: nn.Module) -> dict[str, torch.Tensor]:
    """Batch counters of BatchNorm, which old files lack and evaluation never reads."""
    return {name: t for name, t in trunk.state_dict().items() if name.endswith("num_batches_tracked")}


def _attach(trunk: nn.Module, head: dict[str, torch.Tensor], path: Path, arch: str) -> None:
    spoken = cast(Any, trunk)
    with torch.random.fork_rng(devices=[]):
        spoken.reset_classifier(len(head["weight"]))
    classifier = spoken.get_classifier()
    shape = tuple(getattr(classifier, "weight", torch.empty(0)).shape)
    if shape != tuple(head["weight"].shape):
        raise CheckpointError(
            f"{path} has a head {list(head['weight'].shape)}, {arch} one of {list(shape)}. Nothing was loaded.",
            next="Name the right arch and options.",
        )
    classifier.load_state_dict(head)


def _ours(path: Path, content: containers.Content, wish: Model) -> Encoder:
    """A file that `save` wrote: what it says about itself wins over `arch` and `options`, which are for bare files."""
    said = content.metadata
    lacking = {"arch", "options", "classes", "mean", "std", "geometry", "digest"} - said.keys()
    if lacking:
        raise CheckpointError(f"{path} is a Holdfast file and no encoder.", next=f"Name the folder that holds {FILE}.")
    arch, options = said["arch"] or wish.arch, tuple(json.loads(said["options"]))
    if not arch or (":" in arch and wish.arch != arch):
        what = f"was made by {arch}" if arch else "was made from a module that was handed over"
        raise CheckpointError(f"{path} {what}.", next=f"If you trust it, say arch {arch or 'package.module:factory'}.")
    keywords = architectures.parse(options)
    if ":" not in arch:
        keywords["num_classes"] = int(said["classes"])
    trunk = architectures.build(arch, keywords)
    neck = _neck(*json.loads(said[NECK])) if NECK in said else None
    for part, prefix in ((trunk, ""), (neck, f"{NECK}.")):
        if part is not None:
            found = {n.removeprefix(prefix): t for n, t in content.tensors.items() if _of(n, neck) == prefix}
            matching.fit_exactly(found, part, file=path.name, arch=prefix.rstrip(".") or arch)
            part.load_state_dict(found)
    own = Manners(json.loads(said["mean"]), json.loads(said["std"]), Geometry(*json.loads(said["geometry"])))
    model = msgspec.structs.replace(wish, arch=arch, options=options)
    encoder = _dressed(trunk, own, model)
    encoder.neck = neck
    if wish.mean is None and wish.std is None and encoder.digest() != said["digest"]:
        raise CheckpointError(
            f"{path} was changed after it was saved: its digest differs.", next="Save or copy it again."
        )
    return encoder
