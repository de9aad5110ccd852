"""What lies in a weights file: told by its bytes, never by its name, and never by running code from it."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from holdfast.errors import CheckpointError, nearest

SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".ckpt", ".bin", ".tar")

# Where a training state keeps its weights, in the order in which they are looked for. A teacher is what is evaluated
# (DINO, Caron et al. 2021); the others are the words of timm, Lightning, MAE, MoCo, mmselfsup and VISSL.
_BRANCHES: tuple[str, ...] = ("teacher", "state_dict", "model_state_dict", "model", "student", "network", "net")
_BRANCHES += ("resnet", "encoder", "backbone", "classy_state_dict", "base_model", "trunk")


class Content(NamedTuple):
    """Tensors by name, where in the file they lay (`teacher`, `model.trunk`), and the text that came with them."""

    tensors: dict[str, Tensor]
    branch: str
    metadata: dict[str, str]


def read(path: Path, *, weights: str = "") -> Content:
    """Read a weights file on the CPU.

    Args:
        path: safetensors or a torch file, in any container that is known.
        weights: branch of a training state (`teacher`, `student`); empty = the recognised one. A word that is no branch
            is left to the matching of names.

    Raises:
        CheckpointError: no such file, not weights, cut short, or code inside.
    """
    head = _head(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return _safetensors(path)
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        raise CheckpointError(
            f"{path} is {_described(head)}, not weights.", next="Download it again, or name another file."
        )
    found = _unpickled(path)
    branch, tensors = _branch(found, weights, path)
    return Content(tensors, branch, {})


def _head(path: Path) -> bytes:
    """The first bytes, after the messages for a file that is not there."""
    if not path.exists():
        if not path.parent.is_dir():
            raise CheckpointError(f"no folder {path.parent}.", asked=f"Asked for {path}:", next="Check the path.")
        files = [p.name for p in path.parent.iterdir() if p.is_dir() or p.suffix in SUFFIXES]
        hint = nearest(path.name, files) or f"There are no weights in {path.parent}."
        raise CheckpointError(f"no file {path}.", next=hint)
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes).", next="Download or save it again.")
    return head


def _described(head: bytes) -> str:
    start = head.lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return 'a git-LFS pointer (run "git lfs pull" beside it)'
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML page (a download that asked for confirmation)"
    if start.startswith((b"{", b"[")):
        return "a JSON text"
    return f"a file that begins with {head[:8]!r}"


def _safetensors(path: Path) -> Content:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        promised = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if len(data) < promised:
            raise _short(path, f"{len(data):,} bytes of {promised:,}")
        return Content(load_safetensors(data), "", metadata)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _short(path, "its header is not whole") from None
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{path} is a broken safetensors file ({error}).", next="Download or save it again."
        ) from None


def _unpickled(path: Path) -> Any:
    """The object of a torch file; plain `argparse.Namespace` (DINO, MAE, MoCo) is the only class that is allowed."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # bytes from anywhere: a damaged pickle can fail in any way
        raise _refused(path, str(error)) from None


def _refused(path: Path, text: str) -> CheckpointError:
    code = re.search(r"(?:Unsupported global: GLOBAL|Trying to load unsupported GLOBAL|GLOBAL) ([\w.]+)", text)
    if code:
        return CheckpointError(
            f"{path} contains code ({code[1]}), not weights alone. Not opened.",
            next="Convert it once where you trust it: torch.save(model.state_dict(), 'weights.pth').",
        )
    if "TorchScript" in text:
        return CheckpointError(
            f"{path} is a TorchScript archive: a program with its weights. Not opened.",
            next="Convert it: torch.save(torch.jit.load(...).state_dict(), 'weights.pth').",
        )
    if "weights_only" in text.lower() and "truncated" not in text.lower():
        return CheckpointError(f"{path} is a pickle that torch will not open as weights. Not opened.", next=_RESAVE)
    return _short(path, text.strip().splitlines()[0][:120] if text.strip() else "it ends early")


_RESAVE = "Save it again as torch.save(model.state_dict(), 'weights.pth')."


def _short(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is cut short or damaged ({why}).", next="Download or save it again.")


def _branch(found: Any, weights: str, path: Path) -> tuple[str, dict[str, Tensor]]:
    """The tensors of a container: those of the branch that was asked for, else of the first one that is known."""
    where: list[str] = []
    asked = [w for w in weights.split(".") if w]
    while isinstance(found, Mapping):
        tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
        inner = {str(k): v for k, v in found.items() if isinstance(v, Mapping)}
        if asked and asked[0] in inner:
            step = asked.pop(0)
        elif len(tensors) > len(inner):
            return ".".join(where), tensors
        else:
            known = [b for b in _BRANCHES if b in inner]
            if not known:
                break
            step = known[0]
        where.append(step)
        found = inner[step]
    keys = ", ".join(map(str, found)) if isinstance(found, Mapping) else f"a {type(found).__name__}"
    place = f" at {'.'.join(where)}" if where else ""
    raise CheckpointError(f"{path} holds no weights{place}; it holds {keys[:200]}.", next=_RESAVE)
