"""What every corruption promises. A new one is enrolled by its line in the table and one in PARITY."""

import concurrent.futures
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from holdfast import draws
from holdfast.corruptions import table
from holdfast.records import Corruption

sys.path.append(str(Path(__file__).parents[1] / "corruptions"))

from corruption_references import photos, reference

# Share of values that may differ by one level from the reference, given the same draws; none may differ by more.
# Class A: none; B: 0.2 %; B': 10 %, where exact values are often whole levels, so that the last bit decides.
PARITY = {
    "gaussian_noise": 0.002,
    "shot_noise": 0.0,
    "impulse_noise": 0.0,
    "defocus_blur": 0.02,
    "glass_blur": 0.002,
    "motion_blur": 0.002,
    "zoom_blur": 0.002,
    "snow": 0.002,
    "frost": 0.0,
    "fog": 0.002,
    "brightness": 0.1,
    "contrast": 0.0,
    "elastic_transform": 0.005,
    "pixelate": 0.0,
    "jpeg_compression": 0.0,
    "speckle_noise": 0.002,
    "gaussian_blur": 0.002,
    "spatter": 0.002,
    "saturate": 0.1,
}
SIDES = {"imagenet224": 224, "cifar32": 32, "tiny64": 64, "inception299": 299}

every_mode = pytest.mark.parametrize("mode", table.MODES)
every_name = pytest.mark.parametrize("name", table.names())
everything = pytest.mark.parametrize(
    "corruption",
    [
        Corruption(name=n, severity=s, variant=v)
        for n in table.names()
        for v in table.variants()
        if v in table.entry(n).severities
        for s in range(1, 6)
    ],
    ids=lambda c: f"{c.name}-{c.variant}-{c.severity}",
)


def in_mode(corruption, mode):
    return msgspec.structs.replace(corruption, mode=mode)


def ids(count):
    return draws.keys([f"image{i}" for i in range(count)])


def small(count=6, height=32, width=32):
    return torch.from_numpy(photos(count, height, width))


def digest():
    """One digest over all corruptions, for the test that runs in another process."""
    parts = [
        table.corrupt(small(), Corruption(name=n, severity=4, variant="cifar32", seed=3), ids(6)).numpy().tobytes()
        for n in table.names()
    ]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def assert_parity(corruption, images):
    count = len(images)
    parameters = table.entry(corruption.name).severities[corruption.variant][corruption.severity - 1]
    field = table.fields(corruption, ids(count), *images.shape[1:3])
    rows = [None] * count if field is None else (field.double() if field.is_floating_point() else field).numpy()
    expected = np.stack([reference(corruption.name, i, parameters, f) for i, f in zip(images, rows, strict=True)])
    for mode in table.MODES:
        found = table.corrupt(torch.from_numpy(images), in_mode(corruption, mode), ids(count), field=field).numpy()
        difference = np.abs(found.astype(int) - expected)
        assert difference.max() <= (1 if PARITY[corruption.name] else 0)
        assert (difference > 0).mean() <= PARITY[corruption.name]


@everything
def test_shape_type_and_device_and_the_input_is_left_alone(corruption):
    images = small(2, 24, 40)
    before = images.clone()
    found = table.corrupt(images, corruption, ids(2))
    assert (found.dtype, found.shape, found.device) == (torch.uint8, images.shape, images.device)
    assert found.is_contiguous()
    assert torch.equal(images, before)
    assert found.data_ptr() != images.data_ptr()
    assert not torch.equal(found, images)


@everything
def test_black_white_and_extreme_fields_stay_in_range(corruption):
    images = torch.stack([torch.zeros(32, 32, 3), torch.full((32, 32, 3), 255.0)]).byte()
    images[0, 0, 0] = 255
    for mode in table.MODES:
        found = table.corrupt(images, in_mode(corruption, mode), ids(2))
        # A cast that wraps or is undefined would throw white to black. Noise and fog move white, but not beyond these.
        assert found[1].float().mean() > 60
        assert found[0].float().mean() < 200


@everything
def test_parity_with_the_reference_when_the_draws_are_given(corruption):
    side = SIDES[corruption.variant]
    assert_parity(corruption, photos(3, side, side))


@every_name
def test_parity_on_real_photos(real, name):
    files = sorted(real("imagenet_1000").rglob("*.jpg"))[:200:50]
    images = np.stack([np.asarray(Image.open(f).convert("RGB").resize((224, 224))) for f in files])
    for severity in (1, 3, 5):
        assert_parity(Corruption(name=name, severity=severity, variant="imagenet224"), images)


@everything
def test_fast_differs_from_reference_by_at_most_one_level(corruption):
    images = small(4)
    fast, exact = (table.corrupt(images, in_mode(corruption, m), ids(4)).int() for m in table.MODES)
    assert (fast - exact).abs().max() <= 1
    assert ((fast - exact) != 0).float().mean() <= max(PARITY[corruption.name], 0)


