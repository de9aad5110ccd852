"""The learning rate at the points where it is known."""

import math

import torch

from holdfast.training.schedule import Pace, learning_rate


def _rates(total, warmup, peak=2.0):
    return [learning_rate(step, total=total, warmup=warmup, peak=peak) for step in range(total)]


def test_warmup_is_a_line_to_the_peak_and_the_rest_half_a_cosine():
    rates = _rates(110, 10)
    assert all(math.isclose(rate, 2.0 * (i + 1) / 10) for i, rate in enumerate(rates[:10]))
    assert rates[10] == 2.0
    assert math.isclose(rates[60], 1.0)
    assert 0 < rates[-1] < 2e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_no_warmup_starts_at_the_peak_and_a_run_of_warmup_alone_ends_there():
    assert _rates(5, 0)[0] == 2.0
    assert _rates(5, 5)[-1] == 2.0
    assert all(rate > 0 for rate in _rates(3, 30))


def test_the_rewarmed_schedule_is_zero_after_a_third_and_ends_there_with_three_replays_at_the_peak_with_two():
    three = Pace(total=30, warmup=0, peak=0.3, half=10)
    assert (
        three.rate(0) == 0.3 and three.rate(10) < 1e-12 and math.isclose(three.rate(20), 0.3) and three.rate(30) < 1e-12
    )
    assert math.isclose(Pace(total=20, warmup=0, peak=0.3, half=10).rate(20), 0.3)


def test_the_schedule_as_published_is_that_of_torch_stepped_on_by_every_replay():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    pace = Pace(total=30, warmup=0, peak=0.3, half=10)
    for step in range(30):
        assert math.isclose(optimizer.param_groups[0]["lr"], pace.rate(step), abs_tol=1e-9), step
        optimizer.step()
        torchs.step()


def test_a_run_counts_optimizer_steps():
    pace = Pace(total=30, warmup=3, peak=0.3)
    assert pace.done(0) == 0 and pace.done(15) == 0.5
    assert [pace.rate(step) for step in range(30)] == [
        learning_rate(s, total=30, warmup=3, peak=0.3) for s in range(30)
    ]
