"""Do these weights fit this architecture? All or nothing: a wrong prefix must not leave a random encoder."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from holdfast.errors import CheckpointError
from holdfast.models.cifar import ARCHITECTURES

# Words that wrappers put before the names of an encoder's weights: DataParallel, torch.compile, Lightning, MoCo, VISSL.
_WRAPPERS = {"module", "_orig_mod", "backbone", "encoder", "model", "trunk", "network", "net", "resnet"}
_WRAPPERS |= {"_feature_blocks", "encoder_q", "base_encoder", "teacher"}
# What lies beside an encoder and belongs to its pre-training alone.
_ASIDE = re.compile(
    r"(\w*head|fc|linear|classifier|projector|projection\w*|predict\w+|prototypes|neck|decoder\w*|mask_token|queue\w*"
    r"|pre_feature|online_\w+|momentum_\w+|loss\w*|criterion\w*)(\.|$)"
)
_HEADS = ("fc", "linear", "head", "classifier", "head.fc")
_CONTRASTIVE = {"encoder_q", "encoder_k", "base_encoder", "momentum_encoder", "teacher", "student"}
_COUNTER = "num_batches_tracked"


class Fit(NamedTuple):
    """Weights under the names of the trunk, and those of a head (`weight`, `bias`) where there is one."""

    body: dict[str, Tensor]
    head: dict[str, Tensor]


def fit(tensors: Mapping[str, Tensor], trunk: nn.Module, *, file: str, arch: str, weights: str = "") -> Fit:
    """Find a trunk's weights, and its head's, among the tensors of a file.

    Args:
        tensors: as they lie in the file, under any wrappers' prefixes.
        trunk: built without a classifier.
        file: its name, for the message.
        arch: the architecture's, for the message.
        weights: which of several encoders in the file: a word of their prefix.

    Raises:
        CheckpointError: not every weight is there in its shape, one is left over, one is not finite, or there are two
            encoders.
    """
    wanted = trunk.state_dict()
    needed = {name for name in wanted if not name.endswith(_COUNTER)}
    prefix = _prefix(tensors, needed, file, weights)
    inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    wrong = _wrong(inside, wanted, needed)
    if wrong:
        converted = _converted(inside, trunk)
        if not converted or _wrong(converted, wanted, needed):
            raise _misfit(wrong, len(needed), file, arch, likely(tensors))
        inside = converted
    body = {name: cast(t) for name, t in inside.items() if name in wanted}
    found = Fit(body, {} if _CONTRASTIVE & {*prefix.split(".")} else _head(tensors, prefix))
    _finite(found, file)
    return found


def fit_exactly(tensors: Mapping[str, Tensor], trunk: nn.Module, *, file: str, arch: str) -> None:
    """Raise `CheckpointError` unless names and shapes are the trunk's own, one for one, and all numbers finite."""
    wanted = trunk.state_dict()
    wrong = _wrong(tensors, wanted, set(wanted)) | dict.fromkeys(tensors.keys() - wanted.keys(), "in the file alone")
    if wrong:
        raise _misfit(wrong, len(wanted), file, arch, "")
    _finite(Fit(dict(tensors), {}), file)


