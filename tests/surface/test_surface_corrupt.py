"""`holdfast corrupt`: what it writes is what a bench makes on the fly, whatever happens on the way."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import holdfast
from holdfast import corrupting
from holdfast.errors import ConfigError, ConflictError, DataError
from holdfast.evaluation.store import Run
from holdfast.models.checkpoint import load, save

sys.path.append(str(Path(__file__).parents[1] / "data"))

from data_trees import cifar10

NAMES = ["gaussian_noise", "fog", "jpeg_compression"]


def tree(root: Path, *, side: int = 32, count: int = 6) -> Path:
    """split/class/image.png, two classes."""
    rng = np.random.Generator(np.random.PCG64(4))
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i:03d}.png")
    return root


def digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name != "corrupt.yaml")
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    return str(save(load("random:cifar_resnet8", options=("width=4",)), path))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree(tmp_path_factory.mktemp("images") / "set")


def bench(weights: str, out: Path, **fields: object) -> Run:
    return holdfast.bench(
        weights, out=str(out), suite="corruptions", corruptions=NAMES, severities=[1, 2, 3, 4, 5], chunk=8, **fields
    )


def outcomes(run: Run) -> dict[tuple[str, str, int], dict[str, np.ndarray]]:
    """Per-image outcomes by what was measured, whether the images were made or read."""
    found = {}
    for result in run.results:
        stage = result.cell.corruption
        at = (stage.name, stage.severity) if stage else ("clean", 0)
        found[result.cell.judge.task, *at] = run.outcomes(result.id)
    return found


@pytest.mark.parametrize("storage", ["none", "jpeg85"])
def test_a_copy_read_back_gives_the_numbers_of_the_corruptions_on_the_fly(
    weights: str, images: Path, tmp_path: Path, storage: str
) -> None:
    copy = holdfast.corrupt(str(images), str(tmp_path / "c"), corruptions=NAMES, storage=storage)
    suffix = {"none": ".png", "jpeg85": ".JPEG"}[storage]
    assert (copy / "fog" / "3" / "cat" / f"000{suffix}").is_file()
    made = outcomes(bench(weights, tmp_path / "made", data=str(images), storage=storage))
    read = outcomes(bench(weights, tmp_path / "read", data=str(images), corrupted=str(copy)))
    assert made.keys() == read.keys() and len(made) == 2 * 16
    for key in made:
        assert made[key].keys() == read[key].keys()
        assert all(np.array_equal(made[key][name], read[key][name]) for name in made[key]), key
    changed = made["embedding", "gaussian_noise", 5]["l2"]
    assert (changed > 0).all()


def test_arrays_in_the_layout_of_cifar_c(weights: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    cifar10(root)
    copy = holdfast.corrupt(f"cifar10:{root}", str(tmp_path / "c"), corruptions=NAMES)
    stored = np.load(copy / "fog.npy", mmap_mode="r")
    n = len(stored) // 5
    assert stored.dtype == np.uint8 and stored.shape == (5 * n, 32, 32, 3)
    assert np.array_equal(np.load(copy / "labels.npy")[:n], np.load(copy / "labels.npy")[n : 2 * n])
    assert not (copy / ".parts").exists()
    fields = {"data": f"cifar10:{root}"}
    made = outcomes(bench(weights, tmp_path / "made", **fields))
    read = outcomes(bench(weights, tmp_path / "read", corrupted=str(copy), **fields))
    assert made.keys() == read.keys()
    for key in made:
        assert all(np.array_equal(made[key][name], read[key][name]) for name in made[key]), key


@pytest.mark.parametrize("layout", ["folders", "arrays"])
def test_killed_and_run_again_is_the_same(images: Path, tmp_path: Path, layout: str) -> None:
    whole = holdfast.corrupt(str(images), str(tmp_path / "whole"), corruptions=NAMES, layout=layout, block=2)
    out = tmp_path / "killed"
    words = f"corrupt --data {images} --out {out} --corruptions {' '.join(NAMES)} --layout {layout} --block 2"
    command = [sys.executable, "-m", "holdfast", *words.split()]
    some = "*/*/*/*.png" if layout == "folders" else ".parts/*.npy"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        limit = time.monotonic() + 120
        while not list(out.glob(some)) and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert list(out.glob(some)), "killed before it had written anything"
    assert digests(out) != digests(whole), "killed too late to show anything"
    subprocess.run(command, check=True, capture_output=True)
    for part in out.rglob(".*.part"):
        part.unlink()
    assert digests(out) == digests(whole)


def test_a_finished_copy_is_not_touched_and_another_config_is_refused(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    holdfast.corrupt(str(images), str(out), corruptions=["fog"])
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    holdfast.corrupt(str(images), str(out), corruptions=["fog"])
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before
    with pytest.raises(ConflictError, match="seed 0 of the images; you ask 1"):
        holdfast.corrupt(str(images), str(out), corruptions=["fog"], seed=1)
    with pytest.raises(ConflictError, match="holds something else"):
        holdfast.corrupt(str(images), str(images), corruptions=["fog"])
    old = digests(out)
    holdfast.corrupt(str(images), str(out), corruptions=["fog"], seed=1, replace=True)
    assert digests(out).keys() == old.keys()
    assert digests(out) != old


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"corruptions": ["fogg"]}, ConfigError, 'Perhaps you meant "fog"'),
        ({"severities": [6]}, ConfigError, "There are severities 1 to 5"),
        ({"severities": [0]}, ConfigError, "Severities are 1 to 5"),
        ({"out": ""}, ConfigError, "--out"),
        ({"severities": [1, 2], "layout": "arrays"}, ConfigError, "--layout folders"),
        ({"data": "nowhere"}, DataError, "No folder nowhere"),
        ({"block": -3}, ConfigError, "Take --block 1 or more"),
        ({"severities": []}, ConfigError, "severities 1 to 5"),
    ],
)
def test_what_cannot_be_is_refused(
    images: Path, tmp_path: Path, fields: dict[str, object], error: type[Exception], message: str
) -> None:
    asked = {"data": str(images), "out": str(tmp_path / "c"), "corruptions": ["fog"], **fields}
    with pytest.raises(error, match=message):
        holdfast.corrupt(**asked)
    assert not (tmp_path / "c").exists()


def test_images_of_another_size_need_a_variant(tmp_path: Path) -> None:
    small = tree(tmp_path / "small", side=20, count=2)
    with pytest.raises(ConfigError, match=r"none was made for images of 20x20.*--variant"):
        holdfast.corrupt(str(small), str(tmp_path / "c"), corruptions=["fog"])
    holdfast.corrupt(str(small), str(tmp_path / "c"), corruptions=["fog"], variant="cifar32", severities=[2])
    with Image.open(tmp_path / "c" / "fog" / "2" / "dog" / "001.png") as written:
        assert written.size == (20, 20)


def test_grey_and_transparent_files_become_rgb_and_a_truncated_one_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", count=3)
    for name, kind in (("cat/000.png", "L"), ("dog/001.png", "RGBA")):
        with Image.open(root / "test" / name) as stored:
            changed = stored.convert(kind)
        changed.save(root / "test" / name)
    out = holdfast.corrupt(str(root), str(tmp_path / "c"), corruptions=["contrast"], severities=[1])
    with Image.open(out / "contrast" / "1" / "cat" / "000.png") as written:
        assert np.asarray(written).shape == (32, 32, 3)
    whole = (root / "test" / "dog" / "002.png").read_bytes()
    (root / "test" / "dog" / "002.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"dog/002\.png"):
        holdfast.corrupt(str(root), str(tmp_path / "d"), corruptions=["contrast"], severities=[1], block=2)
    assert (tmp_path / "d" / "contrast" / "1" / "cat" / "001.png").is_file()


def test_two_files_that_would_have_one_name_are_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", count=2)
    with Image.open(root / "test" / "cat" / "000.png") as stored:
        stored.save(root / "test" / "cat" / "000.bmp")
    with pytest.raises(DataError, match="would both be written"):
        holdfast.corrupt(str(root), str(tmp_path / "c"), corruptions=["fog"])


def test_a_file_that_was_lost_is_written_again(images: Path, tmp_path: Path) -> None:
    out = holdfast.corrupt(str(images), str(tmp_path / "c"), corruptions=["fog"])
    whole = digests(out)
    (out / "fog" / "3" / "dog" / "001.png").unlink()
    holdfast.corrupt(str(images), str(out), corruptions=["fog"])
    assert digests(out) == whole


def test_what_a_kill_left_behind_blocks_nothing(images: Path, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".corrupt.yaml.abcd.part").write_bytes(b"data:")
    holdfast.corrupt(str(images), str(tmp_path / "c"), corruptions=["fog"], severities=[1])


def test_a_copy_that_another_process_begins_between_two_looks_is_joined(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = holdfast.corrupt(str(images), str(tmp_path / "c"), corruptions=["fog"], severities=[1])
    whole, looks, look = digests(out), [], corrupting.read_copy
    monkeypatch.setattr(corrupting, "read_copy", lambda root: looks.append(root) or (look(root) if looks[1:] else None))
    assert digests(holdfast.corrupt(str(images), str(out), corruptions=["fog"], severities=[1])) == whole
    assert len(looks) >= 2


def test_two_processes_at_one_array_copy(images: Path, tmp_path: Path) -> None:
    words = f"corrupt --data {images} --out {tmp_path / 'c'} --corruptions {' '.join(NAMES)} --layout arrays --block 2"
    command = [sys.executable, "-m", "holdfast", *words.split()]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(2)]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    subprocess.run(command, check=True, capture_output=True)
    whole = holdfast.corrupt(str(images), str(tmp_path / "whole"), corruptions=NAMES, layout="arrays")
    assert digests(tmp_path / "c") == digests(whole)
