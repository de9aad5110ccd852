"""Two processes that share a batch against one that has all of it: weights, statistics, perturbations, codes."""

import copy
import os
import socket
import subprocess
import sys

import msgspec
import pytest
import torch
from torch import nn

from holdfast.errors import ConfigError
from holdfast.train_config import TrainConfig
from holdfast.training import loop, ranks
from holdfast.training.batchnorm import SyncedBatchNorm, synced

STEPS = 10
TRAIN = """
import sys, msgspec, torch
torch.set_num_threads(1)
from holdfast.train_config import TrainConfig
from holdfast.training import loop
for config in msgspec.json.decode(sys.argv[1], type=list[TrainConfig]):
    loop.train(config, say=lambda line: None)
"""
FIELDS = {
    "barlow": {"dim": 16},
    "byol": {"dim": 8, "hidden": 16, "momentum": 0.9},
    "dino": {"dim": 16, "hidden": 16, "momentum": 0.9, "small_crops": 1},
    "empssl": {"dim": 8, "hidden": 16, "crops": 3},
    "simclr": {"dim": 8},
    "simsiam": {"dim": 16},
    "supcon": {"dim": 8},
    "swav": {"dim": 8, "hidden": 16, "prototypes": 6, "queue": 16},
    "supervised": {},
    "trades": {},
    "harden": {"model": "random:cifar_resnet8"},
}


def _port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _run(configs, world):
    """The runs, one after the other, in `world` processes, as torchrun starts them."""
    command = [sys.executable, "-c", TRAIN, msgspec.json.encode(configs).decode()]
    port, started = _port(), []
    for rank in range(world):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": 1}
        env = {**os.environ, **{name: str(value) for name, value in place.items()}}
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=400)[1] for process in started]
    assert [process.returncode for process in started] == [0] * world, said


def _config(name, out, **fields):
    plain = {"data": "scenes", "size": 16, "limit": 45, "model": "cifar_resnet8", "epochs": 5, "batch": 16, "seed": 5}
    # Steps so small that no ReLU is flipped by rounding, which would move a gradient by 1e-4 of it and the next step
    # further; a gradient over the wrong images differs by all of it, in the momentum and in the perturbation.
    small = {"optimizer": "sgd", "lr": 1e-8 if name == "empssl" else 1e-6, "device": "cpu", "threads": 1}
    ball = {"norm": "l2", "eps": 0.25, "alpha": 0.002}
    fields = {"steps": 2, "replays": 2, **ball, **fields}
    return TrainConfig(method=name, out=str(out), **{**plain, **small, **FIELDS[name], **fields})


def _pairs(one, two, at=""):
    """Tensors of both, in the order of the first, with their names."""
    if isinstance(one, torch.Tensor):
        yield at, one, two
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for name in one:
            yield from _pairs(one[name], two[name], f"{at}.{name}")


PAIRED = [
    ("simclr", "pgd"),
    ("empssl", "free"),
    ("barlow", "none"),
    ("swav", "none"),
    ("dino", "free"),
    ("byol", "pgd"),
    ("simsiam", "free"),
    ("supcon", "pgd"),
    ("supervised", "none"),
    ("trades", "pgd"),
    ("harden", "pgd"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Every run in two processes, and the folder of each."""
    out = tmp_path_factory.mktemp("shared")
    _run([_config(name, out / name, adversary=adversary) for name, adversary in PAIRED], 2)
    return out


@pytest.mark.parametrize(("name", "adversary"), PAIRED)
def test_two_processes_train_as_one_on_the_joined_batch(name, adversary, shared, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loop.train(_config(name, tmp_path, adversary=adversary), say=lambda line: None)
    torch.set_num_threads(threads)
    alone, joined = (torch.load(out / "state.pt", weights_only=True) for out in (tmp_path, shared / name))
    assert alone["step"] == joined["step"] == STEPS
    pairs = [(at, *two) for part in ("method", "adversary") for at, *two in _pairs(alone[part], joined[part])]
    assert len(pairs) > 20
    for at, one, two in pairs:
        far = (one.float() - two.float()).abs() > 1e-5 + 1e-4 * one.float().abs()
        assert float(far.float().mean()) <= (2e-2 if at.startswith(".delta") else 0), (
            at,
            float((one - two).abs().max()),
        )
    momenta = [
        (state["momentum_buffer"], joined["optimizer"]["state"][place]["momentum_buffer"])
        for place, state in alone["optimizer"]["state"].items()
    ]
    apart = sum(float((one - two).square().sum()) for one, two in momenta)
    assert apart <= 1e-4 * sum(float(one.square().sum()) for one, _ in momenta)
    if adversary == "free":
        assert all(float(delta.flatten(1).norm(dim=1).min()) > 0.01 for delta in alone["adversary"]["delta"].values())


def test_the_same_number_of_processes_gives_the_same_bits(tmp_path):
    """At rates at which a run is worth something."""
    names = ("empssl", "free"), ("simclr", "pgd")
    fields = {"optimizer": "adamw", "lr": 1e-3, "norm": "linf", "eps": 8 / 255, "alpha": 0.01}
    configs = [
        msgspec.structs.replace(_config(name, tmp_path / f"{name}{again}", adversary=adversary), **fields)
        for name, adversary in names
        for again in (1, 2)
    ]
    _run(configs, 2)
    for name, _ in names:
        one, two = (torch.load(tmp_path / f"{name}{again}" / "state.pt", weights_only=True) for again in (1, 2))
        pairs = [
            (at, *pair) for part in ("method", "optimizer", "adversary") for at, *pair in _pairs(one[part], two[part])
        ]
        assert len(pairs) > 40 and all(torch.equal(a, b) for _, a, b in pairs)


def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch):
    monkeypatch.setattr(loop, "world", lambda: 3)
    with pytest.raises(ConfigError, match=r"16 cannot be divided among 3.*--batch 15"):
        loop._check_batch(_config("simclr", "out"), None)


def test_shared_batchnorm_alone_is_the_plain_one():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5))
    x = torch.rand(6, 3, 4, 4)
    shared = synced(copy.deepcopy(plain))
    assert [type(part) for part in shared if "Norm" in type(part).__name__] == [SyncedBatchNorm] * 2
    for mode in (True, False):
        a, b = plain.train(mode)(x), shared.train(mode)(x)
        assert torch.allclose(a, b, atol=1e-5)
    for (name, one), two in zip(plain.state_dict().items(), shared.state_dict().values()):
        assert torch.allclose(one, two, atol=1e-5), name
    assert plain.state_dict().keys() == shared.state_dict().keys()


def test_a_batchnorm_that_cannot_be_shared_is_refused():
    class Other(nn.BatchNorm2d):
        pass

    with pytest.raises(ConfigError, match="1 is a Other"):
        synced(nn.Sequential(nn.Conv2d(3, 4, 1), Other(4)))


def test_alone_nothing_is_gathered():
    x = torch.rand(3)
    assert ranks.world() == 1 and ranks.rank() == 0
    assert ranks.gathered(x) is x and ranks.summed(x) is x
    assert ranks.anyone(True) and not ranks.anyone(False)
