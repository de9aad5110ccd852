"""The house rules that ruff, mypy and import-linter cannot hold. Prints each breach; exit code 1 where there is one.

Rules: no room or file called utils, common, helpers, core or misc; package `__init__.py` files empty but for the top
one; modules of at most 400 lines; at most six parameters, or a comment `# parameters: why more` in the signature;
docstrings on public names of the package; no package index's host and no path of one machine in a committed file.
Functions of more than 60 lines are printed, and do not fail.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

BANNED = {"utils", "common", "helpers", "core", "misc"}
MODULE_LINES = 400
FUNCTION_LINES = 60
PARAMETERS = 6
HOSTS = re.compile(r"://[^/\s\"']*/simple\b|--(?:extra-)?index-url\s*=?\s*\S+://")
MACHINE = re.compile(r"(?:^|[\"'`( =])/(?:work|home|root|farm|Users)/")
ADDRESS_FREE = ("pyproject.toml", "Makefile", "constraints.txt", ".ci/run")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def committed(root: Path) -> list[Path]:
    """Files that git holds or would take, relative to `root`; without git, all but hidden and built ones."""
    asked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True, check=False
    )
    if asked.returncode == 0 and asked.stdout:
        return sorted(path for line in asked.stdout.splitlines() if (root / (path := Path(line))).is_file())
    built = {"build", "dist", "runs", "__pycache__"}
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(p for p in found if p.parts[0] == ".ci" or not (built & {*p.parts} or p.parts[0].startswith(".")))


def breaches(root: Path) -> Iterator[str]:
    """`file:line: what is wrong`, for every committed file under `root`."""
    for path in committed(root):
        yield from (f"{path}: a room or file called {p}" for p in (*path.parts[:-1], path.stem) if p in BANNED)
        try:
            text = (root / path).read_text()
        except UnicodeDecodeError:
            continue
        yield from _of_text(path, text)
        if path.suffix == ".py":
            yield from _of_module(path, text)


def long_functions(root: Path) -> Iterator[str]:
    """Functions of more than 60 lines: worth a look, no breach."""
    for path in committed(root):
        if path.suffix == ".py":
            for node in ast.walk(ast.parse((root / path).read_text())):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1 if isinstance(node, Function) else 0
                if isinstance(node, Function) and lines > FUNCTION_LINES:
                    yield f"{path}:{node.lineno}: {node.name} has {lines} lines (note)"


def _of_text(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if HOSTS.search(line):
            yield f"{path}:{number}: names the host of a package index"
        if MACHINE.search(line):
            yield f"{path}:{number}: a path of one machine"
        if str(path) in ADDRESS_FREE and "://" in line:
            yield f"{path}:{number}: an address in a file about dependencies"


def _of_module(path: Path, text: str) -> Iterator[str]:
    lines = len(text.splitlines())
    if lines > MODULE_LINES:
        yield f"{path}: {lines} lines; {MODULE_LINES} is the law"
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if not isinstance(node, Function) or len(_parameters(node)) <= PARAMETERS:
            continue
        signature = text.splitlines()[node.lineno - 1 : node.body[0].lineno - 1]
        if not any("# parameters: " in line for line in signature):
            asks = f"{node.name} takes {len(_parameters(node))} parameters"
            yield f"{path}:{node.lineno}: {asks}; {PARAMETERS} is the law, then a record, or `# parameters: why more`"
    if path.parts[0] != "holdfast":
        return
    if path.name == "__init__.py" and len(path.parts) > 2 and text.strip():
        yield f"{path}: a package's __init__.py stays empty"
    if path.name != "__init__.py" and not ast.get_docstring(tree):
        yield f"{path}: no docstring"
    yield from (f"{path}:{line}: {name} has no docstring" for name, line in _undocumented(tree))


def _parameters(node: Function) -> list[str]:
    named = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return [name for name in named if name not in ("self", "cls")]


def _undocumented(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Public functions and classes of a module, and methods of those classes that no base can have documented."""
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield node.name, node.lineno
        if isinstance(node, ast.ClassDef) and not node.bases:
            methods = (m for m in node.body if isinstance(m, Function) and not m.name.startswith("_"))
            yield from ((f"{node.name}.{m.name}", m.lineno) for m in methods if not ast.get_docstring(m))


def main() -> int:
    """Check the repository that this file lies in."""
    root = Path(__file__).resolve().parent.parent
    for line in long_functions(root):
        print(line)
    found = list(breaches(root))
    for line in found:
        print(line)
    print(f"house: {len(found)} breaches" if found else "house: in order")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
