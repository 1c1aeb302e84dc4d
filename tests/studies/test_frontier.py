"""The frontier: Pareto dominance where intervals vanish, caution where they do not."""

import math

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.factories import trial
from thrifty.studies.constraints import best
from thrifty.studies.frontier import FrontierError, dominance, frontier
from thrifty.studies.trial import Drop, QualityFigure


def statuses(found):
    return {s.trial.id: s.status for s in found.standings}


# -- laws of dominance --------------------------------------------------------------------------------------------

# Small whole numbers make ties and duplicates common.
tables = st.tuples(st.integers(1, 12), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(0, 4).map(float))
)


@st.composite
def interval_tables(draw):
    value = draw(tables)
    widths = arrays(np.float64, value.shape, elements=st.sampled_from([0.0, 0.5, 1.0, 3.0, math.inf]))
    return value, value - draw(widths), value + draw(widths)


@given(tables)
@settings(max_examples=300)
def test_without_width_it_is_moocores(points):
    dominated = dominance(points, points, points).any(0)
    assert (~dominated == moocore.is_nondominated(points, keep_weakly=True)).all()


@given(interval_tables())
@settings(max_examples=300)
def test_dominance_is_a_strict_partial_order(table):
    beats = dominance(*table)
    assert not beats.diagonal().any()
    assert not (beats & beats.T).any()
    assert (((beats.astype(int) @ beats.astype(int)) > 0) <= beats).all()


@given(interval_tables(), st.data())
@settings(max_examples=300)
def test_widening_only_takes_dominance_away(table, data):
    value, low, high = table
    more = arrays(np.float64, value.shape, elements=st.sampled_from([0.0, 0.25, 2.0]))
    wider = dominance(value, low - data.draw(more), high + data.draw(more))
    assert (wider <= dominance(value, low, high)).all()
    assert (dominance(value, low, high) <= dominance(value, value, value)).all()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 5)), max_size=10))
@settings(max_examples=150)
def test_the_front_of_trials_is_moocores(rows):
    trials = [trial(i, (d / 100,) * 3, t * 10.0, (s, s, s)) for i, (d, t, s) in enumerate(rows)]
    found = frontier(trials)
    assert [s.trial for s in found.standings] == trials
    if rows:
        points = np.array([(d, t, -s) for d, t, s in rows], float)
        on = moocore.is_nondominated(points, keep_weakly=True)
        assert [s.status == "front" for s in found.standings] == on.tolist()
        assert all(s.status == "dominated" for s in found.standings if s.status != "front")


drops = st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3)).map(
    lambda x: (x[0] / 100, (x[0] - x[1]) / 100, (x[0] + x[2]) / 100))
speeds = st.tuples(st.integers(2, 8), st.integers(0, 1), st.integers(0, 2)).map(
    lambda x: (float(x[0]), float(x[0] - x[1]), float(x[0] + x[2])))


@given(st.lists(st.tuples(drops, st.integers(1, 4), speeds | st.just((3.0, None, None))), max_size=8))
@settings(max_examples=200)
def test_who_is_named_as_better_is_better_and_unbeaten(rows):
    trials = [trial(i, d, t * 10.0, s) for i, (d, t, s) in enumerate(rows)]
    found = frontier(trials)
    for standing in found.standings:
        assert (standing.by is None) == (standing.status == "front")
        if standing.by is not None:
            better = found.standing(standing.by)
            assert better.status != "dominated"
            assert better.trial.quality.drop.value <= standing.trial.quality.drop.value
            assert better.trial.training.seconds <= standing.trial.training.seconds
            assert better.trial.inference.speedup.value >= standing.trial.inference.speedup.value


# -- statuses -----------------------------------------------------------------------------------------------------


def test_front_tied_and_dominated():
    found = frontier([
        trial("fast", (0.004, 0.001, 0.007), 10.0, (4.0, 3.8, 4.2)),
        trial("twin", (0.005, 0.002, 0.008), 10.2, (3.9, 3.7, 4.1)),
        trial("slow", (0.005, 0.002, 0.008), 10.2, (2.0, 1.9, 2.1)),
    ])
    assert [(s.status, s.by) for s in found.standings] == [("front", None), ("tied", "fast"), ("dominated", "fast")]
    assert [t.id for t in found.front] == ["fast"]
    assert found.standing("nobody") is None


def test_a_screened_speed_dominates_nothing_by_speed():
    found = frontier([trial("screened", speedup=(9.0, None, None)), trial("eager")])
    assert statuses(found) == {"screened": "front", "eager": "tied"}


@pytest.mark.parametrize("lacking, reason", [
    ({"speedup": None}, "not measured: speedup"),
    ({"speedup": (None, None, None)}, "not measured: speedup"),
    ({"speedup": (math.nan, 1.0, 2.0)}, "not measured: speedup"),
    ({"drop": None}, "not measured: quality"),
    ({"drop": (math.nan, math.nan, math.nan)}, "not measured: quality"),
    ({"drop": (0.0, math.nan, math.nan)}, "not measured: quality"),
    ({"seconds": None, "drop": None}, "not measured: quality, training cost"),
    ({"seconds": math.nan}, "not measured: training cost"),
    ({"status": "failed", "error": "nan at step 3"}, "failed: nan at step 3"),
])
def test_what_was_not_measured_is_never_ranked(lacking, reason):
    """Olive ranks a missing metric first where lower is better."""
    holed, whole = trial("holed", **({"seconds": 0.001} | lacking)), trial("whole", speedup=(1.5, 1.4, 1.6))
    found = frontier([holed, whole])
    assert [t.id for t in found.front] == ["whole"]
    assert [(x.trial.id, x.reason) for x in found.incomplete] == [("holed", reason)]
    if lacking.get("seconds", 0) is not None and "seconds" not in lacking:
        choice = best([holed, whole], "1pt")
        assert choice.trial is whole and choice.nearest is whole


def test_bytes_count_where_they_are_asked_for():
    small, big = trial("small", size=10, speedup=(1.0, 1.0, 1.0)), trial("big", size=20, speedup=(2.0, 2.0, 2.0))
    assert statuses(frontier([small, big])) == {"small": "dominated", "big": "front"}
    assert statuses(frontier([small, big], ("quality", "bytes", "inference")))["small"] == "front"
    assert [x.reason for x in frontier([small], ("memory",)).incomplete] == ["not measured: serving memory"]
    with pytest.raises(FrontierError, match="no objective 'color'"):
        frontier([], ("color",))


def test_what_cannot_be_compared():
    for other in (
        trial("b", workload_hash="cd34"),
        trial("b", target={"device": "cuda"}),
        trial("b", quality=QualityFigure("accuracy", True, 0.9, 0.9, Drop(0, 0, 0), split="test")),
    ):
        with pytest.raises(FrontierError, match="cannot be compared"):
            frontier([trial("a"), other])
        with pytest.raises(FrontierError, match="cannot be compared"):
            best([trial("a"), other], "1pt")
