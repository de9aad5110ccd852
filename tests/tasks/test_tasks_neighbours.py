"""Neighbours and their vote, against plain loops and closed forms."""

import math

import numpy as np
import pytest
import torch

from holdfast.errors import DataError, TrustError
from holdfast.tasks.neighbours import (
    breakaway,
    knn_accuracy,
    knn_predict,
    nearest_neighbours,
    neighbours_kept,
    vote_margin,
    votes,
)


def _features(n, d=8, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_neighbours_on_a_circle_are_the_nearest_angles():
    angles = torch.tensor([0.0, 10.0, 25.0, 90.0, 180.0]).deg2rad()
    bank = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([1.0, 5.0, 0.1, 2.0, 3.0])[:, None]
    query = torch.tensor([[math.cos(math.radians(12)), math.sin(math.radians(12))]]) * 7
    cosines, index = nearest_neighbours(query, bank, 3)
    assert index.tolist() == [[1, 0, 2]]
    assert torch.allclose(cosines[0], torch.tensor([2.0, 12.0, 13.0]).deg2rad().cos(), atol=1e-6)


def test_neighbours_equal_a_plain_numpy_search_at_every_chunk():
    queries, bank = _features(23), _features(40, seed=1)
    q, b = (v.numpy().astype(np.float64) for v in (queries, bank))
    close = (q @ b.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(b, axis=1)[None]
    expected = np.argsort(-close, axis=1)[:, :5]
    for chunk in (1, 7, 1024):
        cosines, index = nearest_neighbours(queries, bank, 5, chunk=chunk)
        assert np.array_equal(index.numpy(), expected)
        assert np.allclose(cosines.numpy(), np.take_along_axis(close, expected, 1), atol=1e-6)


def test_excluded_rows_are_no_neighbours():
    bank = _features(30)
    own = torch.eye(30, dtype=torch.bool)
    assert nearest_neighbours(bank, bank, 1)[1].flatten().tolist() == list(range(30))
    with_others = nearest_neighbours(bank, bank, 29, exclude=own)[1]
    assert all(i not in row for i, row in enumerate(with_others.tolist()))
    with pytest.raises(DataError, match="30 neighbours of 29 images"):
        nearest_neighbours(bank, bank, 30, exclude=own)


def test_no_query_has_no_neighbour_and_nan_is_refused():
    cosines, index = nearest_neighbours(_features(0), _features(9), 4)
    assert cosines.shape == index.shape == (0, 4)
    with pytest.raises(TrustError, match="not finite"):
        nearest_neighbours(torch.full((1, 8), math.nan), _features(9), 4)


def test_one_close_neighbour_outweighs_two_far_ones_only_when_weighted():
    similarity = torch.tensor([[0.9, 0.5, 0.4]])
    labels = torch.tensor([[2, 1, 1]])
    assert knn_predict(similarity, labels, classes=3).tolist() == [2]
    assert knn_predict(similarity, labels, classes=3, temperature=None).tolist() == [1]
    weight = votes(similarity, labels, classes=3)[0]
    assert weight[2] == 1
    assert math.isclose(weight[1], math.exp(-0.4 / 0.07) + math.exp(-0.5 / 0.07), rel_tol=1e-5)


def test_a_draw_of_plain_votes_goes_to_the_nearer_class():
    similarity = torch.tensor([[0.9, 0.8, 0.7, 0.1]])
    assert knn_predict(similarity, torch.tensor([[3, 0, 0, 3]]), classes=4, temperature=None).tolist() == [0]
    assert knn_predict(similarity, torch.tensor([[3, 0, 3, 0]]), classes=4, temperature=None).tolist() == [3]


def test_knn_accuracy_is_one_on_clusters_and_chance_on_noise():
    labels = torch.arange(400) % 4
    clusters = torch.eye(4)[labels] * 10 + _features(400, 4)
    assert knn_accuracy(clusters[:100], labels[:100], clusters[100:], labels[100:]) == 1.0
    noise = _features(1200, 4)
    truth = torch.arange(1200) % 4
    accuracy = knn_accuracy(noise[:600], truth[:600], noise[600:], truth[600:])
    assert abs(accuracy - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 600)


def test_the_margin_of_a_vote_by_hand():
    similarity = torch.tensor([[0.07, 0.0, 0.0]]).expand(4, 3)
    labels = torch.tensor([[0, 1, 1]]).expand(4, 3)
    one = math.exp(-1)
    # Weights 1, 1/e, 1/e: class 0 has 1, class 1 has 2/e, class 2 none, and class 7 is not in the bank.
    total = 1 + 2 * one
    expected = [(2 * one - 1) / total, (1 - 2 * one) / total, 1 / total, 1 / total]
    found = vote_margin(similarity, labels, torch.tensor([0, 1, 2, 7]), classes=3)
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)


def test_a_margin_above_zero_is_a_wrong_vote_of_scikit_learn():
    neighbours = pytest.importorskip("sklearn.neighbors")
    bank, queries = _features(300), _features(200, seed=1)
    labels = (bank[:, 0] > 0).long() + (bank[:, 1] > 0).long()
    label = (queries[:, 0] > 0).long() + (queries[:, 1] > 0).long()
    peer = neighbours.KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / 0.07))
    predicted = torch.from_numpy(peer.fit(bank.double().numpy(), labels.numpy()).predict(queries.double().numpy()))
    similarity, index = nearest_neighbours(queries, bank, 20)
    wrong = vote_margin(similarity, labels[index], label, classes=3) > 0
    assert torch.equal(wrong, predicted != label) and 10 < int(wrong.sum()) < 190


