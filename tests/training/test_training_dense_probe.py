"""Dense heads on drawn scenes: what they learn, by what they are chosen, and what nobody may touch."""

import json
import math
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from holdfast.configs import BenchConfig, ProbeConfig
from holdfast.data.batches import batches
from holdfast.data.scenes import Scenes
from holdfast.data.sources import images, open_source
from holdfast.errors import CheckpointError, ConfigError, ConflictError, Interrupted, TrustError
from holdfast.evaluation.dense_judges import DenseHeads
from holdfast.models.checkpoint import load, save
from holdfast.models.dense_files import read_dense_head
from holdfast.models.encoder import Encoder
from holdfast.records import Model
from holdfast.signals import Stopping
from holdfast.tasks.segmentation import Segmentation
from holdfast.tasks.task import observe, still
from holdfast.training import dense_fit, dense_probe
from holdfast.training.dense_feed import Fresh, Kept, Seer, feed_for
from holdfast.training.dense_scores import Scores
from holdfast.training.dense_splits import parts_for
from holdfast.training.dense_views import STILL, Views
from holdfast.training.probe import probe

GOLDEN = Path(__file__).parents[1] / "golden" / "scenes_resnet8.safetensors"


def _quiet(text):
    del text


def _config(out, **fields):
    """Few, small scenes; one deep level, which costs the least. On the CPU, where two runs are equal to the bit."""
    small = {"device": "cpu", "size": 16, "limit": 32, "batch": 16, "epochs": 2, "levels": ("stage3",), "lr": 0.01}
    return ProbeConfig(encoder=str(GOLDEN), out=str(out), **{"task": "segmentation", **small, **fields})


def _report(out):
    return json.loads((out / "probe.json").read_text())


# -- what is learned ---------------------------------------------------------------------------------------------------


def test_a_linear_head_learns_to_segment_and_its_report_is_what_its_file_gives(tmp_path):
    learns = {"size": 32, "limit": 96, "epochs": 25, "levels": ()}
    out = probe(_config(tmp_path / "p", **learns), say=_quiet)
    found, read = _report(out), read_dense_head(out)
    assert found["test"]["miou"] > 2 * found["test"]["constant"]["miou"] > 0.1
    assert (found["task"], found["kind"]) == ("segmentation", "linear")
    assert found["levels"] == ["stage1", "stage2", "stage3"] and found["classes"][:2] == ["background", "disk"]
    assert found["digest_of_head"] == read.digest
    source, encoder = open_source(images("scenes", split="test", size=32, limit=96)), load(str(GOLDEN))
    assert found["test"]["digest"] == source.data.digest_of_images and found["test"]["images"] == 96
    task = Segmentation(read.head, read.parts)
    with still(encoder, task):
        counts = [observe(task, encoder, b.pixels, b.rows)["counts"] for b in batches(source, size=16)]
    within, predicted, labelled = torch.cat(counts).sum(0).double().unbind(1)
    ious = within / (predicted + labelled - within)
    assert found["test"]["miou"] == pytest.approx(float(ious.mean()), abs=1e-3)
    assert found["test"]["iou/disk"] == pytest.approx(float(ious[1]), abs=2e-3)


def test_the_file_counts_the_pixels_of_each_class_and_the_bench_weighs_by_them(tmp_path):
    out = probe(_config(tmp_path / "p", epochs=1), say=_quiet)
    read = read_dense_head(out)
    source = open_source(images("scenes", split="train", size=16, limit=32))
    masks = [torch.as_tensor(source.read(place).truth["mask"]) for place in range(32)]
    counted = torch.stack(masks).flatten().long()
    assert read.sizes == tuple(torch.bincount(counted[counted != 255], minlength=len(read.parts)).tolist())
    heads = DenseHeads(BenchConfig(segmentation_heads=(str(out),), tasks=("segmentation",)), torch.device("cpu"))
    judge = heads.judges(Model(spec="golden"), load(str(GOLDEN)), source)["segmentation"]
    assert heads.task(judge, source).sizes == read.sizes
    with pytest.raises(ConfigError, match="a file was replaced"):
        heads.task(msgspec.structs.replace(judge, digest_of_head="0" * 64), source)
    damaged = read.metadata | {"sizes": "[1, 2]"}
    save_file(read.head.state_dict(), tmp_path / "damaged.safetensors", damaged)
    with pytest.raises(CheckpointError, match="changed after it was saved"):
        read_dense_head(tmp_path / "damaged.safetensors")


