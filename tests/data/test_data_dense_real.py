"""Real masks and real depth, where they are: CamVid's streets and the frames of one room of 7-Scenes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from holdfast.data.batches import IGNORE, batches
from holdfast.data.sources import images, open_source

Real = Callable[[str], Path]


def test_camvid_has_its_classes_and_sizes(real: Real) -> None:
    root = str(real("camvid"))
    counts = {split: len(open_source(images(root, split=split))) for split in ("train", "val", "test")}
    assert counts == {"train": 367, "val": 101, "test": 233}
    source = open_source(images(root, split="val", resize=180))
    assert (source.data.source, len(source.parts)) == ("camvid", 11)
    seen = np.zeros(256, np.int64)
    brightness = np.zeros(256)
    for batch in batches(source, size=32):
        mask = batch.rows["mask"].numpy()
        assert mask.shape[1:] == (180, 240)
        seen += np.bincount(mask.ravel(), minlength=256)
        brightness += np.bincount(mask.ravel(), batch.pixels.mean(1).numpy().ravel(), 256)
    assert set(np.flatnonzero(seen)) == {*range(11), IGNORE}
    assert 0.01 < seen[IGNORE] / seen.sum() < 0.06
    mean = brightness[:11] / seen[:11]
    assert mean.argmax() == source.parts.index("sky"), "masks belong to their pixels"
    assert mean[source.parts.index("sky")] > 1.3 * mean[source.parts.index("road")]


def test_camvid_masks_are_aligned(real: Real) -> None:
    """The edges of masks lie on edges of the images: moved by five pixels, the images change less along them."""
    source = open_source(images(str(real("camvid")), split="test", limit=40))
    here = moved = 0.0
    for i in range(40):
        pixels, truth = source.read(i)
        mask = np.asarray(truth["mask"])
        grey = pixels.mean(-1)
        change = np.abs(grey[:, 1:] - grey[:, :-1])
        edge = mask[:, 1:] != mask[:, :-1]
        here += float(change[edge].mean())
        moved += float(change[np.roll(edge, 5, 1)].mean() + change[np.roll(edge, -5, 1)].mean()) / 2
    assert here > 1.2 * moved


def test_seven_scenes_depth_in_metres(real: Real) -> None:
    root = str(real("seven_scenes"))
    sources = {split: open_source(images(root, split=split)) for split in ("train", "val", "test")}
    assert {split: len(source) for split, source in sources.items()} == {"train": 60, "val": 20, "test": 20}
    assert sources["train"].ids[-1] < sources["val"].ids[0] < sources["val"].ids[-1] < sources["test"].ids[0]
    source = sources["test"]
    assert (source.data.source, source.max_depth) == ("seven_scenes", 10.0)
    (batch,) = batches(source, size=20)
    depth = batch.rows["depth"].numpy()
    assert depth.shape == (20, 480, 640)
    measured = depth > 0
    assert 0.8 < measured.mean() < 0.99, "holes of the camera are 0"
    assert 0.5 < depth[measured].min() < depth[measured].max() < 5
    assert 1.5 < depth[measured].mean() < 2.5