def test_a_drawn_vote_is_lost_by_nobody():
    even = vote_margin(torch.tensor([[0.5, 0.5]]), torch.tensor([[0, 1]]), torch.tensor([0]), classes=2)
    assert even.tolist() == [0.0]


def test_breakaway_equals_a_plain_count():
    bank, clean = _features(50), _features(12, seed=1)
    clean[:4] = bank[:4]
    changed = clean + 1.5 * _features(12, seed=2)
    own = torch.zeros(12, 50, dtype=torch.bool)
    own[range(4), range(4)] = True
    expected = []
    for i in range(12):
        others = [j for j in range(50) if not own[i, j]]
        reach = math.dist(changed[i].tolist(), clean[i].tolist())
        expected.append(sum(math.dist(changed[i].tolist(), bank[j].tolist()) < reach for j in others) / len(others))
    assert torch.allclose(breakaway(changed, clean, bank, exclude=own), torch.tensor(expected))
    assert 0 < sum(expected) < 12


def test_who_is_as_far_as_the_own_embedding_is_not_nearer():
    """Other images with the very same embedding, whatever its length: ties, and one that is nearer by a hundredth."""
    clean = 1e3 * _features(6)
    changed = clean + 0.1 * _features(6, seed=1)
    nearer = clean + 1e-2 * (changed - clean)
    bank, nobody = torch.cat([clean, nearer]), torch.zeros(6, 12, dtype=torch.bool)
    assert breakaway(changed, clean, clean, exclude=nobody[:, :6]).tolist() == [0.0] * 6
    assert breakaway(clean, clean, bank, exclude=nobody).tolist() == [0.0] * 6
    assert torch.allclose(breakaway(changed, clean, bank, exclude=nobody), torch.full((6,), 1 / 12))


def test_kept_neighbours_are_counted_in_any_order():
    after = torch.tensor([[1, 2, 3], [3, 2, 1], [7, 8, 9]])
    before = torch.tensor([[1, 2, 3], [1, 2, 5], [1, 2, 3]])
    assert neighbours_kept(after, before).tolist() == pytest.approx([1, 2 / 3, 0])
