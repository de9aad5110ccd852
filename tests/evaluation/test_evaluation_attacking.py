"""The images of a block under attack: whom an attack aims at, and where it begins."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from judged_runs import small_weights
from torch import Tensor, nn

import holdfast
from holdfast import draws
from holdfast.attacks.scores import cross_entropy
from holdfast.data.batches import to_pixels
from holdfast.evaluation.attacking import attacked, compared
from holdfast.evaluation.blocks import Bench, Chunk
from holdfast.evaluation.plan import Job
from holdfast.evaluation.store import Run
from holdfast.models.checkpoint import load
from holdfast.records import Attack, Cell, Corruption, Data, Judge, Model
from holdfast.tasks.classification import Classification

N, SIDE, CLASSES, EPS = 8, 6, 5, 1e-3


class Linear(nn.Module):
    """Logits that are linear in the pixels: the best step towards a class is a sign."""

    def __init__(self) -> None:
        super().__init__()
        draw = draws.generator("linear")
        self.weight = nn.Parameter(torch.randn(CLASSES, 3 * SIDE * SIDE, generator=draw) / 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1) @ self.weight.T


def corrupted() -> tuple[Linear, Chunk, Tensor, Tensor]:
    """Images that a corruption left with their label, but with another likeliest wrong class; and both of these."""
    module = Linear()
    clean = 0.3 + 0.4 * torch.rand(200, 3, SIDE, SIDE, generator=draws.generator("clean"))
    before = (clean + 0.1 * torch.randn(clean.shape, generator=draws.generator("corruption"))).clamp(0.05, 0.95)
    first, then = (module(x).detach().argsort(1, descending=True) for x in (clean, before))
    other = (first[:, 0] == then[:, 0]) & (first[:, 1] != then[:, 1])
    at = other.nonzero().squeeze(1)[:N]
    assert len(at) == N
    ids = [f"image/{i}" for i in range(N)]
    rows = {"key": draws.keys(ids), "label": then[at, 0]}
    return module, Chunk(ids, clean[at], before[at], rows), first[at, 1], then[at, 1]


def found(attack: Attack) -> tuple[Linear, Chunk, Tensor, Tensor]:
    """What an attack made of the corrupted images, through the passes of a bench."""
    module, chunk, _, likeliest = corrupted()
    encoder, task = load(module), Classification(nn.Identity(), known=CLASSES)
    cell = Cell(
        data=Data(source="scenes"),
        stages=(Corruption(name="fog", severity=3, variant="cifar32"), attack),
        encoder=Model(spec="linear"),
        judge=Judge(task="classification", head="linear"),
    )
    bench = Bench(
        source=lambda data: pytest.fail("nothing is read"),
        encoder=lambda model: encoder,
        task=lambda cell: task,
        partner=lambda data, stage: pytest.fail("nothing is read"),
        device=torch.device("cpu"),
    )
    pixels = attacked(Job(cell.data, cell.stages, (cell,)), attack, [chunk], bench).pixels
    return module, chunk, likeliest, pixels


# -- whom it aims at ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pgd", "mpgd", "apgd"])
def test_the_likeliest_class_is_that_of_the_pixels_that_are_attacked(method: str) -> None:
    """One step towards a class goes along the sign of its row less that of the label."""
    fields = {"push": "margin", "targets": 1, "start": "zero", "steps": 1}
    module, chunk, target, pixels = found(Attack(method=method, eps=EPS, alpha=EPS, **fields))
    sign = (module.weight[target] - module.weight[chunk.rows["label"]]).sign().detach().view_as(chunk.before)
    assert torch.allclose(pixels, chunk.before + EPS * sign, atol=1e-6)


@pytest.mark.parametrize(
    "attack",
    [Attack(targets=1, push="ce"), Attack(method="fab", push="", targets=1), Attack(method="autoattack", push="")],
)
def test_every_attack_that_aims_ranks_the_pixels_that_it_begins_at(attack: Attack) -> None:
    module, chunk, clean_likeliest, likeliest = corrupted()
    task, see = Classification(nn.Identity(), known=CLASSES), lambda x: {"logits": module(x).detach()}
    ranked = compared(task, attack, chunk.clean, chunk.rows, see, before=chunk.before)["ranked"]
    assert torch.equal(ranked[:, 0], likeliest) and not (ranked[:, 0] == clean_likeliest).any()
    assert ranked.shape == (N, CLASSES - 1) and not (ranked == chunk.rows["label"][:, None]).any()
    alone = compared(task, attack, chunk.clean, chunk.rows, see)["ranked"]
    assert torch.equal(alone[:, 0], clean_likeliest), "without a corruption they are the clean ones"
    given = {**chunk.rows, "ranked": ranked.flip(1)}
    assert torch.equal(compared(task, attack, chunk.clean, given, see)["ranked"], ranked.flip(1)), "what is given wins"


# -- where FGSM begins -------------------------------------------------------------------------------------------------

FGSM = Attack(method="fgsm", eps=4 / 255)
STEP = Attack(method="pgd", eps=4 / 255, alpha=4 / 255, steps=1, start="zero")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def run(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    again = msgspec.structs.replace(FGSM, seed=7)
    return holdfast.bench(
        str(weights), out=str(tmp_path_factory.mktemp("fgsm") / "run"), data="scenes", limit=24, attack_limit=24,
        tasks=["classification"], attacks=[FGSM, STEP, again], corruptions=["none"], chunk=24, engine="eager",
        threads=1,
    )  # fmt: skip


def cell(run: Run, attack: Attack) -> str:
    settled = msgspec.structs.replace(attack, start="zero", steps=1)
    return next(r.id for r in run.results if r.cell.attack == settled)


def test_fgsm_is_one_step_of_pgd_from_the_clean_image_whatever_the_seed(run: Run) -> None:
    ours = run.outcomes(cell(run, FGSM))
    assert 0 < ours["correct"].sum() < (ours["attack_clean_score"] <= 0).sum(), "some fall, some do not"
    for other in (STEP, msgspec.structs.replace(FGSM, seed=7)):
        theirs = run.outcomes(cell(run, other))
        assert ours.keys() == theirs.keys()
        for name, values in ours.items():
            assert np.array_equal(values, theirs[name]), name
        pictures = run.gallery(cell(run, FGSM)), run.gallery(cell(run, other))
        assert np.array_equal(pictures[0]["adversarial"], pictures[1]["adversarial"])


def test_fgsm_moves_the_clean_image_along_the_sign_of_its_own_gradient(run: Run, weights: Path) -> None:
    kept = run.gallery(cell(run, FGSM))
    clean = to_pixels(torch.from_numpy(kept["clean"]).permute(0, 3, 1, 2)).requires_grad_()
    encoder = load(weights).eval()
    loss = cross_entropy(encoder.classify(encoder(clean)), torch.from_numpy(kept["label"])).sum()
    (gradient,) = torch.autograd.grad(loss, clean)
    expected = (clean.detach() + FGSM.eps * gradient.sign()).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert len(expected) > 3
    # A sign may turn where the gradient is zero but for its last digit.
    assert (np.abs(kept["adversarial"] - expected) < 1e-6).mean() > 0.999


def test_an_attack_of_a_bench_begins_at_no_given_delta(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(holdfast.errors.ConfigError, match=r'given delta.*Use start "random"'):
        holdfast.bench(str(weights), out=str(tmp_path / "run"), data="scenes", attacks=[Attack(start="given")], limit=8)
