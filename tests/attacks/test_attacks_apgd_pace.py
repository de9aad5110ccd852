"""When APGD shortens its steps and goes back: by hand, from values that are made up."""

from __future__ import annotations

import pytest
import torch

from holdfast.attacks.apgd import Halving
from holdfast.attacks.apgd_l1 import Sparse
from holdfast.attacks.balls import BALLS


@pytest.mark.parametrize(("steps", "checkpoints"), [(100, [22, 41, 57, 70, 80, 87, 93, 99]), (10, [2, 3, 4, 5, 6])])
def test_the_published_checkpoints(steps: int, checkpoints: list[int]) -> None:
    """p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), p_0 = 0, p_1 = 0.22: alpha is halved there if none rises."""
    x, pace = torch.zeros(2, 3, 1, 1), Halving()
    state = pace.start(x, x, torch.ones(2), steps, "random")
    state |= {"looks": torch.zeros(2, dtype=torch.int64), "top": torch.ones(2)}
    at = []
    for look in range(checkpoints[-1] + 1):
        value = torch.tensor([1.0 - look, 1.0 + look])
        kept, back = pace.check(x, {**state, "top": torch.maximum(state["top"], value)}, value)
        state |= kept | {"top": torch.maximum(state["top"], value), "looks": state["looks"] + 1}
        assert not bool(back[1]), "what always rises is never sent back"
        at += [look] if bool(back[0]) else []
    assert at == checkpoints
    assert state["alpha"].tolist() == [2 * 0.5 ** len(at), 2]


def test_the_second_condition_spares_a_row_that_was_halved() -> None:
    """Nothing ever rises, and a `rho` below 0 leaves the second condition alone."""
    x, pace = torch.zeros(1, 3, 1, 1), Halving(rho=-1.0)
    state = pace.start(x, x, torch.ones(1), 100, "random")
    state |= {"looks": torch.zeros(1, dtype=torch.int64), "top": torch.ones(1)}
    at = []
    for look in range(81):
        kept, back = pace.check(x, state, torch.zeros(1))
        state |= kept | {"looks": state["looks"] + 1}
        at += [look] if bool(back) else []
    assert at == [41, 70], "not at the first, and never twice in a row"


def test_rows_of_different_ages_have_checkpoints_of_their_own() -> None:
    """The second row begins seven looks after the first, and the two are paced as each would be alone: values that
    rise three times in four."""
    x, pace, late = torch.zeros(1, 3, 1, 1), Halving(), 7

    def kept(ages: list[int], states: list[dict[str, torch.Tensor]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rows = {name: torch.cat([state[name] for state in states]) for name in states[0]}
        value = torch.tensor([float(age - 3 * (age % 4 == 3) * (age > 30)) for age in ages])
        rows["top"] = torch.maximum(rows["top"], value)
        paced, back = pace.check(x.expand(len(ages), -1, -1, -1), rows, value)
        return rows | paced | {"looks": rows["looks"] + 1}, back

    def fresh() -> dict[str, torch.Tensor]:
        begun = pace.start(x, x, torch.ones(1), 100, "random")
        return begun | {"looks": torch.zeros(1, dtype=torch.int64), "top": torch.full((1,), -torch.inf)}

    def row(state: dict[str, torch.Tensor], at: int) -> dict[str, torch.Tensor]:
        return {name: part[at : at + 1] for name, part in state.items()}

    alone, alone_back, state = [], [], fresh()
    for age in range(100):
        state, back = kept([age], [state])
        alone.append((int(state["wait"]), int(state["since"]), int(state["rises"]), float(state["alpha"])))
        alone_back.append(bool(back))
    assert any(alone_back)
    first, second = fresh(), fresh()
    for _ in range(late):
        first, _ = kept([int(first["looks"])], [first])
    for age in range(100 - late):
        both, back = kept([age + late, age], [first, second])
        first, second = row(both, 0), row(both, 1)
        for at, mine, its in ((age + late, first, back[0]), (age, second, back[1])):
            found = (int(mine["wait"]), int(mine["since"]), int(mine["rises"]), float(mine["alpha"]))
            assert (found, bool(its)) == (alone[at], alone_back[at])


def test_l1_goes_back_where_the_best_is_sparser_and_shortens_elsewhere() -> None:
    """Of 48 values the first row's best changes 12 fewer at each checkpoint; the second row's always 24."""
    x, pace, eps = torch.zeros(2, 3, 4, 4), Sparse(), torch.ones(2)
    state = pace.start(x, x, eps, 50, "random") | {"eps": eps, "looks": torch.zeros(2, dtype=torch.int64)}
    assert state["wait"].tolist() == [2, 2] and state["followed"].tolist() == pytest.approx([0.2, 0.2])
    backs, alphas = [], []
    for look in range(13):
        best = torch.zeros(2, 48)
        best[0, : max(48 - 6 * look, 6)], best[1, :24] = 1, 1
        state["best"] = best.view_as(x)
        kept, back = pace.check(x, state, torch.zeros(2))
        state |= kept | {"looks": state["looks"] + 1}
        if look and look % 2 == 0:
            backs.append(back.tolist())
            alphas.append(state["alpha"].tolist())
    assert backs == [[True, True], [True, False], [True, False], [True, False]] + [[False, False]] * 2
    steady = [1, 1 / 1.5, 1 / 1.5**2, 1 / 1.5**3, 1 / 1.5**4, 1 / 1.5**5]
    assert [pair[1] for pair in alphas] == pytest.approx(steady)
    assert [pair[0] for pair in alphas] == pytest.approx([1, 1, 1, 1, 1 / 1.5, 1 / 1.5**2])
    assert state["followed"].tolist() == pytest.approx([6 / 48 / 1.5, 24 / 48 / 1.5])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_an_l1_step_follows_the_largest_share_of_the_gradient(share: float) -> None:
    """Of 48 values; each moves by as much, and in all by alpha. Rows have shares of their own."""
    x, eps = torch.full((2, 3, 4, 4), 0.5), torch.full((2,), 0.3)
    gradient = torch.arange(1.0, 49).view(1, 3, 4, 4).repeat(2, 1, 1, 1) * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    state = {"eps": eps, "alpha": eps / 2, "followed": torch.tensor([share, 0.25])}
    moved = Sparse().move(BALLS["l1"], x, x, gradient, state) - x
    count = max(1, -int(-share * 48 // 1))
    assert (moved != 0).flatten(1).sum(1).tolist() == [count, 12]
    assert moved.abs().flatten(1).sum(1).tolist() == pytest.approx([0.15, 0.15], rel=1e-5)
    assert bool((moved[0].flatten()[-count:] > 0).all()) and bool((moved[1].flatten()[-12:] < 0).all())