def test_depth_is_better_than_the_best_constant(tmp_path):
    learns = {"size": 32, "limit": 48, "batch": 8, "epochs": 8, "lr": 5e-3, "levels": ("stage2", "stage3")}
    out = probe(_config(tmp_path / "p", task="depth", **learns), say=_quiet)
    found = _report(out)
    assert found["test"]["rmse"] < 0.85 * found["test"]["constant"]["rmse"]
    assert (found["kind"], found["outputs"], found["far"], found["near"]) == ("bins", 256, 10.0, 0.001)
    assert "classes" not in found and read_dense_head(out).parts == ()
    assert found["test"]["constant"]["rmse"] <= 3.0 and 0 < found["test"]["delta1"] < 1


@pytest.mark.parametrize(("task", "kind"), [("segmentation", "upernet"), ("segmentation", "dpt"), ("depth", "dpt")])
def test_every_kind_can_be_fitted_on_crops(tmp_path, task, kind):
    fields = {"augment": "crop", "crop_size": 8, "limit": 16, "batch": 8, "epochs": 1, "width": 8, "lr": 1e-3}
    found = _report(probe(_config(tmp_path / "p", task=task, kind=kind, **fields), say=_quiet))
    assert found["kind"] == kind and not found["fit"]["kept"]
    assert math.isfinite(found["test"]["miou" if task == "segmentation" else "rmse"])


# -- the same every time -----------------------------------------------------------------------------------------------


def test_two_runs_are_equal_to_the_bit_whether_features_are_kept_or_not(tmp_path, monkeypatch):
    state = torch.get_rng_state()
    first, again = (probe(_config(tmp_path / name), say=_quiet) for name in "ab")
    monkeypatch.setattr(dense_probe, "KEPT", 0)
    fresh = probe(_config(tmp_path / "c"), say=_quiet)
    other = probe(_config(tmp_path / "d", seed=1), say=_quiet)
    reports = [_report(out) for out in (first, again, fresh, other)]
    assert [report["fit"]["kept"] for report in reports] == [True, True, False, False]
    heads = [report["digest_of_head"] for report in reports]
    assert heads[0] == heads[1] == heads[2] != heads[3]
    assert reports[0]["test"] == reports[1]["test"] == reports[2]["test"]
    assert torch.equal(torch.get_rng_state(), state)


def test_one_window_that_covers_the_image_changes_nothing_and_several_are_fitted_through(tmp_path):
    plain = _report(probe(_config(tmp_path / "a"), say=_quiet))
    one = _report(probe(_config(tmp_path / "b", window=16), say=_quiet))
    several = _report(probe(_config(tmp_path / "c", window=12, stride=4, epochs=1), say=_quiet))
    assert one["digest_of_head"] == plain["digest_of_head"] and one["test"] == plain["test"]
    assert not several["fit"]["kept"] and several["digest_of_head"] != plain["digest_of_head"]


def _seer(batch=8, task="segmentation"):
    encoder, config = load(str(GOLDEN)), _config("none", task=task, limit=20)
    parts = parts_for(config, encoder.geometry)
    return Seer(encoder, dense_probe._task(encoder, parts, config), batch), parts


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_kept_and_fresh_features_and_truth_are_the_same_whatever_is_flipped(task):
    seer, parts = _seer(task=task)
    places, views = torch.tensor([5, 3, 17, 0, 19, 2, 11, 8, 7]), Views("flip", seed=2)
    kept, fresh = Kept(seer, parts.train, views), Fresh(seer, parts.train, views)
    assert kept.held > 0 and isinstance(feed_for(seer, parts.train, views, most=kept.held), Kept)
    assert isinstance(feed_for(seer, parts.train, views, most=kept.held - 1), Fresh)
    with torch.no_grad(), still(seer.encoder, seer.task):
        for epoch in (0, 1):
            for a, b in zip(kept.sights(places, epoch), fresh.sights(places, epoch), strict=True):
                assert a.rows.keys() - {"label"} == b.rows.keys() - {"label"}
                assert all(torch.equal(a.rows[name], b.rows[name]) for name in a.rows)
                assert all(torch.equal(value, b.out()[name]) for name, value in a.out().items())


