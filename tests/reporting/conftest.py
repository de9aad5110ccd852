"""The synthetic runs of the evaluation tests, made once for all tests of the page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "evaluation"))

from synthetic_run import HARDENED, ODD, PLAIN, write_run

from holdfast.evaluation.published import CORRUPTIONS
from holdfast.evaluation.store import Run


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three encoders, one of them with a name full of markup; corruptions, three attacks, galleries."""
    folder = tmp_path_factory.mktemp("synthetic") / "bench"
    return write_run(folder, (PLAIN, HARDENED, ODD), n=60, corruptions=("gaussian_noise", "fog"))


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two encoders under all nineteen corruptions of ImageNet, of which spatter failed; looked at, not attacked.

    An odd number of images keeps shares away from ties of rounding.
    """
    folder = tmp_path_factory.mktemp("study") / "bench"
    return write_run(
        folder, (PLAIN, ODD), n=39, corruptions=CORRUPTIONS, attacks=(), absent=("spatter",), source="imagenet",
        tasks=("classification", "embedding", "saliency"), variant="imagenet224",
    )  # fmt: skip
