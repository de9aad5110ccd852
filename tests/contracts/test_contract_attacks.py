"""What every attack promises, on every task: a new method or task is enrolled by its registry."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
import torch

from holdfast import draws, records
from holdfast.attacks.balls import BALLS
from holdfast.attacks.cascade import cascade
from holdfast.attacks.methods import METHODS, build
from holdfast.models.encoder import Encoder
from holdfast.tasks.classification import Classification
from holdfast.tasks.embedding import Embedding, bank
from holdfast.tasks.task import Task, seer, victim

EPS = {"linf": 4 / 255, "l2": 0.5, "l1": 4.0}
STEPS = {"square": 60, "noise": 20, "fgsm": 1}
N = 12


@pytest.fixture
def encoder() -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 6, 3, 2)
        )
        return Encoder(trunk, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(N, 3, 16, 16, generator=draws.generator("contract"))


def tasks(encoder: Encoder, images: torch.Tensor) -> dict[str, tuple[Task, str]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        head = torch.nn.Linear(6, 3)
    with torch.no_grad():
        vectors = encoder.eval().vector(images)
    known = Embedding(bank(vectors, draws.keys([str(i) for i in range(N)]), None))
    return {
        **{f"classification/{push}": (Classification(head, known=3), push) for push in Classification().pushes},
        **{f"embedding/{push}": (known, push) for push in known.pushes},
    }


def cases() -> Iterator[tuple[str, str, str]]:
    """Every method on every harm that it can raise, in every ball that it knows."""
    for name, method in METHODS.items():
        for norm in method.norms:
            if "classification" in method.through:
                pushes = ("own",) if method.pushes else ("ce", "margin", "dlr")
                yield from ((name, norm, f"classification/{push}") for push in pushes)
            if "embedding" in method.through:
                pushes = ("own",) if method.pushes else tuple(Embedding().pushes)[:3]
                yield from ((name, norm, f"embedding/{push}") for push in pushes)


@pytest.mark.parametrize(("method", "norm", "case"), list(cases()))
def test_every_attack_keeps_its_promises(
    method: str, norm: str, case: str, encoder: Encoder, images: torch.Tensor
) -> None:
    through, push = case.split("/")
    task = next(task for name, (task, _) in tasks(encoder, images).items() if name.startswith(through))
    record = records.Attack(
        method=method, through=through, push=push, norm=norm, eps=EPS[norm], steps=STEPS.get(method, 5)
    )
    members = build(msgspec.structs.replace(record, restarts=2), classes=task.classes)
    encoder.train()
    encoder.trunk[1].eval()
    encoder.trunk[0].weight.requires_grad_(False)
    encoder.trunk[3].weight.grad = torch.ones_like(encoder.trunk[3].weight)
    before, rng = snapshot(encoder), torch.get_rng_state()
    rows = {"key": draws.keys([str(i) for i in range(N)]), "eps": torch.full((N,), EPS[norm])}
    rows["label"] = torch.arange(N) % 3
    with torch.no_grad(), victim(encoder, task, members[0].push) as harm:
        out = harm.see(images)
        truth = task.truth(images, {**rows, **task.aims(out, rows, seed=0)}, harm.see)
        clean = harm.score(out, truth)
        found = cascade(members, harm, task.pushes, images, truth, slots=8, stop="never")
    pixels, score = found.pixels, found.score
    assert float(BALLS[norm].norm(pixels - images).max()) <= EPS[norm] + 1e-6
    assert float(pixels.min()) >= 0 and float(pixels.max()) <= 1
    assert bool((score >= clean - 1e-6).all()), "better for the defender than the clean image"
    assert float((score - clean).mean()) > 1e-4, "the attack does nothing"
    assert torch.equal(torch.get_rng_state(), rng), "the global generator moved"
    for (name, one), (_, two) in zip(before, snapshot(encoder), strict=True):
        assert one[:3] == two[:3] and torch.equal(one[3], two[3]), f"{name} changed"
        assert (one[4] is None) == (two[4] is None), f"{name} has another gradient"
        assert one[4] is None or torch.equal(one[4], two[4]), f"a gradient leaked into {name}"


def _copy(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None else gradient.clone()


def snapshot(encoder: Encoder) -> list[tuple[str, tuple]]:
    """Modes, flags, values and gradients of everything in a module."""
    modes = [(name, (part.training, 0, 0, torch.zeros(()), None)) for name, part in encoder.named_modules()]
    weights = [
        (name, (p.requires_grad, p.dtype, id(p), p.detach().clone(), _copy(p.grad)))
        for name, p in encoder.named_parameters()
    ]
    buffers = [(name, (False, b.dtype, 0, b.clone(), None)) for name, b in encoder.named_buffers()]
    return modes + weights + buffers


PUSHES = [
    *(f"classification/{push}" for push in Classification().pushes),
    *(f"embedding/{p}" for p in Embedding().pushes),
]


@pytest.mark.parametrize("case", PUSHES)
def test_every_push_is_separable(case: str, encoder: Encoder, images: torch.Tensor) -> None:
    """Number i depends on image i alone: the gradient of the first number is zero on all other images."""
    task, push = tasks(encoder, images)[case]
    encoder.eval()
    rows = {"key": draws.keys([str(i) for i in range(N)]), "label": torch.arange(N) % 3}
    rows["target"] = (rows["label"] + 1) % 3
    truth = task.truth(images, rows, seer(encoder, task))
    x = (images + 0.01).clamp(0, 1).requires_grad_()
    value = task.pushes[push](seer(encoder, task)(x), truth, torch.zeros(N))
    assert value.shape == (N,)
    (gradient,) = torch.autograd.grad(value[0], x)
    assert float(gradient[0].abs().max()) > 0 and float(gradient[1:].abs().max()) == 0


def test_a_harm_that_fails_leaves_no_trace(encoder: Encoder, images: torch.Tensor) -> None:
    encoder.train()
    before = snapshot(encoder)

    def interrupted() -> Iterator[None]:
        with victim(encoder, Classification(torch.nn.Linear(6, 3)), "ce") as harm:
            harm.see(images)
            raise KeyError("in the middle")
        yield

    with pytest.raises(KeyError):
        next(interrupted())
    for (name, one), (_, two) in zip(before, snapshot(encoder), strict=True):
        assert one[:3] == two[:3] and torch.equal(one[3], two[3]), name