def test_nothing_is_random_where_a_head_is_tried():
    seer, parts = _seer()
    fresh = Fresh(seer, parts.val, STILL)
    with torch.no_grad(), still(seer.encoder, seer.task):
        first, later = ([s.out()["logits"] for s in fresh.sights(torch.arange(20), epoch)] for epoch in (0, 9))
    assert all(torch.equal(a, b) for a, b in zip(first, later, strict=True))
    once, twice = (dense_probe.measured(seer.encoder, seer.task, parts.val, 8).metrics() for _ in range(2))
    assert once == twice


def test_a_class_that_never_occurs_has_no_iou(tmp_path):
    out = probe(_config(tmp_path / "p", limit=16, classes="disk,star", val_share=0.5, epochs=1), say=_quiet)
    assert {name for name in _report(out)["test"] if name.startswith("iou/")} == {
        "iou/background",
        "iou/disk",
        "iou/star",
    }


# -- what chooses, and what is not touched -----------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "values", "best"), [("segmentation", [1, 5, 5, 2], 2), ("depth", [4, 3, 1, 9], 3)])
def test_the_head_is_the_best_by_validation_and_not_the_last(tmp_path, monkeypatch, task, values, best):
    left, seen = list(values), []

    def chosen_by(scores):
        assert not scores.task.head.training
        seen.append({name: t.clone() for name, t in scores.task.head.state_dict().items()})
        return float(left.pop(0))

    monkeypatch.setattr(Scores, "chosen_by", chosen_by)
    out = probe(_config(tmp_path / "p", task=task, epochs=4), say=_quiet)
    assert not left and _report(out)["fit"]["chosen_at_step"] == 2 * best
    kept = read_dense_head(out).head.state_dict()
    equal = [all(torch.equal(kept[name], t) for name, t in weights.items()) for weights in seen]
    assert equal == [place == best - 1 for place in range(4)]


def test_test_images_are_read_once_each_and_after_everything_else(tmp_path, monkeypatch):
    order, plain = [], Scenes.read

    def read(source, i):
        order.append((source.data.split, i))
        return plain(source, i)

    monkeypatch.setattr(Scenes, "read", read)
    monkeypatch.setattr(dense_probe, "KEPT", 0)
    probe(_config(tmp_path / "p"), say=_quiet)
    first = next(place for place, (split, _) in enumerate(order) if split == "test")
    assert order[first:] == [("test", i) for i in range(32)]
    assert {split for split, _ in order[:first]} == {"train", "val"}


def test_the_encoder_is_left_as_it_was(tmp_path, monkeypatch):
    encoder = load(str(GOLDEN)).train()
    digest = encoder.digest()
    monkeypatch.setattr(dense_probe, "load", lambda *_, **__: encoder)
    probe(_config(tmp_path / "p"), say=_quiet)
    assert encoder.digest() == digest and all(part.training for part in encoder.modules())
    assert all(p.requires_grad and p.grad is None for p in encoder.parameters())


def test_an_encoder_that_writes_into_itself_is_not_believed(tmp_path, monkeypatch):
    encoder = load(str(GOLDEN))

    def restless(part, *_):
        part.weight.add_(1e-3)

    encoder.trunk.bn1.register_forward_hook(restless)
    monkeypatch.setattr(dense_probe, "load", lambda *_, **__: encoder)
    with pytest.raises(TrustError, match="changed"):
        probe(_config(tmp_path / "p"), say=_quiet)
    assert not (tmp_path / "p" / "head.safetensors").exists() and not (tmp_path / "p" / "probe.json").exists()


# -- the folder --------------------------------------------------------------------------------------------------------


def test_the_same_command_again_does_nothing_and_says_so(tmp_path, monkeypatch):
    out = probe(_config(tmp_path / "p"), say=_quiet)
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert set(before) == {"head.safetensors", "probe.json", "metrics.jsonl", "run.yaml"}
    said = []
    monkeypatch.setattr(dense_probe, "fit_dense", None)
    assert probe(_config(tmp_path / "p"), say=said.append) == out
    assert len(said) == 1 and said[0].startswith("done")
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before


