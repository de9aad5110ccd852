"""The pictures of the galleries: exact differences, amplified as far as is said, in the light and in the dark."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from parsed_page import parsed
from PIL import Image
from synthetic_run import CE, PLAIN, write_run

from holdfast.draws import numpy_generator
from holdfast.evaluation.curves import subjects
from holdfast.evaluation.store import Run, Store, read
from holdfast.reporting import gallery
from holdfast.reporting.gallery import FACTORS, FULL, amplified, factor_of, walls
from holdfast.reporting.look import Look, write

TIMES = "\N{MULTIPLICATION SIGN}"


def picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, np.ndarray]]:
    """A run whose gallery holds the images as they were judged, with perturbations of up to 1.5/255."""
    folder = tmp_path_factory.mktemp("exact") / "bench"
    run = write_run(folder, (PLAIN,), n=16, corruptions=(), attacks=(CE,), tasks=("classification",))
    arrays: dict[str, np.ndarray] = {}
    for result in run.results:
        if old := run.gallery(result.id):
            arrays = {name: part for name, part in old.items() if name != "delta"}
            draw = numpy_generator("gallery test").random(old["clean"].shape) - 0.5
            before = old["clean"].astype(np.float32) / np.float32(255)
            moved = np.clip(before + np.float32(3 / 255) * draw.astype(np.float32), 0, 1)
            arrays |= {"before": old["clean"], "adversarial": moved}
            Store(folder).put_gallery(result.id, arrays)
    return read(folder), arrays


def test_tiles_show_the_images_that_were_judged(exact: tuple[Run, dict[str, np.ndarray]]) -> None:
    run, arrays = exact
    ((wall,), _) = walls(subjects([run]))
    ids = arrays["id"].tolist()
    for tile in wall.tiles:
        at = ids.index(tile.id)
        clean, moved, difference = (picture(uri) for _, uri in tile.images)
        assert np.array_equal(clean, arrays["clean"][at])
        assert np.array_equal(moved, np.round(arrays["adversarial"][at].astype(np.float64) * 255).astype(np.uint8))
        delta = arrays["adversarial"][at].astype(np.float64) - arrays["clean"][at].astype(np.float32) / np.float32(255)
        assert np.array_equal(difference, amplified(delta, 50))


def test_the_factor_stands_with_every_tile_and_is_one_for_a_wall(exact: tuple[Run, dict[str, np.ndarray]]) -> None:
    ((wall,), _) = walls(subjects([exact[0]]))
    assert {tile.images[2][0] for tile in wall.tiles} == {f"difference {TIMES} 50"}
    assert all(f"difference {TIMES} 50" in tile.score for tile in wall.tiles)


def test_no_image_is_said_to_survive_by_the_rule_that_chose_it(exact: tuple[Run, dict[str, np.ndarray]]) -> None:
    """Of the least harmed images of a weak encoder, none need survive."""
    run, arrays = exact
    ((wall,), _) = walls(subjects([run]))
    last = [tile for tile in wall.tiles if tile.id in arrays["id"][arrays["rule"] == "surviving"]]
    assert [tile.rule for tile in last] == ["least harmed"] * 2
    template = Path(gallery.__file__).with_name("page.html.jinja").read_text()
    assert "those least harmed" in template and "survive best" not in template


def test_runs_of_the_first_versions_are_still_shown(synthetic: Run) -> None:
    found, _ = walls(subjects([synthetic]))
    assert found and all(wall.tiles for wall in found)


@pytest.mark.parametrize("largest", [0.1 / 255, 0.5 / 255, 1 / 255, 8 / 255, 0.2, 0.9])
def test_the_factor_is_the_largest_that_cuts_nothing(largest: float) -> None:
    factor = factor_of(largest)
    assert factor == 1 or factor * largest <= FULL
    assert all(other * largest > FULL for other in FACTORS if other > factor)


def test_no_difference_needs_no_factor() -> None:
    assert amplified(np.zeros((2, 2, 3)), factor_of(0.0)).tolist() == [[[128] * 3] * 2] * 2


def test_the_page_of_an_attack_is_one_balanced_file_for_light_and_dark(tmp_path: Path) -> None:
    clean = np.full((8, 8, 3), 100, dtype=np.uint8)
    delta = np.full((8, 8, 3), 4 / 255, dtype=np.float32)
    looks = [Look(f"<b>{at}", clean, clean + np.uint8(4), delta, "survives & so on") for at in range(3)]
    page = write(tmp_path / "gallery.html", looks, title='a "<title>"', about="done <so>", next="holdfast bench x")
    tree, text = parsed(page), page.read_text()
    assert not tree.open and ("b", {}) not in tree.tags[: tree.tags.index(("figcaption", {}))]
    shown = [attributes for tag, attributes in tree.tags if tag == "img"]
    assert len(shown) == 9 and all(a["alt"] and a["class"] == "tiny" for a in shown)
    assert f"difference {TIMES} 20" in tree.texts[""] and "0.5 + 20 " in tree.texts[""]
    assert "done <so>" in tree.texts[""] and "<so>" not in text
    style = text[text.index("<style>") : text.index("</style>")]
    dark = style[style.index("prefers-color-scheme: dark") :].splitlines()[0]
    for name in re.findall(r"var\((--\w+)\)", style):
        assert f"{name}:" in dark, f"{name} has no dark colour"
