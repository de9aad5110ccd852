"""The public names, and what importing them costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import holdfast
from holdfast.cli import VERBS

HEAVY = ("torch", "torchvision", "timm", "matplotlib", "lightning_fabric", "numpy")


def _imported_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has imported after `code`."""
    tail = f"\nimport sys; print(*[n for n in {HEAVY!r} if n in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_public_names_are_these() -> None:
    named = ["attack", "bench", "corrupt", "load", "ls", "probe", "report", "run", "train", "verify"]
    assert holdfast.__all__ == ["__version__", *named]
    assert set(holdfast.__all__) <= set(dir(holdfast))


@pytest.mark.parametrize("name", [n for n in holdfast.__all__ if n != "__version__"])
def test_public_name_is_a_documented_function(name: str) -> None:
    found = getattr(holdfast, name)
    assert inspect.isfunction(found)
    assert found.__name__ == name
    assert inspect.getdoc(found)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="bnech"):
        holdfast.bnech  # noqa: B018 - the access is the test


def test_no_room_hides_a_verb() -> None:
    import pkgutil

    rooms = {module.name for module in pkgutil.iter_modules(holdfast.__path__)}
    assert not rooms & set(holdfast.__all__)


def test_import_is_light() -> None:
    assert _imported_by("import holdfast; dir(holdfast)") == set()


def test_the_probe_for_heavy_packages_can_fail() -> None:
    assert _imported_by("import numpy") == {"numpy"}


def test_verbs_module_is_light() -> None:
    assert _imported_by("import holdfast.verbs") <= {"numpy"}


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_is_light(words: list[str]) -> None:
    code = f"from holdfast.cli import main\nassert main({words!r}) == 0"
    assert _imported_by(code) == set()