def test_another_config_or_other_weights_are_not_taken_for_this_one(tmp_path):
    path = tmp_path / "encoder.safetensors"
    shutil.copy(GOLDEN, path)
    config = _config(tmp_path / "p").__class__
    given = {"encoder": str(path), "task": "segmentation", "out": str(tmp_path / "p"), "size": 16, "limit": 16}
    given |= {"levels": ("stage3",), "epochs": 1}
    out = probe(config(**given), say=_quiet)
    head = _report(out)["digest_of_head"]
    with pytest.raises(ConflictError, match="width was 64, is 32"):
        probe(config(**given, width=32), say=_quiet)
    path.unlink()
    save(load("random:cifar_resnet8:5"), path)
    with pytest.raises(ConflictError, match="encoder f5d6811c1dc7, now"):
        probe(config(**given), say=_quiet)
    probe(config(**given, replace=True), say=_quiet)
    assert _report(out)["digest_of_encoder"] == load(str(path)).digest() and _report(out)["digest_of_head"] != head


def test_a_fit_that_is_stopped_goes_on_to_the_same_head(tmp_path, monkeypatch):
    whole = _report(probe(_config(tmp_path / "whole", epochs=3), say=_quiet))
    checks, plain = iter(range(100)), Stopping.check

    def stop(stopping, done):
        if next(checks) == 2:  # in the middle of the second epoch
            raise Interrupted(done)
        plain(stopping, done)

    monkeypatch.setattr(Stopping, "check", stop)
    with pytest.raises(Interrupted, match="step 3 of 6 done"):
        probe(_config(tmp_path / "p", epochs=3), say=_quiet)
    assert {file.name for file in (tmp_path / "p").iterdir()} == {"run.yaml", "state.pt", "metrics.jsonl"}
    said = []
    found = _report(probe(_config(tmp_path / "p", epochs=3), say=said.append))
    assert any("continuing" in line and "step 3 of 6" in line for line in said)
    assert found["digest_of_head"] == whole["digest_of_head"] and found["test"] == whole["test"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "p" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]


def test_a_state_of_another_encoder_is_not_continued(tmp_path):
    identity = {"encoder": "a" * 64, "images": "b" * 64}
    dense_fit.resume.save_state(tmp_path, identity)
    assert dense_fit.foreign(tmp_path, identity) == ""
    assert "another encoder" in dense_fit.foreign(tmp_path, {**identity, "encoder": "c" * 64})
    assert "other images" in dense_fit.foreign(tmp_path, {**identity, "images": "c" * 64})
    assert dense_fit.foreign(tmp_path / "nowhere", identity) == ""


def test_a_loss_that_is_no_number_leaves_no_head(tmp_path, monkeypatch):
    monkeypatch.setattr(dense_fit, "loss", lambda task, out, rows: out["logits"].sum() * torch.nan)
    with pytest.raises(TrustError, match="not finite after step 1"):
        probe(_config(tmp_path / "p"), say=_quiet)
    assert {file.name for file in (tmp_path / "p").iterdir()} == {"run.yaml"}


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"level": "stage1"}, "--levels stage1"),
        ({"crop_size": 8}, "--augment crop"),
        ({"augment": "crop", "crop_size": 40}, "--crop-size 16"),
        ({"val_share": 1.0}, "--val-share"),
        ({"iterations": -1}, "--iterations"),
        ({"stride": 4}, "no window"),
        ({"kind": "bins"}, 'no head "bins" for segmentation'),
        ({"levels": ("stage9",)}, 'no map at "stage9"'),
        ({"cls": "yes"}, "no class token"),
        ({"width": 0}, "--width"),
    ],
)
def test_what_cannot_be_fitted_is_refused(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        probe(_config(tmp_path / "p", **fields), say=_quiet)
    assert not (tmp_path / "p" / "head.safetensors").exists()


def test_a_field_of_dense_heads_is_not_passed_over_by_a_linear_one(tmp_path):
    for fields, message in (({"kind": "upernet"}, "kind upernet says nothing"), ({"levels": ("a", "b")}, "levels a b")):
        with pytest.raises(ConfigError, match=rf"{message}.*--task segmentation"):
            probe(ProbeConfig(encoder=str(GOLDEN), out=str(tmp_path / "p"), **fields), say=_quiet)


def test_an_encoder_that_shows_vectors_alone_is_refused(tmp_path, monkeypatch):
    flat = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)))
    monkeypatch.setattr(dense_probe, "load", lambda *_, **__: flat)
    with pytest.raises(ConfigError, match="no map"):
        probe(_config(tmp_path / "p", levels=()), say=_quiet)
