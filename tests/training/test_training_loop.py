"""Runs on drawn scenes: killed and continued, refused, stopped, and what they leave on disk."""

import json
import os
import signal
import subprocess
import sys

import msgspec
import pytest
import torch

from holdfast.errors import ConfigError, ConflictError, DataError, ExtraError, Interrupted, TrustError
from holdfast.models.checkpoint import load
from holdfast.train_config import TrainConfig
from holdfast.training import loop
from holdfast.training.loop import train

# On the CPU, where a run and its continuation are equal to the bit: a GPU adds gradients up in whatever order comes.
SMALL = TrainConfig(
    data="scenes", size=16, limit=70, model="cifar_resnet8", epochs=3, batch=16, dim=8, lr=3e-3, seed=5, device="cpu"
)
PER_EPOCH = (70 - 7) // 16


def _quiet(text):
    del text


def _config(out, **fields):
    return msgspec.structs.replace(SMALL, out=str(out), **fields)


def _lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def _state(out):
    state = torch.load(out / "state.pt", weights_only=True)
    assert state.pop("seconds") > 0, "how long it took so far"
    return state


def _equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed."""
    return train(_config(tmp_path_factory.mktemp("whole"), adversary="pgd", steps=2, knn_every=2), say=_quiet)


KILLED = """
import os, signal, sys, msgspec
from holdfast.train_config import TrainConfig
from holdfast.training import loop
step, taken = loop.train_step, []
def deadly(*args):
    if len(taken) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    taken.append(1)
    return step(*args)
