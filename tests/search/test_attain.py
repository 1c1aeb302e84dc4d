from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from thrifty.search.attain import Trained, attained
from thrifty.search.line import FAILED
from thrifty.training.loop import Evaluation


def run(seed: int, *qualities: float, rate: float = 1.0) -> Trained:
    """An evaluation every ten steps, ``rate`` steps a second."""
    return Trained(seed, tuple(Evaluation(10 * i, 10 * i / rate, 1e6 * i, q) for i, q in enumerate(qualities, 1)), 1.0)


def test_a_quality_is_attained_where_it_is_not_lost_again():
    assert run(0, 0.1, 0.5, 0.4, 0.6, 0.7).attains(0.5).step == 40
    assert run(0, 0.5, 0.6).attains(0.5).step == 10
    assert run(0, 0.6, 0.4).attains(0.5) is None
    assert Trained(0, (), 1.0, error="diverged").attains(0.5) is None


def test_attaining_is_what_its_definition_says_on_random_curves():
    draw = random.Random(0)
    for _ in range(300):
        one, goal = run(0, *(draw.random() for _ in range(draw.randrange(1, 9)))), draw.random()
        able = [p for i, p in enumerate(one.curve) if all(q.quality >= goal for q in one.curve[i:])]
        assert one.attains(goal) == (able[0] if able else None)


def test_figures_over_seeds_are_students():
    reference = [run(1, 0.2, 0.4, 0.5), run(2, 0.2, 0.5, 0.6), run(3, 0.1, 0.3, 0.4)]
    faster = [run(1, 0.5, 0.6, 0.7, rate=2.0), run(2, 0.3, 0.6, 0.8, rate=2.0), run(3, 0.4, 0.6, 0.7, rate=2.0)]
    found = attained(faster, reference, 0.5)
    assert found.attained == 3 and found.diverged == 0 and found.seeds == (1, 2, 3)
    own = [30.0, 20.0, 30.0]  # the third never attains it: all of its seconds
    logs = [math.log(base / mine) for base, mine in zip(own, (5.0, 10.0, 10.0), strict=True)]
    low, high = stats.t.interval(0.95, 2, sum(logs) / 3, stats.sem(logs))
    assert found.speedup.value == pytest.approx(math.exp(sum(logs) / 3))
    assert (found.speedup.low, found.speedup.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert found.steps.value == pytest.approx((10 * 20 * 20) ** (1 / 3))
    assert found.quality.value == pytest.approx(2.2 / 3) and found.change.value == pytest.approx(0.7 / 3)
    assert found.verdict == ("faster" if math.exp(low) > 1 else "no significant gain")


def test_the_reference_is_as_fast_as_itself():
    runs = [run(seed, 0.2, 0.6, 0.6 + seed / 100) for seed in (1, 2, 3)]
    found = attained(runs, runs, 0.6)
    assert (found.speedup.low, found.speedup.value, found.speedup.high) == (1, 1, 1)
    assert found.verdict == "no significant gain"


def test_one_seed_that_does_not_attain_it_leaves_no_claim():
    reference = [run(1, 0.5), run(2, 0.5)]
    found = attained([run(1, 0.9), run(2, 0.4)], reference, 0.5)
    assert found.attained == 1 and found.speedup is None and found.seconds is None and found.verdict == "not measured"
    assert found.quality is not None


@pytest.mark.parametrize("lost", [Trained(2, (), 1.0, error="the loss is nan"), run(2, math.nan)])
def test_one_that_diverged_leaves_no_mean(lost):
    found = attained([run(1, 0.9), lost], [run(1, 0.5), run(2, 0.5)], 0.5)
    assert lost.quality == FAILED and found.diverged == 1 and found.quality is None and found.change is None


def test_one_seed_has_no_interval():
    found = attained([run(1, 0.9)], [run(1, 0.5)], 0.5)
    assert found.speedup.low is None and found.verdict == "screened"


def test_flops_that_were_not_counted_are_not_measured():
    bare = Trained(1, (Evaluation(10, 1.0, 0.0, 0.9),), 1.0)
    assert attained([bare], [bare], 0.5).flops is None
