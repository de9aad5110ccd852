"""Files of heads that answer for every pixel: ours, which say what they are, and DINOv2's linear depth heads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

import holdfast
from holdfast import disk
from holdfast.codec import canonical, read_json
from holdfast.errors import CheckpointError, ConfigError
from holdfast.models import containers, matching
from holdfast.models.dense_heads import DenseHead, build_head
from holdfast.models.encoder import Encoder
from holdfast.records import DenseSpec

FILE = "head.safetensors"
SPEC, PARTS, DIGEST, SIZES = "dense_head", "parts", "digest_of_head", "sizes"
"""What our files call the spec, the names of the classes, the digest, and the pixels of each class in training."""
FOUR = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}
"""The four blocks that DINOv2's multi-layer heads read, by the number of blocks."""
_DINOV2 = ("decode_head.conv_depth.weight", "decode_head.conv_depth.bias")


class ReadHead(NamedTuple):
    """A head and what its file says about it.

    Attributes:
        head: in evaluation mode, without gradient.
        parts: names of the classes 0..K-1; empty for depth.
        digest: SHA-256 of spec, weights, buffers and sizes, 64 digits.
        metadata: all texts of the file.
        sizes: pixels of each class in the images that it was fitted on; empty where the file does not say.
    """

    head: DenseHead
    parts: tuple[str, ...]
    digest: str
    metadata: dict[str, str]
    sizes: tuple[int, ...] = ()


def save_head(
    head: DenseHead,
    path: str | Path,
    *,
    parts: tuple[str, ...] = (),
    sizes: tuple[int, ...] = (),
    extra: Mapping[str, str] | None = None,
) -> Path:
    """Write a head so that `read_dense_head` needs nothing but the file.

    Args:
        head: any.
        path: a `.safetensors` file, or a folder, in which `head.safetensors` is written.
        parts: names of the classes, as many as `head.spec.outputs`; none for depth.
        sizes: pixels of each class in the images that it was fitted on, by which the harm `balanced` weighs them; empty
            = not known, and that harm is refused.
        extra: further metadata of the file, text by text.

    Returns:
        The file.

    Raises:
        ConfigError: so many names or sizes do not belong to this head.
    """
    _check_parts(head.spec, parts)
    if len(sizes) not in (0, len(parts)):
        raise ConfigError(f"{len(sizes)} sizes for {len(parts)} classes.", next="Give one for each class, or none.")
    file = Path(path)
    file = file if file.suffix == ".safetensors" else file / FILE
    ours = {
        "format": "pt",
        "holdfast": holdfast.__version__,
        SPEC: canonical(head.spec).decode(),
        PARTS: json.dumps(parts),
        DIGEST: digest_of(head, sizes),
        **({SIZES: json.dumps(sizes)} if sizes else {}),
    }
    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in head.state_dict().items()}
    return disk.write(file, save_safetensors(tensors, {**(extra or {}), **ours}))


def read_dense_head(path: str | Path, *, encoder: Encoder | None = None) -> ReadHead:
    """Read a head on the CPU: everything fits, or nothing is read.

    Args:
        path: a file of ours, the folder of a probe, or a linear depth head of DINOv2's.
        encoder: that the head is for; needed where the file does not say which levels it reads (DINOv2's).

    Raises:
        CheckpointError: no such file, not a dense head, weights that do not fit what it says, changed after saving.
    """
    file = Path(path)
    if file.is_dir():
        if not (file / FILE).exists():
            raise CheckpointError(
                f"the folder {path} holds no {FILE}.",
                asked=f"A dense head was to be read from {path}:",
                next="Name the --out of a holdfast probe --task segmentation or depth, or a head's file.",
            )
        file = file / FILE
    content = containers.read(file)
    if SPEC not in content.metadata:
        if _named(content.tensors) and encoder is not None:
            head = read_dinov2_depth(file, encoder=encoder)
            return ReadHead(head, (), digest_of(head), content.metadata)
        raise _no_dense_head(file, content.tensors)
    head = _filled(_spec(file, content.metadata), content.tensors, file)
    try:
        sizes = tuple(map(int, json.loads(content.metadata.get(SIZES, "[]"))))
    except (ValueError, TypeError):
        raise CheckpointError(
            f"{file} says that its classes have {content.metadata[SIZES][:40]} pixels.",
            next="Fit it again: holdfast probe.",
        ) from None
    digest = digest_of(head, sizes)
    if digest != content.metadata.get(DIGEST):
        raise CheckpointError(
            f"{file} was changed after it was saved: its digest differs.", next="Save or copy it again."
        )
    try:
        parts = tuple(map(str, json.loads(content.metadata.get(PARTS, "[]"))))
        _check_parts(head.spec, parts)
        if len(sizes) not in (0, len(parts)):
            raise ValueError(sizes)
    except (ValueError, TypeError, ConfigError):
        raise CheckpointError(
            f"{file} does not name its {head.spec.outputs} classes.", next="Fit it again: holdfast probe."
        ) from None
    return ReadHead(head, parts, digest, content.metadata, sizes)