loop.train_step = deadly
loop.train(msgspec.json.decode(sys.argv[1], type=TrainConfig))
"""


def test_a_run_killed_with_9_continues_to_the_same_bits(whole, tmp_path):
    config = _config(tmp_path, adversary="pgd", steps=2, knn_every=2, save_every=5)
    command = [sys.executable, "-c", KILLED, msgspec.json.encode(config).decode()]
    died = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert _state(tmp_path)["step"] == 5 and not (tmp_path / "encoder.safetensors").exists()
    assert _lines(tmp_path)[-1]["step"] == 7
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # a line that the dying process did not finish
    said = []
    train(config, say=said.append)
    assert said[0].endswith("at step 5 of 9")
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert _equal(_state(tmp_path), _state(whole))
    assert load(tmp_path).digest() == load(whole).digest()


DEADLY = {
    "barlow": {},
    "byol": {"hidden": 16, "adversary": "free"},
    "dino": {"hidden": 16, "small_crops": 1},
    "empssl": {"hidden": 16, "crops": 2, "adversary": "free", "optimizer": "lars"},
    "simsiam": {"adversary": "free"},
    "supcon": {"adversary": "pgd"},
    "supervised": {"adversary": "free", "dim": 0},
    "swav": {"hidden": 16, "prototypes": 4, "queue": 16},
    "trades": {"adversary": "pgd", "start": "normal", "dim": 0},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(DEADLY))
def test_every_method_killed_with_9_continues_to_the_same_bits(method, tmp_path):
    fields = {"method": method, "steps": 2, "replays": 2, "save_every": 2, **DEADLY[method]}
    whole = train(_config(tmp_path / "whole", **fields), say=_quiet)
    config = _config(tmp_path / "killed", **fields)
    command = [sys.executable, "-c", KILLED, msgspec.json.encode(config).decode()]
    died = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert _state(tmp_path / "killed")["step"] == 6
    train(config, say=_quiet)
    assert _equal(_state(tmp_path / "killed"), _state(whole))
    assert load(tmp_path / "killed").digest() == load(whole).digest()


def test_event_files_hold_what_the_metrics_hold(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = _config(tmp_path, tensorboard=True, knn_every=1)
    train(config, say=_quiet)
    seen = EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    for name in ("loss", "lr", "knn_accuracy", "effective_rank"):
        found = [(event.step, event.value) for event in seen.Scalars(name)]
        expected = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in _lines(tmp_path) if name in line]
        assert found == expected and len(found) >= 4, name


def test_event_files_without_tensorboard_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("holdfast.training.events.find_spec", lambda name: None)
    with pytest.raises(ExtraError, match="tensorboard is not installed"):
        train(_config(tmp_path / "run", tensorboard=True), say=_quiet)
    assert not (tmp_path / "run").exists()


def test_a_run_of_an_older_version_that_lacks_a_field_is_continued(tmp_path):
    config = _config(tmp_path, epochs=1)
    train(config, say=_quiet)
    older = [line for line in (tmp_path / "run.yaml").read_text().splitlines() if not line.startswith("tempera")]
    (tmp_path / "run.yaml").write_text("\n".join(older) + "\n")
    said = []
    train(config, say=said.append)
    assert "continuing" in said[0]
    with pytest.raises(ConflictError, match=r"temperature was 0.0, is 0.3"):
        train(msgspec.structs.replace(config, temperature=0.3), say=_quiet)


def test_metrics_hold_every_step_once_and_the_checks_between(whole):
    lines = _lines(whole)
    losses = [line for line in lines if "loss" in line]
    checks = [line for line in lines if "knn_accuracy" in line]
    assert [line["step"] for line in losses] == list(range(1, 3 * PER_EPOCH + 1))
    assert [line["step"] for line in checks] == [0, 2 * PER_EPOCH, 3 * PER_EPOCH]
    assert max(line["lr"] for line in losses) == SMALL.lr


def test_a_finished_run_says_so_and_changes_nothing(whole):
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    config = msgspec.yaml.decode((whole / "run.yaml").read_bytes(), type=TrainConfig)
    said = []
    assert train(config, say=said.append) == whole
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before
    assert said[-1].startswith("done")


def test_the_encoder_is_loaded_by_the_folder_and_the_card_says_what_it_is(whole):
    encoder = load(whole)
    state = _state(whole)["method"]
    assert torch.equal(encoder.trunk.conv1.weight, state["encoder.trunk.conv1.weight"])
    assert encoder.head is None and encoder.geometry.size == 16
    card = (whole / "README.md").read_text()
    for word in (
        "linf",
        "8/255",
        "2 steps",
        "63 images",
        "7 more were held out",
        "NT-Xent",
        "random weights",
        "holdfast bench",
    ):
        assert word in card, word


def test_another_config_on_the_same_folder_is_refused_with_the_difference(whole):
    config = msgspec.yaml.decode((whole / "run.yaml").read_bytes(), type=TrainConfig)
    other = msgspec.structs.replace(config, lr=1e-2, temperature=0.1)
    with pytest.raises(ConflictError, match=r"lr was 0\.003, is 0\.01; temperature was 0\.0, is 0\.1.*--replace"):
        train(other, say=_quiet)


def test_replace_starts_anew(tmp_path):
    train(_config(tmp_path, epochs=1), say=_quiet)
    train(_config(tmp_path, epochs=1, lr=1e-2, replace=True), say=_quiet)
    assert max(line["lr"] for line in _lines(tmp_path) if "lr" in line) == 1e-2
    assert len([line for line in _lines(tmp_path) if "loss" in line]) == PER_EPOCH


def test_the_first_signal_ends_the_step_saves_and_the_same_command_continues(whole, tmp_path, monkeypatch):
    step, taken = loop.train_step, []

    def interrupted(*args):
        taken.append(1)
        if len(taken) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(loop, "train_step", interrupted)
    config = _config(tmp_path, adversary="pgd", steps=2, knn_every=2)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"step 4 of 9 done\. Same command continues\."):
        train(config, say=_quiet)
    assert signal.getsignal(signal.SIGTERM) is before
    assert _state(tmp_path)["step"] == 4
    train(config, say=_quiet)
    assert len(taken) == 9
    assert _equal(_state(tmp_path), _state(whole))


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(tmp_path, monkeypatch):
    step = loop.train_step
    losses = iter([None, None, None, None, torch.tensor(float("nan"))])
    monkeypatch.setattr(loop, "train_step", lambda *args: nan if (nan := next(losses)) is not None else step(*args))
    with pytest.raises(TrustError, match="loss of step 5 is nan"):
        train(_config(tmp_path), say=_quiet)
    assert _state(tmp_path)["step"] == PER_EPOCH
    assert not (tmp_path / "encoder.safetensors").exists()


def test_other_images_under_the_same_config_are_refused(tmp_path):
    config = _config(tmp_path, epochs=1)
    train(config, say=_quiet)
    state = _state(tmp_path)
    torch.save({**state, "images": "0" * 64}, tmp_path / "state.pt")
    with pytest.raises(ConflictError, match="other images"):
        train(config, say=_quiet)


def test_images_without_labels_are_trained_on_without_a_check(tmp_path):
    from PIL import Image

    from holdfast.data.scenes import draw

    (tmp_path / "images").mkdir()
    for i in range(20):
        Image.fromarray(draw(0, "train", i, side=16).pixels).save(tmp_path / "images" / f"{i}.png")
    out = train(_config(tmp_path / "run", data=str(tmp_path / "images"), limit=0, epochs=1), say=_quiet)
    assert [sorted(line) for line in _lines(out)] == [["loss", "lr", "step"]]
    assert "no labels" in (out / "README.md").read_text()


def test_a_run_leaves_the_global_generator_alone_and_another_seed_is_another_run(whole, tmp_path):
    state = torch.get_rng_state()
    train(_config(tmp_path, adversary="pgd", steps=2, knn_every=2, seed=6, epochs=1), say=_quiet)
    assert torch.equal(torch.get_rng_state(), state)
    assert _lines(tmp_path)[1]["loss"] != _lines(whole)[1]["loss"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "simclir"}, 'Perhaps you meant "simclr"'),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch": 1}, "batch is 1"),
        ({"adversary": "pgd", "eps": 0.0}, "eps is 0"),
        ({"warmup": -1.0}, "warmup is -1"),
        (
            {"method": "barlow", "temperature": 0.2},
            "--temperature 0.2 was asked for. barlow has no temperature.*supcon",
        ),
        ({"crops": 4}, "simclr has no crops.*empssl"),
        ({"method": "empssl", "crops": 1}, "one crop has none"),
        ({"batchnorm": "dual"}, "second set of BatchNorm"),
        ({"adversary": "free", "replays": 0}, "replays is 0"),
        ({"adversary": "free", "eps": 8.0}, "Did you mean 8/255"),
        ({"device": "gpu"}, 'no device is called "gpu"'),
        ({"out": ""}, "--out"),
        ({"model": "cifar_resnet9"}, "no architecture"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_no_folder(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        train(msgspec.structs.replace(_config(tmp_path / "run"), **fields), say=_quiet)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "byol", "hidden": 16, "adversary": "free", "momentum": 0.9},
        {"method": "empssl", "hidden": 16, "crops": 2, "adversary": "free", "optimizer": "lars", "batchnorm": "dual"},
        {"method": "swav", "hidden": 16, "prototypes": 4, "queue": 16, "optimizer": "sgd", "schedule": "rewarmed"},
    ],
)
def test_what_a_method_and_an_adversary_remember_is_there_again_after_a_stop(tmp_path, monkeypatch, fields):
    whole = train(_config(tmp_path / "whole", replays=2, **fields), say=_quiet)
    step, taken = loop.train_step, []

    def interrupted(*args):
        taken.append(1)
        if len(taken) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(loop, "train_step", interrupted)
    config = _config(tmp_path / "stopped", replays=2, **fields)
    with pytest.raises(Interrupted):
        train(config, say=_quiet)
    train(config, say=_quiet)
    assert len(taken) == 9
    assert _equal(_state(tmp_path / "stopped"), _state(whole))
    assert load(tmp_path / "stopped").digest() == load(whole).digest()
    steps = 18 if fields.get("adversary") == "free" else 9
    assert f"| epochs, batch, optimizer steps | 3, 16, {steps} |" in (whole / "README.md").read_text(), "replays count"


def test_supcon_without_labels_is_refused(tmp_path):
    from PIL import Image

    for i in range(20):
        Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match=r"has no labels\. .*simclr"):
        train(_config(tmp_path / "run", data=str(tmp_path), limit=0, method="supcon"), say=_quiet)


def test_too_few_images_for_a_batch_are_refused(tmp_path):
    with pytest.raises(DataError, match="63 images do not fill a batch of 64"):
        train(_config(tmp_path / "run", batch=64), say=_quiet)
    assert not (tmp_path / "run").exists()
