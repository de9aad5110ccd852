"""Attacks towards a class or another image: what is drawn, what counts as reached, and that it is reached."""

from __future__ import annotations

import math

import pytest
import torch

from holdfast import draws, records
from holdfast.attacks.cascade import cascade
from holdfast.attacks.methods import build, stop_of
from holdfast.errors import ConfigError, DataError, TrustError
from holdfast.models.encoder import Encoder
from holdfast.tasks.classification import Classification
from holdfast.tasks.distances import DISTANCES
from holdfast.tasks.embedding import Embedding, bank
from holdfast.tasks.impersonation import AIMS, Impersonation, Targeted, towards
from holdfast.tasks.saliency import Saliency
from holdfast.tasks.task import Task, seer, victim

N = 40
KEYS = draws.keys([str(i) for i in range(N)])
LABELS = torch.arange(N) % 4


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, 2), torch.nn.Tanh(), torch.nn.Conv2d(16, 6, 3, 2))
        return Encoder(trunk.eval(), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(N, 3, 16, 16, generator=draws.generator("impersonation"))


@pytest.fixture(scope="module")
def vectors(encoder: Encoder, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return encoder.vector(x)


def rows(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"key": KEYS, "label": LABELS, "eps": torch.full((N,), 16 / 255), **more}


def head() -> torch.nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return torch.nn.Linear(6, 4)


def run(task: Task, encoder: Encoder, x: torch.Tensor, push: str, steps: int = 20, **more: torch.Tensor):
    """An attack as a bench makes it: truth, aims, cascade; and what the task then says of the pixels found."""
    record = records.Attack(through="embedding", push=push, eps=16 / 255, steps=steps, aim="towards", seed=5)
    with torch.no_grad(), victim(encoder, task, push) as harm:
        truth = task.truth(x, rows(**more), harm.see)
        truth = {**truth, **task.aims(harm.see(x), truth, seed=record.seed)}
        found = cascade(build(record), harm, task.pushes, x, truth, slots=N, stop=stop_of(record, lost=task.stop))
        judged = task.outcome(harm.see(found.pixels), truth)
    return found, truth, judged


# -- classes -----------------------------------------------------------------------------------------------------------


def test_a_target_is_wrong_drawn_evenly_and_keyed() -> None:
    n, k = 3000, 5
    keys = draws.keys([f"image {i}" for i in range(n)])
    out, row = {"logits": torch.zeros(n, k)}, {"key": keys, "label": torch.arange(n) % k}
    drawn = Targeted(Classification()).aims(out, row, seed=1)
    assert bool((drawn["target"] != row["label"]).all())
    table = torch.zeros(k, k).index_put((row["label"], drawn["target"]), torch.ones(n), accumulate=True)
    expected = n / k / (k - 1)
    assert float((table[~torch.eye(k, dtype=torch.bool)] - expected).abs().max()) < 5 * math.sqrt(expected)
    assert drawn["ranked"].shape == (n, k - 1) and bool((drawn["ranked"] == drawn["target"][:, None]).all())
    part = torch.arange(n).flip(0)[::7]
    again = Targeted(Classification()).aims(
        {"logits": torch.zeros(len(part), k)}, {n: r[part] for n, r in row.items()}, seed=1
    )
    assert torch.equal(again["target"], drawn["target"][part]), "order or batch decides"
    other = Targeted(Classification()).aims(out, row, seed=2)["target"]
    assert 0.1 < float((other == drawn["target"]).float().mean()) < 0.4


def test_a_target_is_a_class_that_can_occur() -> None:
    task = Targeted(Classification(within=(3, 8, 9), known=10))
    label = torch.tensor([3, 8, 9]).repeat(40)
    drawn = task.aims(
        {"logits": torch.zeros(120, 10)}, {"key": draws.keys([str(i) for i in range(120)]), "label": label}, seed=0
    )
    assert set(drawn["target"].tolist()) == {3, 8, 9} and bool((drawn["target"] != label).all())


def test_one_class_leaves_nothing_to_aim_at() -> None:
    with pytest.raises(DataError, match="one class"):
        Targeted(Classification()).aims({"logits": torch.zeros(N, 1)}, rows(), seed=0)


def test_scores_and_harms_towards_a_class_by_hand() -> None:
    out, row = (
        {"logits": torch.tensor([[1.0, 4.0, 2.0]] * 3)},
        {"label": torch.tensor([1, 1, 0]), "target": torch.tensor([2, 0, 1])},
    )
    task = Targeted(Classification())
    assert task.score(out, row).tolist() == [-2.0, -3.0, 2.0]
    t = torch.zeros(3)
    assert task.pushes["margin"](out, row, t).tolist() == [-2.0, -3.0, 2.0]
    assert torch.allclose(task.pushes["ce"](out, row, t), out["logits"].log_softmax(1)[range(3), row["target"]])
    assert next(iter(task.pushes)) == "ce" and set(Classification().pushes) == set(task.pushes)
    assert task.outcome(out, row)["target_reached"].tolist() == [False, False, True]


@pytest.mark.parametrize("push", ["ce", "margin"])
def test_images_are_brought_to_their_class(push: str, encoder: Encoder, x: torch.Tensor, vectors: torch.Tensor) -> None:
    linear = head()
    linear.bias.data = -linear.weight.data @ vectors.mean(0)  # so that no class is that of all images
    task = towards(Classification(linear, known=4))
    found, _, judged = run(task, encoder, x, push)
    assert torch.equal(found.score > 0, judged["target_reached"])
    assert float(judged["target_reached"].float().mean()) > 0.5 + float((found.trace["clean_score"] > 0).float().mean())
    assert {m.outcome for m in task.measures()} <= judged.keys()


# -- images ------------------------------------------------------------------------------------------------------------


def test_a_goal_is_another_image_of_another_class_drawn_evenly() -> None:
    n = 2000
    held = Impersonation(Embedding(bank(torch.randn(8, 3, generator=draws.generator("b")), KEYS[:8], LABELS[:8])))
    # The first image is in the bank itself: it may aim at the six images of other classes; one without, at all six too.
    row = {"key": KEYS[:1].expand(n), "label": LABELS[:1].expand(n)}
    counts = torch.zeros(8)
    for seed in range(400):
        drawn = held.aims({"embedding": torch.zeros(1, 3)}, {k: v[:1] for k, v in row.items()}, seed=seed)
        counts[(KEYS[:8] == drawn["goal"]).nonzero()[0, 0]] += 1
    assert counts[[0, 4]].tolist() == [0, 0], "itself, or its own class"
    assert float((counts[[1, 2, 3, 5, 6, 7]] - 400 / 6).abs().max()) < 5 * math.sqrt(400 / 6)


def test_a_goal_depends_on_the_image_alone(vectors: torch.Tensor) -> None:
    task = Impersonation(Embedding(bank(vectors, KEYS, LABELS)))
    whole = task.aims({"embedding": vectors}, rows(), seed=3)
    at = torch.tensor([31, 2, 17])
    part = task.aims({"embedding": vectors[at]}, {name: row[at] for name, row in rows().items()}, seed=3)
    assert all(torch.equal(part[name], whole[name][at]) for name in whole)
    place = torch.tensor([KEYS.tolist().index(key) for key in whole["goal"].tolist()])
    assert torch.equal(whole["goal_vector"], vectors[place]) and torch.equal(whole["target"], LABELS[place])
    assert bool((whole["target"] != LABELS).all()) and set(AIMS) <= whole.keys()


def test_without_labels_any_other_image_is_a_goal(vectors: torch.Tensor) -> None:
    task = Impersonation(Embedding(bank(vectors, KEYS, None)))
    drawn = task.aims({"embedding": vectors}, {"key": KEYS}, seed=0)
    assert bool((drawn["goal"] != KEYS).all()) and "target" not in drawn
    place = torch.tensor([KEYS.tolist().index(key) for key in drawn["goal"].tolist()])
    assert bool((LABELS[place] == LABELS).any()), "labels that the bank does not have decide"


def test_a_bank_of_one_class_has_no_goal(vectors: torch.Tensor) -> None:
    task = Impersonation(Embedding(bank(vectors, KEYS, torch.zeros(N, dtype=torch.int64))))
    with pytest.raises(DataError, match="no other image"):
        task.aims({"embedding": vectors}, rows(label=torch.zeros(N, dtype=torch.int64)), seed=0)


def test_outcomes_by_hand() -> None:
    plane = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 1.0]])
    keys = draws.keys(["a", "b", "c", "d"])
    task = Impersonation(Embedding(bank(plane, keys, None)))
    goal = {"goal": keys[1:2].expand(3), "goal_vector": plane[1:2].expand(3, 2)}
    row = {"key": keys[:1].expand(3), "clean": plane[:1].expand(3, 2), **goal}
    z = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 3.0]])
    found = task.outcome({"embedding": z}, row)
    # (0.6, 0.8) is nearer to (1, 1), with a cosine of 0.99, than to the goal, with 0.8; (0, 3) is the goal's direction.
    assert found["goal_reached"].tolist() == [False, False, True]
    root = math.sqrt(0.5)
    assert task.score({"embedding": z}, row).tolist() == pytest.approx([-root, 0.8 - 1.4 * root, 1 - root], abs=1e-6)
    apart = [math.sqrt(2), math.sqrt(0.4), 2]
    assert found["goal_distance"].tolist() == pytest.approx(apart)
    assert found["goal_ratio"].tolist() == pytest.approx([a / math.sqrt(2) for a in apart])
    # Pairs of the bank are 1 apart (two of six), sqrt(2) (two), 2 and sqrt(5).
    assert found["goal_quantile"].tolist() == pytest.approx([1 / 3, 0, 2 / 3], abs=0.04)
    assert {m.outcome for m in task.measures()} <= found.keys()