def read_dinov2_depth(path: str | Path, *, encoder: Encoder, near: float = 0.001, far: float = 10.0) -> DenseHead:
    """Read a linear depth head as DINOv2 publishes them (Oquab et al. 2023, arXiv 2304.07193), on one block or on four.

    Args:
        path: with `decode_head.conv_depth.weight` [bins, 2 * C * blocks, 1, 1] and `.bias` [bins], and nothing else.
        encoder: the ViT that it is for: C is its width; of one block the last, of four those of `FOUR`.
        near: smallest depth in metres.
        far: largest: 10 for NYU, 80 for KITTI.

    Returns:
        The head in evaluation mode, without gradient.

    Raises:
        CheckpointError: no such file, other names, widths that are not this encoder's, numbers that are not finite.
        ConfigError: the encoder is no ViT with a class token.
    """
    file = Path(path)
    tensors = containers.read(file).tensors
    named = _named(tensors)
    if not named:
        raise _no_dense_head(file, tensors)
    blocks = [level for level in encoder.levels if level.startswith("block")]
    if not blocks or "cls1" not in encoder.levels:
        raise ConfigError(
            f"{encoder.name} has no blocks with a class token.", next="Name the ViT that the head is for."
        )
    weight, width = named["conv_depth.weight"], encoder.dims(blocks[-1])
    levels = _dinov2_levels(weight, width, blocks)
    if not levels:
        raise CheckpointError(
            f"{file} has a weight {list(weight.shape)}; {encoder.name} is {width} wide, so that it would read "
            f"{2 * width} channels of one block or {8 * width} of four.",
            next="Name the head of this encoder.",
        )
    spec = DenseSpec(
        task="depth",
        kind="bins",
        levels=levels,
        channels=(width,) * len(levels),
        outputs=len(weight),
        cls=True,
        near=near,
        far=far,
    )
    return _filled(spec, named, file)


def digest_of(head: DenseHead, sizes: tuple[int, ...] = ()) -> str:
    """SHA-256 over the spec and names, shapes and bytes of all weights and buffers, and `sizes`; 64 digits."""
    total = hashlib.sha256(canonical(head.spec))
    if sizes:  # they decide what `balanced` finds
        total.update(f"{SIZES} {sizes};".encode())
    for name, tensor in sorted(head.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy().data)
    return total.hexdigest()


def _spec(file: Path, metadata: Mapping[str, str]) -> DenseSpec:
    try:
        return read_json(DenseSpec, metadata[SPEC].encode())
    except (ConfigError, msgspec.DecodeError) as error:
        raise CheckpointError(
            f"{file} does not say what head it is ({error}).", next="Was it written by a newer Holdfast?"
        ) from None


def _filled(spec: DenseSpec, tensors: Mapping[str, Tensor], file: Path) -> DenseHead:
    """The head with these weights, one for one; the global generator is left as it is."""
    try:
        with torch.random.fork_rng(devices=[]):
            head = build_head(spec)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}", next="Name another file.") from None
    matching.fit_exactly(tensors, head, file=file.name, arch=f"a {spec.kind} head for {spec.task}")
    head.load_state_dict({name: matching.cast(t) for name, t in tensors.items()})
    return head.eval().requires_grad_(False)


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The two tensors of a DINOv2 depth head under our names, where a file holds these and no others; else none."""
    found = {name.removeprefix("module."): t for name, t in tensors.items()}
    ours = {name.removeprefix("decode_head."): found[name] for name in _DINOV2 if name in found}
    return ours if len(ours) == len(found) == len(_DINOV2) else {}


def _dinov2_levels(weight: Tensor, width: int, blocks: list[str]) -> tuple[str, ...]:
    """The blocks that a weight [bins, c, 1, 1] reads; empty where it is none of this width."""
    count = weight.shape[1] // (2 * width) if weight.ndim == 4 and not weight.shape[1] % (2 * width) else 0
    if count == 4 and len(blocks) >= 4:
        spread = tuple(len(blocks) * (i + 1) // 4 - 1 for i in range(4))
        return tuple(blocks[i] for i in FOUR.get(len(blocks), spread))
    return (blocks[-1],) if count == 1 else ()


def _no_dense_head(file: Path, tensors: Mapping[str, Any]) -> CheckpointError:
    matched = sum(name.removeprefix("module.") in _DINOV2 for name in tensors)
    if matched == len(_DINOV2) == len(tensors):
        return CheckpointError(
            f"{file} is a DINOv2 depth head, which does not say which encoder it is for.",
            next="Read it with the encoder: read_dense_head(path, encoder=encoder).",
        )
    listed = ", ".join(list(tensors)[:3])
    return CheckpointError(
        f"{file} holds {len(tensors)} tensors ({listed}...) and does not say what head they are; of DINOv2's "
        f"{len(_DINOV2)} ({', '.join(_DINOV2)}) it holds {matched}.",
        asked="A dense head is a file of holdfast probe --task segmentation or depth, or one of DINOv2's depth heads.",
        next="Name another file.",
    )


def _check_parts(spec: DenseSpec, parts: tuple[str, ...]) -> None:
    wanted = spec.outputs if spec.task == "segmentation" else 0
    if len(parts) != wanted:
        raise ConfigError(
            f"{len(parts)} names of classes for a head of {spec.task} with {spec.outputs} outputs.",
            next=f"Give {wanted}.",
        )
