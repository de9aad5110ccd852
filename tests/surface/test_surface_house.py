"""The house check finds each breach that it is there for, and nothing in a tree that is in order."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "house.py"


@pytest.fixture(scope="module")
def house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ORDER = {
    "holdfast/__init__.py": '"""Top."""\n__version__ = "0"\n',
    "holdfast/room/__init__.py": "",
    "holdfast/room/thing.py": '"""Thing."""\n\n\ndef do(a: int) -> int:\n    """Do."""\n    return a\n',
    "Makefile": "all:\n\techo\n",
}
SLASH = "/"
BREACHES = [
    ("holdfast/utils/thing.py", '"""X."""\n', "called utils"),
    ("holdfast/room/helpers.py", '"""X."""\n', "called helpers"),
    ("holdfast/room/__init__.py", "x = 1\n", "stays empty"),
    ("holdfast/room/long.py", '"""X."""\n' + "x = 1\n" * 400, "401 lines"),
    ("holdfast/room/wide.py", '"""X."""\n\n\ndef _f(a, b, c, d, e, f, g): ...\n', "takes 7 parameters"),
    ("holdfast/room/bare.py", "x = 1\n", "no docstring"),
    ("holdfast/room/quiet.py", '"""X."""\n\n\ndef f(): ...\n', "f has no docstring"),
    ("holdfast/room/method.py", '"""X."""\n\n\nclass C:\n    """C."""\n\n    def f(self): ...\n', "C.f has no doc"),
    ("notes.md", f"see {SLASH}home/me/data\n", "a path of one machine"),
    ("notes.md", "pip --index-url" + " https:" + "//mirror.example/a\n", "host of a package index"),
    ("constraints.txt", f"a @ https:{SLASH}/example.org/a.whl\n", "an address"),
]


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_order_has_no_breach(house: ModuleType, tmp_path: Path) -> None:
    assert list(house.breaches(_tree(tmp_path, ORDER))) == []


@pytest.mark.parametrize(("name", "text", "found"), BREACHES, ids=[b[2] for b in BREACHES])
def test_breach_is_found(house: ModuleType, tmp_path: Path, name: str, text: str, found: str) -> None:
    lines = list(house.breaches(_tree(tmp_path, {**ORDER, name: text})))
    assert len(lines) == 1
    assert lines[0].startswith(name)
    assert found in lines[0]


def test_more_parameters_with_a_reason_are_allowed(house: ModuleType, tmp_path: Path) -> None:
    text = '"""X."""\n\n\ndef _f(a, b, c, d, e, f, g):  # parameters: the contract names seven\n    return a\n'
    assert list(house.breaches(_tree(tmp_path, {**ORDER, "holdfast/room/wide.py": text}))) == []


def test_long_function_is_a_note_alone(house: ModuleType, tmp_path: Path) -> None:
    text = '"""X."""\n\n\ndef _f():\n' + "    print()\n" * 60
    root = _tree(tmp_path, {**ORDER, "holdfast/room/tall.py": text})
    assert list(house.breaches(root)) == []
    assert [line.split(": ")[1] for line in house.long_functions(root)] == ["_f has 61 lines (note)"]
