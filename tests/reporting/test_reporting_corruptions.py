"""The corruption study on the page: what is drawn are the records, what is absent says why."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from parsed_page import Tree, parsed
from synthetic_run import NO_OPENCV, ODD, PLAIN, Made, failed, write_run

from holdfast.evaluation.curves import OUTCOMES, Outcome, Subject, corruption_errors, profiles, subjects
from holdfast.evaluation.published import (
    ALEXNET_ERRORS,
    CORRUPTIONS,
    FAMILIES,
    MCE_CORRUPTIONS,
    published_corruption_studies,
)
from holdfast.evaluation.rows import full, value
from holdfast.evaluation.store import Run
from holdfast.records import Corruption, Metric, Result
from holdfast.reporting.corruption_figures import over_severity
from holdfast.reporting.corruptions import corruption, families
from holdfast.reporting.mce import mce
from holdfast.reporting.page import report
from holdfast.reporting.sections import Cell, Section
from holdfast.reporting.similarity import embeddings, pixels, saliency

DONE = [name for name in CORRUPTIONS if name != "spatter"]
OFFICIAL = {"storage": "jpeg85", "textures": "published", "mode": "reference", "root": "sets/<C>"}


@pytest.fixture(scope="module")
def seen(study: Run) -> list[Subject]:
    return subjects([study])


@pytest.fixture(scope="module")
def page(study: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report([study], tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def tree(page: Path) -> Tree:
    return parsed(page)


def places(seen: Sequence[Subject]) -> dict[str, int]:
    return {s.name: at for at, s in enumerate(seen)}


def stage(result: Result) -> Corruption:
    assert result.cell.corruption is not None
    return result.cell.corruption


def altered(run: Run, change: Callable[[Result], Result]) -> list[Subject]:
    held = {r.id: run.outcomes(r.id) for r in run.results if r.status == "done"}
    return subjects([Run(run.folder, run.record, [change(r) for r in run.results], held)])


def with_stage(**fields: Any) -> Callable[[Result], Result]:
    def change(result: Result) -> Result:
        stages = tuple(msgspec.structs.replace(s, **fields) for s in result.cell.stages)
        return msgspec.structs.replace(result, cell=msgspec.structs.replace(result.cell, stages=stages))

    return change


def rates(subject: Subject, outcome: Outcome, names: Sequence[str]) -> np.ndarray:
    """Mean outcome [corruptions, severities], straight from the per-image outcomes."""
    found = {
        (stage(r).name, stage(r).severity): subject.run.outcomes(r.id)[outcome.name].mean()
        for r in subject.corrupted(outcome.task)
    }
    return np.array([[found[name, s] for s in (1, 2, 3, 4, 5)] for name in names])


def column(table: Sequence[Sequence[Cell]], at: int) -> dict[str, Cell]:
    return {row[1].text: row[at] for row in table[1:]}


def shown(number: float, unit: str = "fraction") -> str:
    return value(Metric(name="any", value=number, unit=unit))


def test_the_heat_map_shows_the_records(seen: list[Subject]) -> None:
    heat = corruption(seen, places(seen))[0]
    assert [cell.text for cell in heat.tables[0][0]] == ["family", "corruption", PLAIN.name, ODD.name]
    assert [row[0].text for row in heat.tables[0][1:] if row[0].text] == list(FAMILIES)
    for at, subject in enumerate(seen):
        cells, right = column(heat.tables[0], at + 2), rates(subject, OUTCOMES["correct"], DONE)
        for name, row in zip(DONE, right):
            cell = cells[name.replace("_", " ")]
            assert cell.text == shown(row.mean()) and cell.shade == pytest.approx(row.mean())
            assert re.fullmatch(r"\[[\d.]+, [\d.]+\]", cell.small)
        for group in ("noise", "blur", "weather", "digital"):
            members = [DONE.index(name) for name in FAMILIES[group]]
            assert cells[f"mean of {group}"].text == shown(right[members].mean())
        assert cells["mean of 15"].text == shown(right[:15].mean()) and cells["mean of 15"].bold
    assert "mean over severities 1 to 5, n = 39 images; stronger colour is better" in heat.lead[0]


def test_failed_cells_are_named_with_their_reason_and_break_the_means(seen: list[Subject]) -> None:
    heat, _, bars = corruption(seen, places(seen))
    cells = column(heat.tables[0], 2)
    assert cells["spatter"][:2] == ("\u2013", "failed") and NO_OPENCV in cells["spatter"].hint
    assert "mean of extra" not in cells and "mean of 19" not in cells
    said = f"spatter at severities 1 to 5 of plain and {ODD.name}; failed with: ConfigError: {NO_OPENCV}"
    assert heat.absent == [said]
    assert len(bars.absent) == 1 and bars.absent[0].startswith(f"extra of plain and {ODD.name}: needs")


def test_a_mean_over_fewer_severities_says_so(study: Run) -> None:
    fog = next(r for r in study.results if r.cell.corruption and stage(r).name == "fog" and stage(r).severity == 4)
    heat = corruption(altered(study, lambda r: failed(r.cell) if r.id == fog.id else r), {"plain": 0, ODD.name: 1})[0]
    cells = column(heat.tables[0], 2)
    assert cells["fog"].small.endswith("; severities 1, 2, 3 and 5 alone") and "boom" in cells["fog"].hint
    assert (cells["mean of weather"].text, cells["mean of weather"].small) == ("\u2013", "absent")
    assert "fog at severity 4" in cells["mean of weather"].hint
    assert any(text.startswith("fog at severity 4 of plain; failed with: RuntimeError") for text in heat.absent)
    assert column(heat.tables[0], 3)["fog"].small.endswith("]")


def test_other_corruptions_that_are_not_there_leave_a_dash(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", (PLAIN,), n=8, corruptions=("fog",), attacks=(), tasks=("classification",))
    other = write_run(tmp_path / "b", (ODD,), n=8, corruptions=("snow",), attacks=(), tasks=("classification",))
    seen = subjects([run, other])
    heat = corruption(seen, places(seen))[0]
    assert [row[1].text for row in heat.tables[0]] == ["corruption", "snow", "fog"]
    assert heat.tables[0][1][2][:2] == ("\u2013", "not measured") and heat.tables[0][1][3].text != "\u2013"


def test_small_multiples_hold_every_severity_and_mark_those_that_are_not_monotone(seen: list[Subject]) -> None:
    (chart,) = corruption(seen, places(seen))[1].charts
    rows = {row[:3]: row[3] for row in chart.rows}
    for subject in seen:
        for result in subject.corrupted("classification"):
            metric = result.metric("accuracy")
            assert metric is not None
            assert rows[subject.name, stage(result).name, str(stage(result).severity)] == full(metric)
        clean = subject.clean("classification")
        assert clean is not None and rows[subject.name, "fog", "0"] == full(clean.metric("accuracy"))  # type: ignore[arg-type]
    assert len(rows) == 2 * 18 * 6
    assert re.findall(r">([a-z ]+) \*</text>", chart.svg) == ["snow", "elastic transform", "saturate"]
    assert "Not monotone by design" in chart.caption and "Hendrycks and Dietterich 2019" in chart.caption
    fog = {s.name: {"fog": profiles(s, OUTCOMES["correct"])["fog"]} for s in seen}
    assert "*" not in over_severity(fog, places(seen), title="accuracy").caption


def test_family_bars_are_the_mean_errors(seen: list[Subject]) -> None:
    (chart,) = families(seen, places(seen)).charts
    rows = {row[:2]: row[2] for row in chart.rows}
    for subject in seen:
        error = 1 - rates(subject, OUTCOMES["correct"], DONE)
        for group in ("noise", "blur", "weather", "digital"):
            mean = error[[DONE.index(name) for name in FAMILIES[group]]].mean()
            assert rows[subject.name, group] == full(corruption_errors(subject)[1].families[group])
            assert rows[subject.name, group].startswith(shown(mean))
            assert f"{subject.name} {100 * mean:.1f} %" in chart.alt
        assert "1 is missing: spatter" in rows[subject.name, "extra"]
    assert "extra (4)" not in chart.svg and "noise (3)" in chart.svg


def test_the_five_numbers_stand_side_by_side(seen: list[Subject]) -> None:
    section = mce(seen, places(seen))
    assert [c.text for c in section.tables[0][0]] == [
        "encoder",
        "clean error",
        "mean error (15)",
        "mCE",
        "relative mCE",
    ]
    for subject, row in zip(seen, section.tables[0][1:]):
        error = 1 - rates(subject, OUTCOMES["correct"], MCE_CORRUPTIONS)
        theirs = np.array([ALEXNET_ERRORS[name] for name in MCE_CORRUPTIONS])
        clean = subject.clean("classification")
        assert clean is not None
        base = 1 - subject.run.outcomes(clean.id)["correct"].mean()
        ce = (error.sum(1) / theirs.sum(1)).mean()
        rise = ((error - base).sum(1) / (theirs - 0.435).sum(1)).mean()
        wanted = [f"{100 * base:.1f} %", f"{100 * error.mean():.1f} %", f"{100 * ce:.1f}", f"{100 * rise:.1f}"]
        assert [cell.text for cell in row[1:]] == wanted
        assert all(re.fullmatch(r"\[[\d.]+, [\d.]+\] n = 39", cell.small) for cell in row[1:])
    assert len(section.absent) == 1 and "mean error (19) of plain" in section.absent[0]
    assert "spatter" in section.absent[0]
    severities = next(t for t in section.folded if "severity by severity" in t.title)
    metric = corruption_errors(seen[0])[1].severities(15)[3]
    assert severities.rows[0][3] == full(metric)


def test_published_numbers_are_grey_and_say_their_protocol(seen: list[Subject]) -> None:
    section = mce(seen, places(seen))
    (chart,) = section.charts
    ours, theirs = chart.rows[: -chart.grey], chart.rows[-chart.grey :]
    assert [row[0] for row in ours] == [s.name for s in seen] and len(theirs) == 16
    rows = {row[0]: row for row in theirs}
    assert rows["ResNet-50"][3].startswith("76.7") and "JPEG quality 85" in rows["ResNet-50"][4]
    swav = published_corruption_studies()[0].errors
    fifteen = 100 * np.mean([swav[name] for name in MCE_CORRUPTIONS])
    assert rows["SwAV (ResNet-50)"][1:4] == (f"{fifteen:.1f} %", "70.5 %", "92.4, from its published errors")
    assert all("not normalised" in row[4] and "2308.02525" in row[5] for row in theirs if "from its" in row[3])
    assert all(row[4] and row[5] for row in chart.rows)
    defects = next(t for t in section.folded if "rank nothing" in t.title)
    assert any("no interval" in text for _, text in defects.rows)
    assert "AlexNet" in re.findall(r">([^<>]+)</text>", chart.svg)
    assert f"{ODD.name} " in chart.alt and "SimCLR (ResNet-50) 99.3" in chart.alt


def test_what_was_made_otherwise_is_hatched_and_said_in_words(study: Run, seen: list[Subject]) -> None:
    (chart,) = mce(seen, places(seen)).charts
    assert "made here; frost has drawn textures" in chart.caption and "storage none" in chart.caption
    assert hatched(chart.svg) == {"var(--grey)", "var(--m0)", "var(--m1)"}
    official = altered(study, with_stage(**OFFICIAL))
    (chart,) = mce(official, places(official)).charts
    assert "Corrupted images: read from sets/<C>; nothing is known" in chart.caption
    assert hatched(chart.svg) == {"var(--grey)"}
    fast = altered(study, with_stage(**OFFICIAL | {"root": "", "mode": "fast"}))
    (chart,) = mce(fast, places(fast)).charts
    assert "fast arithmetic" in chart.caption and hatched(chart.svg) == {"var(--grey)"}


def hatched(svg: str) -> set[str]:
    """Colours of the hatch patterns."""
    return set(re.findall(r"stroke: (var\(--\w+\))", "".join(re.findall(r"<pattern.*?</pattern>", svg, re.DOTALL))))


def test_encoders_made_in_other_ways_are_told_apart(study: Run) -> None:
    change = with_stage(**OFFICIAL)
    mixed = altered(study, lambda r: change(r) if r.cell.encoder.name == "plain" else r)
    (chart,) = mce(mixed, places(mixed)).charts
    assert "Corrupted images of plain: read from sets/<C>;" in chart.caption
    assert f"Corrupted images of {ODD.name}: made here;" in chart.caption
    assert hatched(chart.svg) == {"var(--grey)", "var(--m1)"}


def test_without_alexnet_the_mean_error_stands_alone(study: Run, tmp_path: Path) -> None:
    def change(result: Result) -> Result:
        data = msgspec.structs.replace(result.cell.data, source="cifar10")
        return msgspec.structs.replace(result, cell=msgspec.structs.replace(result.cell, data=data))

    cifar = altered(study, change)
    section = mce(cifar, places(cifar))
    assert section.charts == [] and [c.text for c in section.tables[0][0]] == [
        "encoder",
        "clean error",
        "mean error (15)",
    ]
    assert any(f"mCE and relative mCE of plain and {ODD.name}: CIFAR-10-C has no" in text for text in section.absent)
    assert section.notes[0].startswith("Corrupted images: made here")
    (run,) = {s.run.folder: s.run for s in cifar}.values()
    text = parsed(report([Run(run.folder, run.record, run.results, run._kept)], tmp_path)).texts["mce"]
    assert "SwAV" not in text and "ResNet-50" not in text


def test_an_encoder_with_fewer_corruptions_stands_beside_a_whole_one(study: Run, tmp_path: Path) -> None:
    few = write_run(
        tmp_path / "few", (PLAIN,), n=8, corruptions=("fog",), attacks=(), tasks=("classification",), source="imagenet",
        variant="imagenet224",
    )  # fmt: skip
    for runs in ([study, few], [few, study]):
        seen = subjects(runs)
        section = mce(seen, places(seen))
        titles = [cell.text for cell in section.tables[0][0]]
        assert titles[1:4] == ["clean error", "mean error over what was measured", "mean error (15)"]
        row = next(row for row in section.tables[0][1:] if row[0].text == "plain (few)")
        assert row[2].text != "\u2013" and row[3].text == row[4].text == "\u2013" and "14 are missing" in row[4].hint
        assert len(section.charts[0].rows) == 16 + 2


def test_pixels_are_compared_once_and_with_a_caveat(seen: list[Subject]) -> None:
    section = pixels(seen)
    outcome = Outcome("ssim", "saliency", "ssim", "lower", "SSIM", "SSIM")
    for name, row, wanted in zip(DONE, section.tables[0][1:], rates(seen[0], outcome, DONE)):
        assert row[1].text == name.replace("_", " ")
        assert [cell.text for cell in row[2:]] == [shown(v, "SSIM") for v in [*wanted, wanted.mean()]]
    psnr = seen[0].corrupted("saliency")[0].metric("psnr")
    assert psnr is not None and psnr.unit == "dB"
    assert section.folded[0].rows[0][3] in {full(r.metric("psnr")) for r in seen[0].corrupted("saliency")}  # type: ignore[arg-type]
    assert " dB [" in section.folded[0].rows[0][3]
    assert "glass_blur, motion_blur, zoom_blur and elastic_transform" in section.notes[0]
    assert "over 9 images" in section.lead[0]


def test_embeddings_are_read_per_family(seen: list[Subject]) -> None:
    section = embeddings(seen, places(seen))
    assert [c.text for c in section.tables[0][0]][2:] == ["clean", *FAMILIES]
    titles = [row[0].text for row in section.tables[0][1:] if row[0].text]
    assert titles == [OUTCOMES[name].title for name in ("knn_correct", "flip", "cosine", "quantile")]
    plain, odd = section.tables[0][1:3]
    for subject, row in ((seen[0], plain), (seen[1], odd)):
        for group, cell in zip(("noise", "blur", "weather", "digital"), row[3:7]):
            assert cell.text == shown(rates(subject, OUTCOMES["knn_correct"], FAMILIES[group]).mean())
    assert plain[7].small.endswith("; 15 of 20") and "spatter" not in plain[7].hint
    assert "n = 39 images" in section.lead[0] and "spatter" in section.absent[0]


def test_drift_of_maps_is_read_per_corruption(seen: list[Subject], study: Run) -> None:
    section = saliency(seen, places(seen))
    outcome = Outcome("cam_drift", "saliency", "cam_drift", "higher", "CAM drift")
    for at, subject in enumerate(seen):
        cells = column(section.tables[0], at + 2)
        for name, row in zip(DONE, rates(subject, outcome, DONE)):
            assert cells[name.replace("_", " ")].text == shown(row.mean(), "1 - cosine")
        assert cells["spatter"].small == "failed"
    assert "The maps explain the class predicted on the clean image." in section.lead[0]
    assert len(section.folded[0].rows) == 2 * 18 * 5


def test_drift_that_cannot_be_measured_says_why(study: Run) -> None:
    why = "the last map is a single position for images of 32 px"
    none = Metric(name="cam_drift", reason=why)
    held = {r.id: dict(study.outcomes(r.id)) for r in study.results if r.status == "done"}
    results = []
    for r in study.results:
        if r.cell.judge.task == "saliency" and r.status == "done":
            held[r.id].pop("cam_drift")
            r = msgspec.structs.replace(r, metrics=(*(m for m in r.metrics if m.name != "cam_drift"), none))
        results.append(r)
    seen = subjects([Run(study.folder, study.record, results, held)])
    assert saliency(seen, places(seen)).absent[0] == f"CAM drift of plain and {ODD.name}: {why}"
    assert saliency(seen, places(seen)).tables == []


def test_nothing_measured_takes_one_line_each(tmp_path: Path) -> None:
    seen = subjects([write_run(tmp_path / "r", (PLAIN,), n=8, corruptions=(), attacks=(), tasks=("classification",))])
    every: list[Section] = [
        *corruption(seen, places(seen)), mce(seen, places(seen)), pixels(seen), embeddings(seen, places(seen)),
        saliency(seen, places(seen)),
    ]  # fmt: skip
    assert all(s.empty and len(s.absent) == 1 for s in every)


def test_failures_alone_say_why(study: Run) -> None:
    bad = altered(study, lambda r: failed(r.cell) if r.cell.stages else r)
    for section in (pixels(bad), embeddings(bad, places(bad)), saliency(bad, places(bad))):
        assert section.empty and all("failed with: RuntimeError: <boom> & gone" in text for text in section.absent)
    heat = corruption(bad, places(bad))[0]
    assert heat.empty and any("<boom>" in text for text in heat.absent)


def test_the_page_holds_the_study(page: Path, tree: Tree) -> None:
    text = page.read_text()
    assert page.stat().st_size < 5_000_000
    assert not re.search(r"https?://|//cdn|@import|<script|<link|<iframe|url\((?!#)", text)
    for key in ("corruptions", "severities", "families", "mce", "pixels", "embedding-corrupted", "saliency"):
        assert len(tree.texts[key]) > 500, key
    images = [a for tag, a in tree.tags if tag == "img"]
    assert images and all(a.get("alt") for a in images)
    assert all(str(a["src"]).startswith("data:image/webp;base64,") for a in images)
    charts = [a for tag, a in tree.tags if tag == "svg"]
    assert len(charts) == 3 and all(a.get("aria-label") for a in charts)
    assert "odd <b>" not in text and "<i>owl" not in text and ("i", {}) not in tree.tags
    assert "spatter at severities 1 to 5 of plain and " + ODD.name in tree.texts["corruptions"]
    assert text.count('<tr class="grey">') == 16


def test_charts_know_no_colour_of_their_own(page: Path) -> None:
    for chart in re.findall(r"<svg.*?</svg>", page.read_text(), flags=re.DOTALL):
        assert not re.search(r"#[0-9a-f]{6}\b", chart), "a fixed colour"
    ids = [str(a["id"]) for _, a in parsed(page).tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_many_encoders_stand_in_several_tables_and_are_called_all(tmp_path: Path) -> None:
    many = [Made(f"epoch {i}", 0.9, 0.5 + i) for i in range(10)]
    run = write_run(
        tmp_path / "r", many, n=8, corruptions=("fog", "spatter"), attacks=(), tasks=("classification",),
        absent=("spatter",),
    )  # fmt: skip
    seen = subjects([run])
    heat, panels, _ = corruption(seen, places(seen))
    assert [len(table[0]) for table in heat.tables] == [2 + 8, 2 + 2]
    assert [cell.text for cell in heat.tables[1][0][2:]] == ["epoch 8", "epoch 9"]
    assert [row[1].text for row in heat.tables[1]] == ["corruption", "fog", "spatter"]
    assert heat.absent[0].startswith("spatter at severities 1 to 5 of all 10 encoders; failed with")
    (chart,) = panels.charts
    assert (
        "FillBetween" not in chart.svg and "fill-opacity" not in chart.svg and "without the 95 % bands" in chart.caption
    )
    assert all("[" in row[3] for row in chart.rows)
    assert families(seen, places(seen)).absent == [
        "no family was measured whole: all of its corruptions at severities 1 to 5"
    ]
    text = parsed(report([run], tmp_path / "out")).texts["believable"]
    assert "Not measured on any encoder: " in text and "\u2013 not measured" not in text
