"""Frost: sums and crops in closed form, resizing beside OpenCV, where textures come from, and the drawn ones."""

import hashlib
import os
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import torch
from corruption_references import photos
from scipy import stats

from holdfast import draws
from holdfast.corruptions import frost as room
from holdfast.corruptions import table
from holdfast.corruptions.frost import FROST, draw_frost, draw_textures, find_published, frost, load_published, resized
from holdfast.errors import ConfigError
from holdfast.models.checkpoint import load
from holdfast.records import Corruption

SIZES = [(600, 900), (315, 560), (315, 560), (350, 527), (495, 660)]
PUBLISHED = Corruption(name="frost", severity=3, variant="imagenet224", textures="published")
LAST = 1 - 2**-24  # the largest number below 1 that is drawn


def keys(count):
    return draws.keys([str(i) for i in range(count)])


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.delenv("HOLDFAST_FROST", raising=False)
    monkeypatch.setattr(room, "_DISTRIBUTION", "a-distribution-that-nobody-has")


@pytest.fixture
def published(real, monkeypatch):
    folder = real("weights").parent / "frost"
    if not folder.is_dir():
        pytest.skip(f"needs the frost textures of ImageNet-C: {folder} is not there; set HOLDFAST_DATA")
    monkeypatch.setenv("HOLDFAST_FROST", str(folder))
    return load_published()


def maps():
    """Textures that say which of them and which place a pixel is from: (row, column, number), one per row here."""
    pictures = []
    for number, (height, width) in enumerate([(40, 90), (200, 33), (64, 64), (100, 250), (33, 40)]):
        rows, columns = np.mgrid[:height, :width]
        pictures.append(torch.from_numpy(np.stack([rows, columns, np.full_like(rows, number)], -1).astype(np.uint8)))
    return tuple(pictures)


def crops(field, shape=(32, 32), textures=None):
    black = torch.zeros(len(field), *shape, 3, dtype=torch.uint8)
    return frost(black, (0, 1, 1), field=field, mode="fast", textures=textures or maps())


@pytest.mark.parametrize("parameters", sorted({p for rows in FROST.values() for p in rows}))
def test_both_modes_are_the_published_sum_of_every_pair_of_levels(parameters):
    levels = np.arange(256, dtype=np.uint8)
    images = torch.from_numpy(np.stack([np.repeat(levels[:, None], 256, 1)] * 3, -1))[None]
    texture = torch.from_numpy(np.stack([np.repeat(levels[None], 256, 0)] * 3, -1))
    expected = np.clip(parameters[0] * images.numpy() + parameters[1] * texture.numpy(), 0, 255).astype(np.uint8)
    for mode in table.MODES:
        given = (*parameters[:2], 1)
        found = frost(images, given, field=torch.zeros(1, 3), mode=mode, textures=(texture,) * 5)
        assert np.array_equal(found.clamp(0, 255).to(torch.uint8), expected)


def test_the_three_draws_are_texture_row_and_column_and_the_last_place_is_never_taken():
    field = torch.tensor([[0, 0, 0], [LAST, LAST, LAST], [0.2, 0.5, 0.25], [0.59, LAST, LAST], [0.7, 0.999, 0.5]])
    found = crops(field)
    assert found[:, 0, 0].tolist() == [[0, 0, 0], [0, 7, 4], [84, 0, 1], [31, 31, 2], [67, 109, 3]]
    assert torch.equal(found[:, :, :, 0], found[:, :, :1, 0] + torch.zeros(32, dtype=torch.uint8))
    assert torch.equal(found[:, 31, 31, :2], found[:, 0, 0, :2] + 31)
    assert crops(field[:1], (33, 40), (maps()[4],) * 5)[0, 0, 0].tolist() == [0, 0, 4]  # as large as the texture


def test_textures_and_places_are_equally_likely():
    field = draw_frost(keys(4000), (32, 32), parameters=(), parts=(0, "frost", 1))
    row, column, number = crops(field)[:, 0, 0].T.numpy()
    assert stats.chisquare(np.bincount(number, minlength=5)).pvalue > 1e-3
    for which, (height, width) in enumerate([(40, 90), (200, 33), (64, 64), (100, 250), (33, 40)]):
        for place, count in ((row, height - 32), (column, width - 32)):
            seen = np.bincount(place[number == which], minlength=count)
            assert len(seen) == count
            assert count == 1 or stats.chisquare(seen).pvalue > 1e-4
    pairs = field.double() - 0.5
    for a, b in ((pairs[:, 0], pairs[:, 1]), (pairs[:, 1], pairs[:, 2]), (pairs[1:, 0], pairs[:-1, 0])):
        assert abs((a * b).mean().item()) < 4 / 12 / np.sqrt(4000)


