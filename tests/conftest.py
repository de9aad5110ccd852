"""Before any test module imports torch: one thread per worker, no network, no window. And where real data is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

DATA = Path(os.environ.get("HOLDFAST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Finds real data by name: `weights` as they lie in `$HOLDFAST_DATA`, a pack unpacked; skips without it, loudly."""
    root = tmp_path_factory.mktemp("real")

    def find(name: str) -> Path:
        if (DATA / name).exists():
            return DATA / name
        script = DATA / "unpack.py"
        if name.startswith("weights") or not script.is_file():
            pytest.skip(f"needs real data: {DATA / name} is not there; set HOLDFAST_DATA")
        if not (root / name).exists():
            subprocess.run([sys.executable, str(script), str(root), name], check=True, capture_output=True)
        return root / name

    return find
