"""The benchmark program runs, and reports all contenders, their distance, the sums and the machine."""

import importlib.util
import json
import os
import runpy
from pathlib import Path

import numpy as np
import pytest
from corruption_references import photos
from PIL import Image

from holdfast.corruptions import table

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "corruptions.py"


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("HOLDFAST_DATA", str(tmp_path / "nothing"))
    return runpy.run_path(str(PROGRAM))["main"]


def test_small_run(run, tmp_path, capsys):
    pytest.importorskip("cv2")
    found = run(["--small", "--encoder", "test_resnet", "--out", str(tmp_path / "rows.json")])
    assert json.loads((tmp_path / "rows.json").read_text()) == found
    variants = ("imagenet224", "cifar32")
    assert [(r["corruption"], r["variant"]) for r in found["rows"]] == [(n, v) for v in variants for n in table.names()]
    assert found["photos"] == dict.fromkeys(variants, "2 drawn images")
    for row in found["rows"]:
        assert set(row["ms"]) == {"holdfast fast", "holdfast reference", "numpy"}
        assert all(ms > 0 for times in (row["ms"], row["first_call_ms"]) for ms in times.values())
        assert all(0 <= p["largest"] <= 1 and 0 <= p["share"] <= 0.1 for p in row["parity"].values())
    for total, variant in zip(found["sums"], variants, strict=True):
        expected = sum(r["ms"]["holdfast fast"] for r in found["rows"] if r["variant"] == variant)
        assert total["corruption"] == "sum of 19"
        assert total["ms"]["holdfast fast"] == pytest.approx(expected)
    forward = found["encoder"]["ms"]
    for row in found["rows"][:19]:
        ms = row["ms"]["holdfast fast"]
        assert row["share_of_pass"] == pytest.approx(ms / (ms + forward))
    assert min(r["share_of_pass"] for r in found["rows"][:19]) < found["sums"][0]["share_of_pass"] < 1
    assert "share_of_pass" not in found["sums"][1]
    assert found["machine"]["cores"] == os.cpu_count()
    assert found["machine"]["versions"]["numpy"] == np.__version__
    assert found["machine"]["processor"]
    said = capsys.readouterr().out
    assert "jpeg_compression" in said
    assert "sum of 19" in said


def test_photos_of_a_folder_and_the_peer(run, tmp_path, capsys):
    for module in ("skimage", "cv2"):
        pytest.importorskip(module)
    if importlib.util.find_spec("imagecorruptions") is None:
        pytest.skip("imagecorruptions is not installed")
    (tmp_path / "some").mkdir()
    for number, image in enumerate(photos(3, 40, 50)):
        Image.fromarray(image).save(tmp_path / "some" / f"{number}.png")
    words = ["--small", "--photos", str(tmp_path / "some"), "--modes", "fast", "--variants", "imagenet224", "--peer"]
    found = run(words)
    assert found["photos"] == {"imagenet224": "2 photos of some, 224 px"}
    assert all(r["ms"]["imagecorruptions"] > 0 for r in found["rows"])
    assert [r["corruption"] for r in found["rows"] if not r["same_as_peer"]] == ["snow", "frost", "elastic_transform"]
    assert "2 photos of some" in capsys.readouterr().out


def test_a_folder_without_photos_is_refused(run, tmp_path):
    with pytest.raises(SystemExit, match="no images"):
        run(["--small", "--photos", str(tmp_path)])
