"""Where a number was made: versions, commit, hardware."""

from __future__ import annotations

import functools
import platform
import subprocess
from pathlib import Path

import torch

import holdfast
from holdfast.records import Environment


def environment(device: torch.device) -> Environment:
    """Versions, the commit of a checkout, and the device with its name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return Environment(
        holdfast=holdfast.__version__,
        commit=_commit(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        device=f"{device.type}: {name}",
        threads=torch.get_num_threads(),
        platform=platform.platform(),
    )


@functools.cache
def _commit() -> str:
    """The commit that the package was run from, with a plus where files differ from it; empty outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "") if commit.returncode == 0 else ""
