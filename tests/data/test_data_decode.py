"""From a file to RGB bytes; resize and crop as torchvision has them."""

from __future__ import annotations

from pathlib import Path

import data_trees as trees
import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from holdfast.data.decode import decode, fit, fitted_shape, header
from holdfast.errors import DataError


@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (64, 64), (500, 375), (33, 100), (31, 32)])
@pytest.mark.parametrize(("resize", "size"), [(32, 32), (40, 32), (33, 20), (0, 31), (64, 0), (31, 30), (0, 0)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_torchvisions_resize_and_crop(shape: tuple[int, int], resize: int, size: int, interpolation: str) -> None:
    pixels = trees.noise(*shape, 3)
    image = Image.fromarray(pixels)
    if resize:
        image = Resize(resize, InterpolationMode(interpolation))(image)
    if size:
        image = CenterCrop(size)(image)
    fitted = fit(pixels, resize=resize, size=size, interpolation=interpolation)  # type: ignore[arg-type]
    assert np.array_equal(fitted, np.asarray(image))
    assert fitted_shape(shape, resize=resize, size=size) == fitted.shape[:2]


def test_a_crop_is_never_padded() -> None:
    with pytest.raises(DataError, match=r"crop of 33 pixels.*cat\.png is 32x40 pixels.*--resize 33"):
        fit(trees.noise(32, 40, 3), resize=0, size=33, interpolation="bilinear", name="cat.png")


def test_modes_become_rgb(tmp_path: Path) -> None:
    grey = trees.noise(5, 7)
    colour = trees.noise(5, 7, 3)
    alpha = np.dstack([colour, trees.noise(5, 7, seed=1)])
    three = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(decode(str(trees.save(tmp_path / "rgb.png", colour))), colour)
    assert np.array_equal(decode(str(trees.save(tmp_path / "l.png", grey))), three)
    assert np.array_equal(decode(str(trees.save(tmp_path / "rgba.png", alpha))), colour)
    grey_alpha = np.dstack([grey, alpha[..., 3]])
    assert np.array_equal(decode(str(trees.save(tmp_path / "la.png", grey_alpha))), three)
    Image.fromarray(grey > 127).save(tmp_path / "one.png")
    assert np.array_equal(decode(str(tmp_path / "one.png")), np.where(three > 127, 255, 0))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_keep_the_high_byte(tmp_path: Path, order: str) -> None:
    values = np.array([[0, 255, 256, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values.astype(order)).save(tmp_path / "deep.tif")
    expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    assert np.array_equal(decode(str(tmp_path / "deep.tif")), expected)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.array_equal(decode(str(tmp_path / "deep.png")), expected)


def test_floating_point_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"f\.tif .*mode F"):
        decode(str(tmp_path / "f.tif"))


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 255, 128, 0])])
def test_palettes_are_looked_up(tmp_path: Path, transparency: int | bytes | None) -> None:
    image = Image.new("P", (4, 1))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 8, 7])
    image.putdata([0, 1, 2, 3])
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "p.png", **options)
    assert decode(str(tmp_path / "p.png")).tolist() == [[[0, 0, 0], [255, 0, 0], [0, 255, 0], [9, 8, 7]]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg")
    red = decode(str(tmp_path / "c.jpg"))[4, 4]
    assert red[0] > 240
    assert red[1:].max() < 40


def test_orientation_in_exif_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = trees.noise(4, 9, 3)
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(decode(str(tmp_path / "turned.png")), pixels)
    assert header(str(tmp_path / "turned.png")) == (4, 9)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".bmp"])
def test_a_file_cut_short_is_named(tmp_path: Path, ending: str) -> None:
    path = trees.save(tmp_path / f"half{ending}", trees.noise(64, 64, 3))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"half\{ending} cannot be read as an image"):
        decode(str(path))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_file_that_is_no_image_is_named_by_its_header(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"page\.jpg cannot be read as an image.*[Rr]eplace the file"):
        header(str(path))


def test_a_file_that_is_not_there_is_said_to_be_missing_beside_the_nearest(tmp_path: Path) -> None:
    trees.save(tmp_path / "rose_1.png", trees.noise(4, 4, 3))
    (tmp_path / "rose_2.txt").write_text("no image")
    with pytest.raises(DataError) as caught:
        decode(str(tmp_path / "rose_2.png"))
    said = f'{tmp_path / "rose_2.png"} does not exist. Perhaps you meant "{tmp_path / "rose_1.png"}".'
    assert str(caught.value) == said
    for path in (tmp_path / "zebra.png", tmp_path / "no folder" / "rose_1.png"):
        with pytest.raises(DataError) as caught:
            header(str(path))
        assert str(caught.value) == f"{path} does not exist. Check the path."


def test_a_folder_in_the_place_of_an_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path} is a folder, not an image\. .*--data {tmp_path}\."):
        decode(str(tmp_path))


def test_a_reason_has_no_number_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: str) -> None:
        raise PermissionError(13, "Permission denied", file)

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image: Permission denied\. Replace"):
        decode(str(tmp_path / "a.png"))
