from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.recipes.hyperparameters import Range
from thrifty.search.line import FACTOR, FAILED, FINEST, Line, LineError, best, inside, neighbors


def searched(line: Line, quality, trials: int) -> dict[float, float]:
    known: dict[float, float] = {}
    for _ in range(trials):
        exponent = line.following(known)
        if exponent is None:
            break
        assert exponent not in known
        known[exponent] = quality(exponent)
    return known


@given(st.floats(-4, 4), st.floats(0.1, 10))
def test_the_optimum_of_any_hill_is_bracketed_wherever_it_is(top, width):
    known = searched(Line("lr", 1e-3), lambda e: -abs(e - top) / width, 9)
    assert inside(known)
    low, high = neighbors(known)
    assert low <= top <= high


@given(st.floats(-1, 1))
def test_gaps_are_halved_down_to_the_finest(top):
    known = searched(Line("lr", 1e-3), lambda e: -((e - top) ** 2), 60)
    low, high = neighbors(known)
    assert best(known) - low <= FINEST and high - best(known) <= FINEST
    assert abs(best(known) - top) <= FINEST
    assert Line("lr", 1e-3).following(known) is None


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, FAILED]), min_size=12, max_size=12))
def test_no_value_is_tried_twice_whatever_comes_back(qualities):
    answers = iter(qualities)
    assert len(searched(Line("lr", 1e-3), lambda e: next(answers), 12)) <= 12


def test_the_bracket_comes_first_then_what_lies_beyond_the_edge():
    line = Line("lr", 1e-3)
    assert list(searched(line, lambda e: e, 5)) == [0.0, -1.0, 1.0, 2.0, 3.0]
    assert list(searched(line, lambda e: -e, 5)) == [0.0, -1.0, 1.0, -2.0, -3.0]
    assert not inside(searched(line, lambda e: e, 20))
    assert [line.value(e) for e in (0.0, -1.0, 1.0, 0.5)] == [1e-3, 2.5e-4, 4e-3, 2e-3]


def test_what_diverges_is_an_upper_end():
    known = searched(Line("lr", 1e-3), lambda e: e if e <= 1 else FAILED, 5)
    assert known[2.0] == FAILED and best(known) == 1.0 and inside(known)
    assert neighbors(known) == (0.5, 2.0)


def test_where_all_diverges_smaller_values_are_tried():
    known = searched(Line("lr", 1e-3), lambda e: FAILED, 5)
    assert sorted(known) == [-3.0, -2.0, -1.0, 0.0, 1.0] and not inside(known)


def test_what_is_not_permitted_is_never_tried():
    warmup = Line("warmup", 0.4, Range(0, 1, open_high=True))
    known = searched(warmup, lambda e: e, 20)
    assert all(0 <= warmup.value(e) < 1 for e in known)
    assert not inside(known) and warmup.value(best(known)) > 0.8


@pytest.mark.parametrize("center", [0.0, -1.0, math.inf, math.nan])
def test_a_centre_that_has_no_logarithm_is_refused(center):
    with pytest.raises(LineError, match="above 0"):
        Line("weight_decay", center)


def test_near_one_the_distance_from_one_is_multiplied():
    beta = Line("beta2", 0.95, Range(0, 1, open_high=True, near_one=True))
    assert [beta.value(e) for e in (0.0, -1.0, 1.0, -0.5)] == [0.95, 0.9875, 0.8, 0.975]
    known = searched(beta, lambda e: e, 20)
    assert all(0 <= beta.value(e) < 1 for e in known) and beta.value(best(known)) < 0.2
    with pytest.raises(LineError, match="between 0 and 1"):
        Line("beta2", 1.0, beta.permitted)


@given(st.floats(1e-8, 1e2), st.integers(-64, 64))
def test_values_keep_three_digits_of_the_grid(center, eighths):
    line, exponent = Line("lr", center), eighths / 8
    assert line.value(exponent) == pytest.approx(center * FACTOR**exponent, rel=5e-3)
