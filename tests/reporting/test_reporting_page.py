"""The page: whole, self-contained, deterministic; every section filled from a full run, and absence explained."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from parsed_page import parsed
from synthetic_run import CE, HARDENED, MSE, ODD, PLAIN, Made, failed, write_run

from holdfast.errors import DataError
from holdfast.evaluation.curves import subjects
from holdfast.evaluation.published import MCE_CORRUPTIONS
from holdfast.evaluation.store import Run, Store, read
from holdfast.reporting.figures import PALETTE
from holdfast.reporting.gallery import amplified, walls
from holdfast.reporting.page import report


@pytest.fixture(scope="module")
def page(synthetic: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report([synthetic], tmp_path_factory.mktemp("page"))


def test_the_page_is_balanced_and_every_section_is_filled(page: Path) -> None:
    tree = parsed(page)
    assert [a["id"] for tag, a in tree.tags if tag == "section"] == [
        "summary", "accuracy", "corruptions", "severities", "families", "mce", "pixels", "embedding",
        "embedding-corrupted", "gallery", "saliency", "believable", "made",
    ]  # fmt: skip
    for name in ("accuracy", "corruptions", "severities", "embedding", "gallery"):
        assert "Not shown" not in tree.texts[name], name
    assert "AlexNet's errors belong to the 1000 classes" in tree.texts["mce"]
    assert "mean error over what was measured" in tree.texts["mce"]
    assert "passed" in tree.texts["believable"] and "not measured" in tree.texts["believable"]
    assert "torch 2.15.0" in tree.texts["made"] and "encoders:" in tree.texts["made"]


def test_nothing_is_loaded_from_anywhere(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"https?://|//cdn|@import|<script|<link|<iframe|url\((?!#)", text)
    sources = [a["src"] for tag, a in parsed(page).tags if "src" in a]
    assert sources and all(str(s).startswith("data:image/webp;base64,") for s in sources)


def test_the_page_is_small_and_the_same_every_time(page: Path, synthetic: Run, tmp_path: Path) -> None:
    assert page.stat().st_size < 5_000_000
    again = report([read(synthetic.folder)], tmp_path)
    for name in ("report.html", "results.csv", "table.tex"):
        assert (page.parent / name).read_bytes() == (again.parent / name).read_bytes()


def test_names_with_markup_are_text(page: Path) -> None:
    text, tree = page.read_text(), parsed(page)
    assert "odd <b>" not in text
    assert ODD.name in tree.texts["summary"]
    assert ("b", {}) not in tree.tags


def test_every_image_and_chart_has_an_alternative_text(page: Path) -> None:
    tags = parsed(page).tags
    assert all(a.get("alt") for tag, a in tags if tag == "img")
    charts = [a for tag, a in tags if tag == "svg"]
    assert len(charts) >= 4
    assert all(a.get("role") == "img" and a.get("aria-label") for a in charts)


def test_charts_follow_the_page_into_the_dark(page: Path) -> None:
    text = page.read_text()
    charts = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert charts
    for chart in charts:
        assert "var(--m0)" in chart and "var(--ink)" in chart
        assert not re.search(r"#[0-9a-f]{6}\b", chart), "a fixed colour"
        assert "<g id=" not in chart
    assert "prefers-color-scheme: dark" in text and all(dark in text for _, dark in PALETTE)


def test_ids_are_unique(page: Path) -> None:
    ids = [str(a["id"]) for _, a in parsed(page).tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_each_chart_is_followed_by_its_data(page: Path) -> None:
    text = page.read_text()
    charts = text.count("<svg")
    assert text.count("Data of this chart") == charts
    assert len(re.findall(r"</figcaption>\s*</figure>\s*<details>", text)) == charts


def test_numbers_stand_with_n_and_interval(page: Path) -> None:
    text = page.read_text()
    summary = text[text.index('id="summary"') : text.index("</table>")]
    numbers = re.findall(r"<td[^>]*>([\d.]+ %|[\d.]+/255)(<small>\[[\d.]+, [\d.]+\] n = \d+</small>)?", summary)
    assert len(numbers) > 15
    assert all(evidence for _, evidence in numbers)


def test_the_head_names_the_most_robust_and_its_cost(page: Path) -> None:
    head = parsed(page).texts[""]
    assert "hardened is the most robust to Linf attacks" in head
    assert "Its clean accuracy is" in head
    assert "failed" not in head


@pytest.mark.parametrize(("threshold", "says"), [(0.01, "below 0.5/255 (n = 30)"), (500.0, "above 8/255 (n = 30)")])
def test_the_head_does_not_invent_a_radius(tmp_path: Path, threshold: float, says: str) -> None:
    made = Made("one", 0.9, threshold)
    run = write_run(tmp_path / "r", (made,), n=60, corruptions=(), attacks=(CE,), tasks=("classification",))
    head = parsed(report([run], tmp_path / "out")).texts[""]
    assert f"one loses half of its clean accuracy {says} under Linf attacks" in head


def test_a_failed_check_stands_in_a_box_at_the_top(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", (Made("masked", 0.8, 3.0, masked=True),), n=60, corruptions=(), attacks=(CE,))
    text = report([run], tmp_path / "out").read_text()
    box = text[text.index('class="alarm"') : text.index('id="summary"')]
    assert "Gradients are not zero" in box and "38.0%" in box


def test_failed_and_missing_cells_are_named(synthetic: Run, tmp_path: Path) -> None:
    results = [msgspec.structs.replace(failed(synthetic.results[0].cell)), *synthetic.results[2:]]
    tree = parsed(report([Run(synthetic.folder, synthetic.record, results)], tmp_path))
    assert "failed cells: 1" in tree.texts[""]
    assert f"1 of {synthetic.record.cells} cells are not done yet" in tree.texts[""]
    assert "RuntimeError: <boom> & gone" in tree.texts["made"]


def test_absent_data_say_why(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", (PLAIN,), n=20, corruptions=(), attacks=(), tasks=("classification",))
    tree = parsed(report([run], tmp_path / "out"))
    assert "Not shown: no attack was judged by classification" in tree.texts["accuracy"]
    assert "Not shown: no corruption was measured" in tree.texts["corruptions"]
    assert "Not shown: no corruption was measured" in tree.texts["mce"]
    assert "Not shown: no corruption was judged by classification" in tree.texts["families"]
    assert all("no image was looked at" in tree.texts[key] for key in ("pixels", "saliency"))
    empty = [a["id"] for tag, a in tree.tags if tag == "section" and a.get("class") == "empty"]
    assert empty == [
        "accuracy", "corruptions", "severities", "families", "mce", "pixels", "embedding", "embedding-corrupted",
        "saliency",
    ]  # fmt: skip
    assert "Not shown: no attack was judged by the embedding" in tree.texts["embedding"]
    assert "no attacked image was kept" in tree.texts["gallery"]
    assert "passed" not in tree.texts["believable"].split("The numbers")[0].replace("Green was measured", "")


def test_embeddings_alone_make_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", (PLAIN,), n=20, corruptions=("fog",), attacks=(MSE,), tasks=("embedding",))
    tree = parsed(report([run], tmp_path / "one.html", title="A <title>"))
    assert (tmp_path / "one.html").exists() and (tmp_path / "results.csv").exists()
    assert "A <title>" in tree.texts[""]
    assert "kNN accuracy" in tree.texts["corruptions"] or "KNN accuracy" in tree.texts["corruptions"]


def test_mce_stands_beside_published_numbers_with_their_protocol(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "r", (PLAIN,), n=12, corruptions=MCE_CORRUPTIONS, attacks=(), tasks=("classification",),
        source="imagenet", variant="imagenet224",
    )  # fmt: skip
    text = parsed(report([run], tmp_path / "out")).texts["mce"]
    assert "ResNet-50 + AugMix" in text and "as stored (JPEG quality 85)" in text and "hendrycks/robustness" in text


def test_several_runs_are_compared(synthetic: Run, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", (PLAIN, HARDENED), n=40, corruptions=(), attacks=(CE,))
    tree = parsed(report([synthetic, other], tmp_path / "out"))
    assert "plain (bench)" in tree.texts["summary"] and "plain (other)" in tree.texts["summary"]
    assert "What differs between bench and other" in tree.texts["made"]
    assert "limit" in tree.texts["made"]


def test_many_encoders_turn_the_table(tmp_path: Path) -> None:
    many = [Made(f"epoch {i}", 0.9, 0.5 + i) for i in range(9)]
    run = write_run(tmp_path / "r", many, n=20, corruptions=(), attacks=(CE,), tasks=("classification",))
    text = report([run], tmp_path / "out").read_text()
    head = text[text.index("<thead>") : text.index("</thead>")]
    assert "clean accuracy" in head and "epoch 8" not in head


def test_the_largest_galleries_do_not_break_the_limit(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "r", (PLAIN, HARDENED, ODD), n=16, corruptions=(), attacks=(CE,), tasks=("classification",), size=224
    )
    shown, left_out = walls(subjects([run]), budget=900_000)
    assert left_out > 0
    assert {w.subject for w in shown} == {m.name for m in (PLAIN, HARDENED, ODD)}
    assert sum(len(uri) for w in shown for t in w.tiles for _, uri in t.images) <= 900_000
    first = shown[0].tiles
    assert first[0].rule == "worst" and not first[0].small


def test_the_difference_is_ten_times_around_grey() -> None:
    delta = np.array([0.0, 8 / 255, -8 / 255, 0.2, -0.2]).reshape(1, 5, 1).repeat(3, 2)
    assert amplified(delta)[0, :, 0].tolist() == [128, 208, 48, 255, 0]


def test_no_record_is_no_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", (PLAIN,), n=10, corruptions=(), attacks=())
    with pytest.raises(DataError, match="No cell is on disk"):
        report([Run(run.folder, run.record, [])], tmp_path)


def test_a_run_of_failed_cells_alone_is_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", (PLAIN,), n=10, corruptions=(), attacks=(), tasks=("classification",))
    Store(run.folder).put(failed(run.results[0].cell), {})
    tree = parsed(report([read(run.folder)], tmp_path / "out"))
    assert "no cell gave a number" in tree.texts["summary"]
