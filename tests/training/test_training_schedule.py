"""The learning rate at the points where it is known."""

import math

from holdfast.training.schedule import learning_rate


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