def cast(tensor: Tensor) -> Tensor:
    """Half and double precision as float32; integers as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor


def likely(names: Mapping[str, Tensor]) -> str:
    """The architecture that names and shapes look like; empty where they say nothing."""
    shapes = {name: tuple(t.shape) for name, t in names.items()}
    patch = next((s for n, s in shapes.items() if n.endswith("patch_embed.proj.weight") and len(s) == 4), None)
    if patch:
        size = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}.get(patch[0])
        scaled = any(n.endswith("ls1.gamma") for n in shapes)
        registers = "reg4_" if any(n.endswith(("reg_token", "register_tokens")) for n in shapes) else ""
        name = f"vit_{size}_patch{patch[2]}_" + (f"{registers}dinov2" if scaled else "224")
        return name if timm.is_model(name) else ""
    counted: dict[int, int] = {}
    for match in filter(None, (re.search(r"(?:^|\.)layer(\d)\.(\d+)\.conv1\.weight$", n) for n in shapes)):
        counted[int(match[1])] = max(counted.get(int(match[1]), 0), int(match[2]) + 1)
    depths = tuple(counted[i] for i in sorted(counted))
    stems = (s for n, s in shapes.items() if re.search(r"(^|\.)conv1\.weight$", n) and s[1:2] == (3,))
    stem = next(stems, ())
    if len(depths) == 3 and len(set(depths)) == 1:
        return f"cifar_resnet{6 * depths[0] + 2}"
    bottleneck = any(re.search(r"layer1\.0\.conv3\.weight$", n) for n in shapes)
    if stem[2:] == (3, 3):
        return _small(shapes, depths, bottleneck=bottleneck)
    plain, deep = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34}, {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
    layers = next((n for blocks, n in (deep if bottleneck else plain).items() if blocks == depths), 0)
    return f"resnet{layers}" if layers else ""


def _small(shapes: Mapping[str, tuple[int, ...]], depths: tuple[int, ...], *, bottleneck: bool) -> str:
    """A net with a 3x3 stem; empty where it is none of ours."""
    wide = [m for m in (re.search(r"(?:^|\.)block1\.layer\.(\d+)\.conv1\.weight$", n) for n in shapes) if m]
    if wide:
        channels = next(shape[0] for name, shape in shapes.items() if name.endswith("block1.layer.0.conv1.weight"))
        name = f"cifar_wrn{6 * (max(int(m[1]) for m in wide) + 1) + 4}_{channels // 16}"
    elif any(re.search(r"layer2\.0\.shortcut\.0\.weight$", n) for n in shapes):
        # Whatever is normalised before it is convolved: the first BatchNorm is as wide as what comes in.
        widths = [shape for name, shape in shapes.items() if name.endswith("layer2.0.bn1.weight")]
        name = "cifar_preactresnet18" if depths == (2, 2, 2, 2) and widths == [(64,)] else ""
    else:
        deep = 50 if bottleneck else 34
        name = f"cifar_resnet{18 if depths == (2, 2, 2, 2) else deep if depths == (3, 4, 6, 3) else 0}"
    return name if name in ARCHITECTURES else ""


def _prefix(tensors: Iterable[str], needed: set[str], file: str, weights: str) -> str:
    """What stands before the trunk's names: the prefix under which most of them are found."""
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in needed:
                counts[".".join([*parts[:i], ""])] += 1
    if weights:
        words = set(weights.split("."))
        counts = Counter({p: n for p, n in counts.items() if words & {*p.split(".")}})
        if not counts:
            raise CheckpointError(
                f'{file} has no encoder called "{weights}".', next="Leave weights out to see what it holds."
            )
    most = max(counts.values(), default=0)
    best = [p for p, n in counts.items() if n == most]
    plain = [p for p in best if set(p.split(".")) - {""} <= _WRAPPERS] or best
    if len(plain) > 1 and most == len(needed):
        words_of = [p.rstrip(".").rpartition(".")[2] or p for p in plain]
        raise CheckpointError(
            f"{file} holds {len(plain)} encoders: {', '.join(plain)}.", next=f'Say which: weights="{words_of[0]}".'
        )
    return plain[0] if plain else ""


def _wrong(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], needed: set[str]) -> dict[str, str]:
    """What does not fit, in the trunk's order, each with its reason."""
    wrong = {}
    for name in (n for n in wanted if n in needed):
        if name not in found:
            wrong[name] = "not in the file"
        elif found[name].shape != wanted[name].shape:
            wrong[name] = f"{list(found[name].shape)} in the file, {list(wanted[name].shape)} in the architecture"
    extra = (n for n in found if n not in wanted and not _ASIDE.match(n) and not n.endswith(_COUNTER))
    return wrong | dict.fromkeys(extra, "in the file alone")


def _misfit(wrong: Mapping[str, str], total: int, file: str, arch: str, guess: str) -> CheckpointError:
    first, why = next(iter(wrong.items()))
    missed = sum(reason != "in the file alone" for reason in wrong.values())
    surplus = f", {len(wrong) - missed} left over" if len(wrong) > missed else ""
    looks = (
        f'This looks like {guess}: say arch "{guess}".'
        if guess and guess != arch
        else "Name the right arch and options."
    )
    return CheckpointError(
        f"{file} does not fit {arch}: {total - missed} of {total} weights matched{surplus} (first to fail: {first}, "
        f"{why}). Nothing was loaded.",
        next=looks,
    )


def _converted(found: dict[str, Tensor], trunk: nn.Module) -> dict[str, Tensor]:
    """The same weights under timm's names, by the conversion that timm ships with the family; empty without one."""
    rename: Any = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)
    if rename is None or not type(trunk).__module__.startswith("timm."):
        return {}
    try:
        renamed: dict[str, Tensor] = rename(dict(found), trunk)
    except (KeyError, RuntimeError, ValueError, AttributeError, AssertionError, TypeError, IndexError):
        return {}  # a conversion that was not made for these weights; the plain mismatch is what gets reported
    return renamed


def _head(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A linear classifier beside the trunk, or beside one of the wrappers around it."""
    words = prefix.split(".")[:-1]
    for depth in range(len(words), -1, -1):
        above = ".".join([*words[:depth], ""])
        for name in _HEADS:
            weight = tensors.get(f"{above}{name}.weight")
            if weight is not None and weight.ndim == 2:
                bias = tensors.get(f"{above}{name}.bias", torch.zeros(len(weight)))
                return {"weight": cast(weight), "bias": cast(bias)}
    return {}


def _finite(found: Fit, file: str) -> None:
    bad = [name for part in found for name, t in part.items() if not bool(torch.isfinite(t).all())]
    if bad:
        raise CheckpointError(
            f"{file}: {len(bad)} weights hold NaN or infinity (first: {bad[0]}). Nothing was loaded.",
            next="Take an earlier checkpoint of that training.",
        )
