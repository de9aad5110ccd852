"""Where a number was made: versions, commit, hardware."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import features

import holdfast
from holdfast.records import Environment


def environment(device: torch.device, engine: str = "eager") -> Environment:
    """Versions, the commit of a checkout, the device with its name, and the engine of passes under attack."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return Environment(
        holdfast=holdfast.__version__,
        commit=_commit(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        device=f"{device.type}: {name}",
        threads=torch.get_num_threads(),
        platform=platform.platform(),
        libraries=_libraries(),
        engine=engine,
    )


@functools.cache
def _libraries() -> str:
    """Those that decide what a corrupted pixel is."""
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    found = [f"numpy {np.__version__}", f"pillow {PIL.__version__} (libjpeg {jpeg})"]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found.append(f"opencv {importlib.metadata.version('opencv-python-headless')}")
    return ", ".join(found)


@functools.cache
def _commit() -> str:
    """The commit that the package was run from, with a plus where files differ from it; empty outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "") if commit.returncode == 0 else ""