def test_an_image_is_no_rival_of_its_own_goal(vectors: torch.Tensor) -> None:
    """The bank holds the image itself, and a score that counted it could hardly be won."""
    task = Impersonation(Embedding(bank(vectors, KEYS, None)))
    row = {"key": KEYS[:1], "clean": vectors[:1], "goal": KEYS[1:2], "goal_vector": vectors[:1] + 1e-4}
    assert float(task.score({"embedding": vectors[:1]}, row)) > 0


@pytest.mark.parametrize("push", list(DISTANCES))
def test_every_harm_falls_with_the_distance_and_is_not_flat_at_the_clean_image(
    push: str, encoder: Encoder, x: torch.Tensor, vectors: torch.Tensor
) -> None:
    task = Impersonation(Embedding(bank(vectors, KEYS, None)))
    truth = {**rows(), **task.aims({"embedding": vectors}, {"key": KEYS}, seed=0)}
    pixels = x.clone().requires_grad_()
    value = task.pushes[push](seer(encoder, task)(pixels), truth, torch.zeros(N))
    assert torch.allclose(value.detach(), -DISTANCES[push](vectors, truth["goal_vector"]), rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(value[0], pixels)
    assert float(gradient[0].abs().max()) > 0 and float(gradient[1:].abs().max()) == 0


@pytest.mark.parametrize("push", ["mse", "l2", "cosine", "ce", "cosine_std"])
def test_images_come_to_pass_for_their_goal(
    push: str, encoder: Encoder, x: torch.Tensor, vectors: torch.Tensor
) -> None:
    task = towards(Embedding(bank(vectors, KEYS, LABELS)))
    found, truth, judged = run(task, encoder, x, push)
    assert torch.equal(found.score > 0, judged["goal_reached"])
    assert float(judged["goal_reached"].float().mean()) > 0.5 > float((found.trace["clean_score"] > 0).float().mean())
    assert float(judged["goal_ratio"].mean()) < 0.8
    apart = torch.linalg.vector_norm(encoder.vector(found.pixels).detach() - truth["goal_vector"], dim=1)
    assert torch.allclose(judged["goal_distance"], apart, rtol=1e-4)


@pytest.mark.parametrize("scored", ["knn", "probe"])
def test_the_class_of_the_goal_is_what_a_vote_or_a_head_asks_for(
    scored: str, encoder: Encoder, x: torch.Tensor, vectors: torch.Tensor
) -> None:
    named = vectors.argmax(1)
    held = bank(vectors, KEYS, named)
    linear = torch.nn.Linear(6, 6, bias=False)
    linear.weight.data = torch.eye(6)
    task = Impersonation(Embedding(held, scored=scored, head=linear if scored == "probe" else None))
    found, truth, judged = run(task, encoder, x, "mse", label=named)
    reached = found.score > 0
    by_head = encoder.vector(found.pixels).argmax(1) == truth["target"]
    assert torch.equal(reached, by_head if scored == "probe" else judged["target_reached"])
    assert float(reached.float().mean()) > 0.2


def test_a_judge_finds_the_goal_by_its_key(vectors: torch.Tensor) -> None:
    """Another level, another order: the key is enough; and a bank that does not hold it says so."""
    attack = Impersonation(Embedding(bank(vectors, KEYS, None)))
    aimed = attack.aims({"embedding": vectors}, {"key": KEYS}, seed=0)
    order = torch.arange(N).flip(0)
    judge = Impersonation(Embedding(bank(2 * vectors[order, :3], KEYS[order], None)))
    row = {"key": KEYS, "clean": 2 * vectors[:, :3], "goal": aimed["goal"]}
    found = judge.outcome({"embedding": 2 * aimed["goal_vector"][:, :3]}, row)
    assert float(found["goal_distance"].max()) == 0 and bool(found["goal_reached"].all())
    smaller = Impersonation(Embedding(bank(vectors[:20], KEYS[:20], None)))
    with pytest.raises(TrustError, match="does not hold"):
        smaller.outcome({"embedding": vectors}, {"key": KEYS, "clean": vectors, "goal": aimed["goal"]})


def test_what_cannot_be_aimed_at_is_refused(encoder: Encoder, vectors: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="no bank"):
        towards(Embedding())
    with pytest.raises(ConfigError, match="no labels"):
        towards(Embedding(bank(vectors, KEYS, None), scored="probe", head=head()))
    with pytest.raises(ConfigError, match="Saliency"):
        towards(Saliency(encoder, target="similarity"))
