"""imagecorruptions 1.1.2 beside the package: its stored images and draws, and, where it is installed, at 224 pixels.

See `make_peer_fixtures.py` for what is compared, how the draws were found, and why snow, frost and the elastic
transformation are not.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from corruption_references import photos
from make_peer_fixtures import ALIKE, FILE, SHARES, as_field, of_peer, parameters_for, rarer_than_words, replayed
from PIL import features

from holdfast.corruptions import table

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import imagecorruptions_peer

every_severity = pytest.mark.parametrize("severity", range(1, 6))
every_name = pytest.mark.parametrize("name", SHARES)


@pytest.fixture(scope="module")
def held():
    with np.load(FILE) as file:
        return dict(file)


def ours(name, severity, image, field, mode):
    """As `table.corrupt` does it, but with the map of fog as large as the peer's."""
    drawn = {} if field is None else {"field": torch.from_numpy(field)[None]}
    levels = table.entry(name).apply(
        torch.from_numpy(image)[None], parameters_for(name, severity, image), mode=mode, **drawn
    )
    return levels.clamp(0, 255).to(torch.uint8)[0].numpy()


def assert_near(name, severity, image, field, expected):
    """In both modes. The stored image has so few values that chance is allowed for: three standard deviations."""
    allowed = SHARES[name] * image.size + 3 * np.sqrt(SHARES[name] * image.size)
    for mode in table.MODES:
        difference = np.abs(ours(name, severity, image, field, mode).astype(int) - expected)
        assert difference.max() <= (1 if SHARES[name] else 0)
        assert (difference > 0).sum() <= allowed


def drawn(held, name, severity):
    """The peer's draws as the file holds them."""
    name = ALIKE.get(name, name)
    keys = (f"{name}.field", f"{name}.{severity}.field", f"{name}.{severity}.counts")
    return next((held[key] for key in keys if key in held), None)


@every_severity
@every_name
def test_the_peers_stored_image_from_the_peers_draws(held, name, severity):
    if name == "spatter":
        pytest.importorskip("cv2")
    if name == "jpeg_compression" and features.version("libjpeg_turbo") != held["libjpeg"]:
        pytest.skip(f"the JPEG files were made with libjpeg-turbo {held['libjpeg']}")
    field = as_field(name, drawn(held, name, severity), severity, held["image"])
    assert (field is None) == (table.entry(name).draw is None)
    assert_near(name, severity, held["image"], field, held[name][severity - 1])


@every_name
def test_the_stored_images_are_far_from_the_clean_one_and_from_other_severities(held, name):
    """Else a wrong severity, or none, would go unseen."""
    images = np.stack([held["image"], *held[name]]).astype(int)
    for a in range(6):
        for b in range(a):
            assert (np.abs(images[a] - images[b]) > 1).mean() > 0.01


@every_severity
@every_name
def test_the_peer_at_its_own_size(name, severity):
    pytest.importorskip("skimage")
    pytest.importorskip("cv2")
    if not imagecorruptions_peer.version():
        pytest.skip("imagecorruptions is not installed")
    side = 96 if name == "glass_blur" else 224  # which the peer does pixel by pixel
    (image,) = photos(1, side, side)
    expected = of_peer(name, severity, image, seed=severity)
    draws = replayed(name, severity, image, seed=severity)
    field = as_field(name, draws, severity, image)
    if name == "shot_noise":
        rare = rarer_than_words(draws, image / 255 * parameters_for(name, severity, image)[0])
        assert rare.mean() < 1e-4
        expected = np.where(rare, ours(name, severity, image, field, "reference"), expected)
    assert_near(name, severity, image, field, expected)


def test_a_missing_peer_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions.corruptions", None)
    imagecorruptions_peer.repaired.cache_clear()
    with pytest.raises(imagecorruptions_peer.PeerMissingError, match=r'pip install "imagecorruptions==1\.1\.2"'):
        imagecorruptions_peer.peer("fog", np.zeros((32, 32, 3), np.uint8), 1)
