"""The synthetic run of the evaluation tests, drawn once for all tests of the page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "evaluation"))

from synthetic_run import HARDENED, ODD, PLAIN, write_run

from holdfast.evaluation.store import Run


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three encoders, one of them with a name full of markup; corruptions, three attacks, galleries."""
    folder = tmp_path_factory.mktemp("synthetic") / "bench"
    return write_run(folder, (PLAIN, HARDENED, ODD), n=60, corruptions=("gaussian_noise", "fog"))