@pytest.mark.parametrize("factor", [0.2, 0.3])
def test_textures_are_shrunk_as_by_opencv(factor):
    cv2 = pytest.importorskip("cv2")
    noise = np.random.default_rng(0).integers(0, 256, (315, 527, 3), dtype=np.uint8)
    for picture in (noise, *(t.numpy() for t in draw_textures())):
        assert np.array_equal(resized(picture, factor), cv2.resize(picture, (0, 0), fx=factor, fy=factor))


def test_textures_are_enlarged_as_by_opencv():
    cv2 = pytest.importorskip("cv2")
    picture = photos(1, 60, 80)[0]
    for factor in (1.25, 1.7, 3.0):
        found, expected = resized(picture, factor), cv2.resize(picture, (0, 0), fx=factor, fy=factor)
        difference = np.abs(found.astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


def test_shrinking_by_five_takes_every_fifth_pixel():
    for texture in draw_textures():
        assert np.array_equal(resized(texture.numpy(), 0.2), texture[2::5, 2::5])


def test_a_larger_image_gets_an_enlarged_texture():
    flat = tuple(torch.full((*size, 3), 10 * i, dtype=torch.uint8) for i, size in enumerate(SIZES, start=1))
    images = torch.zeros(5, 640, 300, 3, dtype=torch.uint8)
    field = torch.tensor([[(i + 0.5) / 5, LAST, LAST] for i in range(5)])
    found = frost(images, (0.5, 1, 0.2), field=field, mode="fast", textures=flat)
    assert torch.equal(found[:, 0, 0, 0], torch.tensor([10, 20, 30, 40, 50], dtype=torch.uint8))
    ramp = torch.arange(100, dtype=torch.uint8)[:, None, None].expand(100, 400, 3)
    stretched = crops(torch.zeros(1, 3), (200, 50), (ramp,) * 5)[0, :, 0, 0]
    assert stretched.tolist() == [min(99, round((i + 0.5) / 2 - 0.5 + 0.01)) for i in range(200)]


def test_what_a_record_says():
    drawn = "the textures are drawn ones, not those of ImageNet-C."
    there = msgspec.structs.replace(PUBLISHED, textures="drawn")
    assert table.notes(PUBLISHED, 224, 224) == ()
    assert table.notes(there, 224, 224) == (f"frost: {drawn}",)
    larger = "2 of the 5 textures are smaller than these images and were enlarged to cover them."
    assert table.notes(PUBLISHED, 340, 340)[1] == f"frost: {larger}"
    assert table.notes(there, 340, 340)[1] == f"frost: {drawn} {larger}"
    for variant, side in (("cifar32", 32), ("tiny64", 64), ("inception299", 299)):
        assert table.notes(msgspec.structs.replace(PUBLISHED, variant=variant), side, side) == ()
    assert len(table.notes(msgspec.structs.replace(PUBLISHED, variant="cifar32"), 224, 224)) == 2
    assert table.notes(msgspec.structs.replace(there, severity=0), 224, 224) == ()


# -- where published textures come from --------------------------------------------------------------------------------


def files_of(folder):
    folder.mkdir(parents=True)
    for name in ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg"):
        (folder / name).write_bytes(b"ice")
    return folder


@pytest.mark.usefixtures("nothing_installed")
def test_missing_textures_say_where_they_were_looked_for_and_what_to_type(tmp_path, monkeypatch):
    images = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    assert find_published() is None
    for call in (load_published, lambda: table.check(PUBLISHED), lambda: table.corrupt(images, PUBLISHED, keys(1))):
        with pytest.raises(ConfigError) as error:
            call()
        assert "HOLDFAST_FROST is not set" in str(error.value)
        assert 'Set HOLDFAST_FROST=FOLDER to the folder that holds them, or write textures: "drawn".' in str(
            error.value
        )
    table.check(msgspec.structs.replace(PUBLISHED, textures="drawn"))
    folder = files_of(tmp_path / "ice")
    (folder / "frost4.jpg").unlink()
    monkeypatch.setenv("HOLDFAST_FROST", str(folder))
    assert find_published() is None
    with pytest.raises(ConfigError, match=r"frost4\.jpg.* are not in .*ice, which HOLDFAST_FROST names"):
        load_published()


@pytest.mark.usefixtures("nothing_installed")
def test_another_file_is_refused_with_both_sums(tmp_path, monkeypatch):
    folder = files_of(tmp_path / "ice")
    monkeypatch.setenv("HOLDFAST_FROST", str(folder))
    assert find_published() == folder
    with pytest.raises(ConfigError) as error:
        load_published()
    assert str(folder / "frost1.png") in str(error.value)
    assert hashlib.md5(b"ice", usedforsecurity=False).hexdigest() in str(error.value)
    assert "6ead634ace1f366d77e87078b465863c" in str(error.value)


def test_an_installed_distribution_is_found_without_importing_it(tmp_path, monkeypatch):
    monkeypatch.delenv("HOLDFAST_FROST", raising=False)
    monkeypatch.setattr(room, "_DISTRIBUTION", "imaginary-corruptions")
    folder = files_of(tmp_path / "imaginary_corruptions" / "frost")
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    about = tmp_path / "imaginary_corruptions-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: imaginary-corruptions\nVersion: 1.0\n")
    rows = [f"{p.relative_to(tmp_path).as_posix()},,\n" for p in sorted(folder.iterdir())]
    (about / "RECORD").write_text("".join(rows))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_published() == folder
    monkeypatch.setenv("HOLDFAST_FROST", str(tmp_path))  # a folder that is named wins, even where it holds nothing
    assert find_published() is None


