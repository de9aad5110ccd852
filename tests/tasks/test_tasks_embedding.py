"""Drift, quantiles, flips and kNN on embeddings whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch

from holdfast import draws, records
from holdfast.attacks.balls import Linf
from holdfast.attacks.board import laid
from holdfast.attacks.cascade import cascade
from holdfast.attacks.methods import build, stop_of
from holdfast.errors import ConfigError, DataError
from holdfast.models.encoder import Encoder, frozen
from holdfast.tasks.embedding import Embedding, bank
from holdfast.tasks.task import Task, seer, victim

KEYS = draws.keys([f"bank/{i}" for i in range(4)])
CORNERS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])


def outcome(z: torch.Tensor, clean: torch.Tensor, task: Embedding, **rows: torch.Tensor) -> dict[str, torch.Tensor]:
    row = {"key": draws.keys([f"query/{i}" for i in range(len(z))]), "clean": clean, **rows}
    return task.outcome({"embedding": z}, row)


def test_outcomes_by_hand() -> None:
    task = Embedding(bank(CORNERS, KEYS, torch.tensor([0, 0, 1, 1])))
    clean = torch.tensor([[1.0, 0.1], [1.0, 0.1]])
    found = outcome(torch.tensor([[1.0, 0.1], [-0.1, 1.0]]), clean, task)
    assert found["l2"].tolist() == pytest.approx([0, math.hypot(1.1, 0.9)])
    assert found["cosine"].tolist() == pytest.approx([0, 1], abs=1e-6)
    assert found["flip"].tolist() == [False, True]
    # Pairs of corners are sqrt(2) apart (two thirds) or 2 apart: nothing is nearer than hypot(1.1, 0.9) = 1.421.
    assert found["quantile"].tolist() == pytest.approx([0, 2 / 3], abs=0.03)


def test_random_pairs_are_never_an_image_with_itself() -> None:
    assert float(bank(CORNERS, KEYS, None).distances.min()) == pytest.approx(math.sqrt(2))


def test_an_image_is_not_its_own_neighbour() -> None:
    task = Embedding(bank(CORNERS, KEYS, torch.tensor([0, 1, 0, 1])))
    rows = {"key": KEYS[:1], "clean": CORNERS[:1], "label": torch.tensor([0])}
    moved = task.outcome({"embedding": torch.tensor([[1.0, 0.5]])}, rows)
    assert bool(moved["flip"][0]) is False, "the nearest other corner of both is (0, 1)"


def test_knn_is_absent_with_a_reason_where_it_cannot_be() -> None:
    for labels, reason in ((None, "no labels"), (torch.arange(4), "no class has two images")):
        task = Embedding(bank(CORNERS, KEYS, labels))
        assert "knn_correct" not in outcome(CORNERS, CORNERS, task)
        assert reason in task.absent()["knn_accuracy"]
        assert "knn_accuracy" not in {measure.name for measure in task.measures()}


def test_breakaway_counts_the_others_that_are_nearer_than_the_clean_self() -> None:
    line = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [10.0, 1.0]])
    keys = draws.keys([str(i) for i in range(5)])
    task = Embedding(bank(line, keys, None))
    row = {"key": keys[:1].expand(3), "clean": line[:1].expand(3, 2)}
    # From 0 to 2.2: 1, 2 and 3 are nearer than 0 is, itself is left out, 10 is not. At 0.4: none is, nor on the spot.
    found = task.outcome({"embedding": torch.tensor([[2.2, 1.0], [0.4, 1.0], [0.0, 1.0]])}, row)
    assert found["breakaway"].tolist() == [0.75, 0, 0]


def test_kept_is_the_share_of_neighbours_that_stayed() -> None:
    angles = torch.arange(40) * 9.0
    circle = torch.stack([angles.deg2rad().cos(), angles.deg2rad().sin()], 1)
    task = Embedding(bank(circle, draws.keys([f"bank/{i}" for i in range(40)]), None))
    turn = torch.tensor([4.5, 4.5 + 9, 4.5 + 45, 4.5 + 180]).deg2rad()
    z = torch.stack([turn.cos(), turn.sin()], 1)
    # 20 of 40 points of a circle: turned by one point one leaves, by five five, by half a circle all.
    assert outcome(z, z[:1].expand(4, 2), task)["kept"].tolist() == pytest.approx([1, 19 / 20, 15 / 20, 0])


def test_every_measure_has_its_outcome() -> None:
    for labels in (None, torch.tensor([0, 0, 1, 1])):
        task = Embedding(bank(CORNERS, KEYS, labels))
        found = outcome(CORNERS, CORNERS + 0.1, task, label=torch.tensor([0, 0, 1, 1]))
        assert {measure.outcome for measure in task.measures()} <= found.keys()
        assert not {measure.name for measure in task.measures()} & task.absent().keys()


def small() -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, 2), torch.nn.Tanh(), torch.nn.Conv2d(16, 6, 3, 2))
        return Encoder(trunk.eval(), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def subjects(n: int = 40) -> tuple[Encoder, torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """An encoder, images with labels that their embeddings determine, and these embeddings."""
    encoder = small()
    x = laid(torch.rand(n, 3, 16, 16, generator=draws.generator("embedding images")))
    with torch.no_grad():
        z = encoder.vector(x)
    rows = {"key": draws.keys([str(i) for i in range(n)]), "eps": torch.full((n,), 8 / 255), "label": z.argmax(1)}
    return encoder, x, rows, z


def attack(task: Task, x: torch.Tensor, rows: dict[str, torch.Tensor], encoder: Encoder, push: str, steps: int = 10):
    record = records.Attack(through="embedding", push=push, steps=steps, alpha=2 / 255, seed=3)
    with victim(encoder, task, push) as harm:
        truth = {**task.truth(x, rows, harm.see), "eps": rows["eps"]}
        truth |= task.aims(harm.see(x), truth, seed=record.seed)
        found = cascade(build(record), harm, task.pushes, x, truth, slots=len(x), stop=stop_of(record, lost=task.stop))
    return found, truth


@pytest.mark.parametrize("push", list(Embedding().pushes))
def test_the_attack_is_the_papers_plain_loop(push: str) -> None:
    """EmbedAttack of Kowalczuk et al.: sign steps of 2/255 from a random start, of which ours keeps the furthest."""
    encoder, x, rows, clean = subjects(8)
    task = Embedding()
    found, truth = attack(task, x, rows, encoder, push)
    with frozen(encoder):
        adversarial = Linf().start(x, rows["eps"], rows["key"], "pgd", 3, 0)
        best, furthest = x.clone(), torch.zeros(8)
        for step in range(11):
            seen = laid(adversarial.detach()).requires_grad_()
            z = encoder.vector(seen)
            apart = (z.detach() - clean).norm(dim=1)
            better = apart >= furthest
            best = torch.where(better.view(-1, 1, 1, 1), seen.detach(), best)
            furthest = torch.where(better, apart, furthest)
            if step < 10:
                (gradient,) = torch.autograd.grad(task.pushes[push]({"embedding": z}, truth, None).sum(), seen)
                moved = seen.detach() + 2 / 255 * gradient.sign()
                adversarial = (x + (moved - x).clamp(-8 / 255, 8 / 255)).clamp(0, 1)
    assert torch.allclose(found.score, furthest, rtol=1e-5)
    assert torch.allclose(found.pixels, best, atol=1e-6)
    with torch.no_grad():
        noise = encoder.vector(Linf().start(x, rows["eps"], rows["key"])) - clean
    assert float(furthest.mean()) > 2 * float(noise.norm(dim=1).mean()), "no further than noise goes"


def test_a_vote_or_a_head_ends_the_attack_where_the_drift_does_not() -> None:
    encoder, x, rows, z = subjects()
    held = bank(z, rows["key"], rows["label"])
    head = torch.nn.Linear(6, 6, bias=False)
    head.weight.data = torch.eye(6)
    drift, _ = attack(Embedding(held), x, rows, encoder, "mse")
    assert int(drift.trace["looks"].min()) == 10 and float(drift.score.min()) > 0
    for task in (Embedding(held, scored="knn"), Embedding(scored="probe", head=head)):
        found, truth = attack(task, x, rows, encoder, "mse")
        lost = found.score > 0
        assert 0.3 < float(lost.float().mean()) < 1
        assert float(found.trace["looks"][lost].mean()) < 6, "a lost image rests"
        with torch.no_grad():
            out = {"embedding": encoder.vector(found.pixels)}
        wrong = ~Embedding(held).outcome(out, truth)["knn_correct"] if task.head is None else None
        wrong = out["embedding"].argmax(1) != rows["label"] if wrong is None else wrong
        assert torch.equal(lost, wrong), "above 0 is what that judge calls wrong"


def test_a_score_without_what_it_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match='Perhaps you meant "drift"'):
        Embedding(scored="drif")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs a head"):
        Embedding(scored="probe")
    with pytest.raises(ConfigError, match="no bank"):
        Embedding(scored="knn")
    with pytest.raises(ConfigError, match="no labels"):
        Embedding(bank(CORNERS, KEYS, None), scored="knn")
    encoder, x, rows, z = subjects()
    task = Embedding(bank(z, rows["key"], rows["label"]), scored="knn")
    with pytest.raises(DataError, match="no labels"):
        task.truth(x, {"key": rows["key"]}, seer(encoder, task))


def test_the_scores_head_is_frozen_with_the_encoder() -> None:
    head = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Dropout(0.5))
    with victim(small(), Embedding(scored="probe", head=head), "mse"):
        assert not head.training and not head[0].weight.requires_grad
    assert head.training and head[0].weight.requires_grad
