"""The benchmark program runs, and reports both sides and their distance."""

import json
import runpy
from pathlib import Path

from holdfast.corruptions import table

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "corruptions.py"


def test_small_run(tmp_path, capsys):
    program = runpy.run_path(str(PROGRAM))
    rows = program["main"](["--small", "--out", str(tmp_path / "rows.json")])
    assert {(r["corruption"], r["variant"]) for r in rows} == {(n, v) for n in table.names() for v in table.variants()}
    assert all(r["ours_ms"] > 0 and r["reference_ms"] > 0 and r["largest"] <= 1 for r in rows)
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == rows
    assert "jpeg_compression" in capsys.readouterr().out
