"""Choosing: bars are met or said to be missed, and nothing unmeasured is ever chosen."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.factories import trial
from thrifty.studies.constraints import Bars, DropBar, best, choose
from thrifty.studies.frontier import FrontierError

drops = st.integers(0, 5).flatmap(lambda v: st.integers(0, 3).map(lambda w: (v / 100, (v - w) / 100, (v + w) / 100)))
speeds = st.integers(1, 9).flatmap(lambda v: st.sampled_from([0.0, 0.5]).map(lambda w: (float(v), v - w, v + w)))


def test_the_upper_end_of_the_drop_is_judged():
    safe = trial("safe", (0.004, 0.001, 0.0095), speedup=(2.0, 1.9, 2.1))
    risky = trial("risky", (0.004, 0.000, 0.011), speedup=(5.0, 4.9, 5.1))
    assert best([risky, safe], "1pt").trial is safe
    assert best([risky, safe], "2pt").trial is risky
    assert best([risky, safe], "1%").trial is None  # of 0.9
    assert best([trial("exact", (0.0, 0.0, 0.98 - 0.97))], "1pt").trial is not None  # 0.01 and a rounding
    assert best([], "1pt") == best([trial("x", None)], "1pt")


def test_nothing_good_enough_is_said_not_hidden():
    """INC returns its best trial even where that misses the target, unflagged."""
    far, near = trial("far", (0.5, 0.4, 0.6), speedup=(9.0, 9.0, 9.0)), trial("near", (0.02, 0.01, 0.03))
    choice = best([far, near], "1pt")
    assert choice.trial is None
    assert choice.nearest is near
    assert [(miss.bar, miss.figure, miss.limit) for miss in choice.misses] == [("max_drop", 0.03, 0.01)]


def test_a_speed_with_an_interval_comes_before_a_screened_one():
    screened, claimed = trial("screened", speedup=(9.0, None, None)), trial("claimed", speedup=(3.0, 2.9, 3.1))
    assert best([screened, claimed], "1pt").trial is claimed
    assert best([screened], "1pt").trial is screened


def test_other_things_to_minimize():
    a, b = trial("a", size=10, seconds=20.0), trial("b", size=20, seconds=10.0)
    assert best([a, b], "1pt", minimize="bytes").trial is a
    assert best([a, b], "1pt", minimize="training").trial is b


@given(st.lists(st.tuples(drops, speeds), max_size=8), st.integers(0, 6))
def test_the_choice_is_the_fastest_that_meets_the_bar(rows, points):
    trials = [trial(i, d, speedup=s) for i, (d, s) in enumerate(rows)]
    choice = best(trials, f"{points}pt")
    good = [t for t in trials if t.quality.drop.high <= points / 100]
    assert (choice.trial is None) == (not good)
    if good:
        assert choice.trial in good
        assert choice.trial.inference.speedup.low == max(t.inference.speedup.low for t in good)
    elif trials:
        assert choice.nearest.quality.drop.high == min(t.quality.drop.high for t in trials)


@given(st.floats(0, 100))
def test_bars_read_back(amount):
    assume(amount == 0 or amount > 1e-9)
    assert DropBar.parse(f"{amount:f}pt").amount == float(f"{amount:f}") / 100
    assert DropBar.parse(f" {amount:f} % ").relative
    assert DropBar.parse(amount).amount == amount
    assert DropBar.parse(DropBar(0.5)) == DropBar(0.5)


@pytest.mark.parametrize("text", ["", "1 point", "-1pt", "nan", "1pt or so", "%", "inf"])
def test_bars_that_cannot_be_read(text):
    with pytest.raises(FrontierError, match="1pt"):
        DropBar.parse(text)


# -- several bars -------------------------------------------------------------------------------------------------


def test_every_bar_counts():
    small, fast = trial("small", size=10, speedup=(2.0, 2.0, 2.0)), trial("fast", size=20, speedup=(4.0, 4.0, 4.0))
    assert choose([small, fast], Bars.read("1pt")).trial is fast
    assert choose([small, fast], Bars.read("1pt", max_bytes=15)).trial is small
    nothing = choose([small, fast], Bars.read("1pt", max_bytes=5))
    assert nothing.trial is None and nothing.nearest is small
    assert [(miss.bar, miss.limit) for miss in nothing.misses] == [("max_bytes", 5)]
    assert choose([small], Bars.read(max_latency="5ms")).trial is None  # it takes 10
    assert choose([small], Bars.read(max_latency="10ms")).trial is small


def test_without_a_bar_the_fastest_is_chosen():
    fast = trial("fast", (0.5, 0.4, 0.6), speedup=(4.0, 4.0, 4.0))
    assert choose([trial("slow"), fast], Bars()).trial is fast


def test_more_evidence_may_show_it():
    bars = Bars.read("1pt")
    assert bars.open(trial("wide", (0.005, -0.01, 0.02)))
    assert not bars.open(trial("worse", (0.03, 0.02, 0.04)))
    assert not Bars.read("1pt", max_bytes=10).open(trial("big", size=20))


def test_what_to_minimise_is_known():
    with pytest.raises(FrontierError, match="latency, bytes, memory, training but is 'colour'"):
        Bars(minimize="colour")


def test_an_unmeasured_figure_misses_its_bar():
    assert Bars.read(max_bytes=5).misses(trial("x", size=None))[0].figure == math.inf