@every_name
@pytest.mark.parametrize("variant", table.variants())
def test_severity_zero_is_the_identity(name, variant):
    images = small(2)
    found = table.corrupt(images, Corruption(name=name, severity=0, variant=variant), ids(2))
    assert torch.equal(found, images)
    assert found.data_ptr() != images.data_ptr()


@every_name
@every_mode
def test_an_image_depends_on_its_key_not_on_its_batch_or_place(name, mode):
    corruption = Corruption(name=name, severity=3, variant="cifar32", mode=mode)
    images, keys = small(90), ids(90)  # more than one tile on a CPU
    whole = table.corrupt(images, corruption, keys)
    single = torch.cat([table.corrupt(images[i : i + 1], corruption, keys[i : i + 1]) for i in range(90)])
    assert torch.equal(whole, single)
    order = draws.permutation(90, "order")
    assert torch.equal(table.corrupt(images[order], corruption, keys[order]), whole[order])
    sevens = torch.cat([table.corrupt(images[i : i + 7], corruption, keys[i : i + 7]) for i in range(0, 90, 7)])
    assert torch.equal(sevens, whole)


@every_name
@every_mode
def test_memory_layout_and_threads_change_nothing(name, mode):
    corruption = Corruption(name=name, severity=3, variant="imagenet224", mode=mode)
    images, keys = small(3, 224, 224), ids(3)
    expected = table.corrupt(images, corruption, keys)
    planar = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(table.corrupt(planar, corruption, keys), expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert torch.equal(table.corrupt(images, corruption, keys), expected)
    finally:
        torch.set_num_threads(threads)


def test_other_threads_and_processes_give_the_same_pixels():
    expected = digest()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert {f.result() for f in [pool.submit(digest) for _ in range(4)]} == {expected}
    code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['digest']())"
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code, __file__], capture_output=True, text=True, check=True, env=env)
    assert other.stdout.strip() == expected


@every_name
def test_seed_key_and_severity_change_the_field_and_nothing_else_does(name):
    corruption = Corruption(name=name, severity=2, variant="cifar32")
    twice = small(1).expand(2, -1, -1, -1)
    found = table.corrupt(twice, corruption, ids(2))
    again = table.corrupt(twice, corruption, ids(2))
    assert torch.equal(found, again)
    other = table.corrupt(twice, Corruption(name=name, severity=2, variant="cifar32", seed=1), ids(2))
    random = table.entry(name).draw is not None
    assert torch.equal(found[0], found[1]) != random
    assert torch.equal(found, other) != random
    same = table.corrupt(twice, corruption, ids(1).expand(2))
    assert torch.equal(same[0], same[1])
    if random:
        field = table.fields(corruption, ids(2), 32, 32)
        for change in ({"mode": "reference"}, {"storage": "jpeg85"}):
            assert torch.equal(table.fields(msgspec.structs.replace(corruption, **change), ids(2), 32, 32), field)
        harder = table.fields(msgspec.structs.replace(corruption, severity=3), ids(2), 32, 32)
        assert harder.shape != field.shape or not torch.equal(harder, field)


@every_name
def test_a_field_drawn_ahead_gives_the_same_pixels_and_is_left_alone(name):
    corruption = Corruption(name=name, severity=5, variant="cifar32")
    images = small(3)
    field = table.fields(corruption, ids(3), 32, 32)
    if table.entry(name).draw is None:
        assert field is None
        return
    kept = field.clone()
    found = table.corrupt(images, corruption, ids(3), field=field)
    assert torch.equal(found, table.corrupt(images, corruption, ids(3)))
    assert torch.equal(field, kept)


@everything
def test_any_size_is_taken(corruption):
    for height, width in ((1, 1), (3, 50), (37, 2)):
        assert table.corrupt(small(2, 50, 50)[:, :height, :width], corruption, ids(2)).shape == (2, height, width, 3)
    assert table.corrupt(small(1)[:0], corruption, ids(0)).shape == (0, 32, 32, 3)


@every_name
def test_the_global_generator_is_left_alone(name):
    torch.manual_seed(5)
    np.random.seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    table.corrupt(small(2), Corruption(name=name, severity=3, variant="cifar32"), ids(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


@every_name
def test_a_gpu_gives_the_same_pixels(name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    images = small(4)
    for variant in table.variants():
        for severity in range(1, 6):
            corruption = Corruption(name=name, severity=severity, variant=variant)
            found = table.corrupt(images.cuda(), corruption, ids(4))
            assert found.device.type == "cuda"
            assert torch.equal(found.cpu(), table.corrupt(images, corruption, ids(4)))
