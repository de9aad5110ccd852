"""The tables beside the page."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from synthetic_run import ODD, PLAIN, write_run

from holdfast.evaluation.curves import corruption_errors, subjects
from holdfast.evaluation.rows import full, interval, value
from holdfast.evaluation.store import Run
from holdfast.evaluation.summary import summary
from holdfast.records import Metric
from holdfast.reporting.tables import results_csv, table_tex, tex


def test_results_csv_has_one_row_per_metric(synthetic: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(results_csv([synthetic, synthetic]))))
    assert len(rows) == 2 * len(synthetic.rows())
    one = next(r for r in rows if r["model"] == ODD.name and r["metric"] == "accuracy")
    assert float(one["low"]) <= float(one["value"]) <= float(one["high"])
    assert one["n"] == "60"


def test_table_tex_is_whole_and_escaped(synthetic: Run) -> None:
    seen = subjects([synthetic])
    text = table_tex(seen, summary(seen))
    assert text.count("{") == text.count("}")
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 1 + len(seen)
    assert len({line.replace(r"\&", "").count("&") for line in body}) == 1
    assert r"odd \textless{}b\textgreater{}\&" in text
    assert r"\textbf{" in text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("a_b", r"a\_b"), ("50 %", r"50 \%"), ("\\x", r"\textbackslash{}x"), ("$x^2$", r"\$x\textasciicircum{}2\$")],
)
def test_special_characters_of_latex(text: str, escaped: str) -> None:
    assert tex(text) == escaped


def test_numbers_are_written_in_their_unit() -> None:
    share = Metric(name="accuracy", value=0.841, n=200, low=0.784, high=0.885)
    assert full(share) == "84.1 % [78.4, 88.5], n = 200"
    half = Metric(name="half_radius", value=5.2 / 255, n=9, low=4.1 / 255, high=6 / 255, unit="pixel units")
    assert (value(half), interval(half)) == ("5.20/255", "[4.10, 6.00]")
    assert value(half, "l2") == "0.020"
    mce = Metric(name="mce", value=0.767, n=9, low=0.7, high=0.8)
    assert full(mce) == "76.7 [70.0, 80.0], n = 9"
    drift = Metric(name="cosine_drift", value=0.3141, n=9, low=0.3, high=0.33, unit="1 - cosine")
    assert full(drift) == "0.314 [0.300, 0.330], n = 9"
    assert full(Metric(name="mce", reason="no corruption")) == "no corruption"


def test_the_terminal_shows_the_summary(synthetic: Run) -> None:
    from rich.console import Console

    console = Console(width=140, file=io.StringIO())
    console.print(synthetic.table())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "clean accuracy" in shown and "hardened" in shown and ODD.name in shown
    assert Path(synthetic.folder).name in shown


def test_the_parts_of_mce_are_written_times_100() -> None:
    for name in ("ce_fog", "relative_ce_fog", "mce", "relative_mce"):
        assert full(Metric(name=name, value=0.767, n=9, low=0.7, high=0.8)) == "76.7 [70.0, 80.0], n = 9"
    assert full(Metric(name="mean_error_15", value=0.767, n=9, low=0.7, high=0.8)) == "76.7 % [70.0, 80.0], n = 9"
    assert full(Metric(name="psnr", value=31.42, n=9, low=30.0, high=33.0, unit="dB")) == "31.4 dB [30.0, 33.0], n = 9"


def test_results_csv_ends_with_the_mean_errors(study: Run) -> None:
    seen = subjects([study])
    rows = list(csv.DictReader(io.StringIO(results_csv([study], seen))))[len(study.rows()) :]
    assert len(rows) == 2 * (1 + len(corruption_errors(seen[0])[1].metrics))
    found = {row["metric"]: row for row in rows if row["model"] == ODD.name}
    errors = corruption_errors(seen[1])[1]
    for name in ("mean_error_15", "mce", "relative_mce", "ce_fog", "mean_error_blur"):
        assert float(found[name]["value"]) == errors.metrics[name].value and found[name]["n"] == "39"
        assert (found[name]["data"], found[name]["cell"], found[name]["higher_is_better"]) == ("imagenet", "", "False")
    assert found["mean_error_19"]["value"] == "" and "spatter" in found["mean_error_19"]["reason"]


def test_results_csv_without_corruptions_ends_with_the_records(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", (PLAIN,), n=8, corruptions=(), attacks=(), tasks=("classification",))
    assert results_csv([run], subjects([run])) == results_csv([run])


def test_table_tex_has_mean_error_and_mce(study: Run) -> None:
    seen = subjects([study])
    text = table_tex(seen, summary(seen))
    assert "mean error (15)" in text and "mCE" in text
    assert f"{100 * (corruption_errors(seen[0])[1].mce.value or 0):.1f}" in text
