from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.measure.queueing import highest_rate, latencies

seconds = st.floats(0.001, 1.0)


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=40))
def test_the_closed_form_is_the_queue_served_one_by_one(requests: list[tuple[float, float]]) -> None:
    service, gaps = np.array(requests).T
    free, expected, now = 0.0, [], 0.0
    for i, (cost, gap) in enumerate(requests):
        now += gap if i else 0.0
        free = max(free, now) + cost
        expected.append(free - now)
    assert latencies(service, gaps) == pytest.approx(np.array(expected), abs=1e-9)


def test_the_rate_is_that_of_an_m_m_1_queue() -> None:
    # M/M/1: latency is exponential of rate mu - lambda, so p99 = ln(100) / (mu - lambda).
    service = np.random.default_rng(0).exponential(0.01, 100_000)
    rate = highest_rate(service.tolist(), bound=0.2, seed=1)
    assert rate == pytest.approx(100 - np.log(100) / 0.2, rel=0.05)


@settings(max_examples=25)
@given(st.floats(0.02, 0.5), st.floats(1.1, 4.0))
def test_a_looser_bound_and_a_faster_server_take_more(bound: float, factor: float) -> None:
    service = np.random.default_rng(2).gamma(4.0, 0.0025, 1000)
    rate = highest_rate(service.tolist(), bound)
    looser, faster = (
        highest_rate(service.tolist(), bound * factor),
        highest_rate((service / factor).tolist(), bound),
    )
    assert (rate or 0) <= (looser or 0) * (1 + 1e-9)
    assert (rate or 0) <= (faster or 0) * (1 + 1e-9)


def test_units_do_not_matter() -> None:
    service = np.random.default_rng(3).gamma(4.0, 0.0025, 1000)
    one, thousand = highest_rate(service.tolist(), 0.1), highest_rate((1000 * service).tolist(), 100.0)
    assert one is not None
    assert thousand is not None
    assert one == pytest.approx(1000 * thousand)


def test_a_bound_below_the_service_itself_has_no_rate() -> None:
    assert highest_rate([0.01] * 1000, bound=0.005) is None


def test_a_p99_of_few_calls_is_refused() -> None:
    with pytest.raises(ValueError, match="1000 calls or more but there are 200"):
        highest_rate([0.01] * 200, bound=0.1)