def test_published_textures_are_five_files_of_four_pictures(published):
    assert [tuple(t.shape) for t in published] == [(*size, 3) for size in SIZES]
    assert torch.equal(published[1], published[2])
    np.testing.assert_allclose(published[0].double().mean((0, 1)), [77.7, 149.1, 165.7], atol=0.05)  # red first
    table.check(PUBLISHED)
    field = draw_frost(keys(2000), (1, 1), parameters=(), parts=(0, "frost", 1))
    # A texture's first pixel tells its picture: row and column are set to 0.
    field[:, 1:] = 0
    first = crops(field, (1, 1), published)[:, 0, 0]
    counts = [int((first == t[0, 0]).all(1).sum()) for t in (published[0], published[1], published[3], published[4])]
    assert stats.chisquare(counts, np.array([1, 2, 1, 1]) * 400).pvalue > 1e-3


# -- the drawn ones ----------------------------------------------------------------------------------------------------


def test_drawn_textures_have_the_sizes_and_colours_of_the_published_ones():
    # Measured on the published files: mean and deviation of red, green and blue.
    means = [(78, 149, 166), (201, 205, 214), (201, 205, 214), (138, 153, 165), (112, 123, 135)]
    deviations = [(27, 17, 15), (21, 22, 23), (21, 22, 23), (28, 28, 30), (44, 43, 42)]
    textures = draw_textures()
    assert [tuple(t.shape) for t in textures] == [(*size, 3) for size in SIZES]
    for texture, mean, deviation in zip(textures, means, deviations, strict=True):
        assert texture.dtype == torch.uint8
        np.testing.assert_allclose(texture.double().mean((0, 1)), mean, atol=2)
        np.testing.assert_allclose(texture.double().std((0, 1)), deviation, atol=2)
    assert not torch.equal(textures[1], textures[2])
    assert draw_textures()[0] is textures[0]


def test_drawn_textures_have_grain_at_every_size_of_crop():
    pictures = [p for t in draw_textures() for p in (t, torch.from_numpy(resized(t.numpy(), 0.2)))]
    greys = [p.double().mean(2) for p in pictures]
    steps = [((g[:, 1:] - g[:, :-1]).abs().mean() / g.std()).item() for g in greys]
    # Neighbours differ by 0.36 to 0.46 deviations in the published files, and by 0.59 to 0.74 in those shrunk by 5.
    assert 0.3 < min(steps[::2]) <= max(steps[::2]) < 0.55
    assert 0.5 < min(steps[1::2]) <= max(steps[1::2]) < 0.85


def test_another_process_draws_the_same_textures():
    code = (
        "import hashlib; from holdfast.corruptions.frost import draw_textures as d;"
        "print(hashlib.sha256(b''.join(t.numpy().tobytes() for t in d())).hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    here = hashlib.sha256(b"".join(t.numpy().tobytes() for t in draw_textures())).hexdigest()
    assert other.stdout.strip() == here


def test_drawn_textures_cost_a_net_about_as_much_as_the_published_ones(published, real):
    files = real("cifar10_lossless") / "cifar-10-batches-py" / "test_batch"
    batch = np.load(files, allow_pickle=True, encoding="bytes")
    images = torch.from_numpy(batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy())
    encoder = load(real("weights") / "cifar10_resnet20.th", arch="cifar_resnet20")
    accuracies = []
    for textures in ("drawn", "published"):
        corruption = Corruption(name="frost", severity=3, variant="cifar32", textures=textures)
        found = table.corrupt(images, corruption, keys(len(images)))
        with torch.inference_mode():
            features = [encoder(rows.permute(0, 3, 1, 2).float() / 255).pooled for rows in found.split(256)]
            guessed = encoder.head(torch.cat(features)).argmax(1).tolist()
        accuracies.append(100 * np.mean(np.array(guessed) == np.array(batch[b"labels"])))
    # Measured over two seeds: 68.6 and 66.4 %, each by about a point a matter of chance.
    assert abs(accuracies[0] - accuracies[1]) < 5
    assert 55 < min(accuracies) < max(accuracies) < 78
