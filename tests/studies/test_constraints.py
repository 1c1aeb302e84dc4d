"""Choosing: bars are met or said to be missed, and nothing unmeasured is ever chosen."""

import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.factories import trial
from thrifty.studies.as_it_is import AsItIs
from thrifty.studies.constraints import Bars, DropBar, best, choose
from thrifty.studies.frontier import FrontierError
from thrifty.studies.trial import InferenceFigure, Ratio

drops = st.integers(0, 5).flatmap(lambda v: st.integers(0, 3).map(lambda w: (v / 100, (v - w) / 100, (v + w) / 100)))
speeds = st.integers(1, 9).flatmap(lambda v: st.sampled_from([0.0, 0.5]).map(lambda w: (float(v), v - w, v + w)))


def test_the_upper_end_of_the_drop_is_judged():
    safe = trial("safe", (0.004, 0.001, 0.0095), speedup=(2.0, 1.9, 2.1))
    risky = trial("risky", (0.004, 0.000, 0.011), speedup=(5.0, 4.9, 5.1))
    assert best([risky, safe], "1pt").trial is safe
    assert best([risky, safe], "2pt").trial is risky
    assert best([risky, safe], "1%").trial is None  # of 0.9
    assert best([trial("exact", (0.0, 0.0, 0.98 - 0.97))], "1pt").misses == ()  # 0.01 and a rounding
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
    alone = best([screened], "1pt")
    assert alone.trial is None and alone.nearest is screened and "screened at 9.00x with one pair" in alone.keep


def test_other_things_to_minimize():
    a, b = trial("a", size=10, seconds=20.0), trial("b", size=20, seconds=10.0)  # neither is slower than the model
    assert best([a, b], "1pt", minimize="bytes").trial is a
    assert best([a, b], "1pt", minimize="training").trial is b


def test_of_speeds_that_cannot_be_told_apart_the_smaller_drop_decides():
    fast, safe = trial("fast", (0.003, -0.004, 0.0095), speedup=(5.4, 5.0, 5.8)), trial("safe", (0.0, -0.003, 0.003),
                                                                                        speedup=(5.2, 4.6, 5.9))
    slow = trial("slow", (0.0, 0.0, 0.0), speedup=(4.9, 4.8, 5.0))
    assert best([fast, safe, slow], "1pt").trial is safe
    assert best([fast, slow], "1pt").trial is fast
    assert best([fast, trial("screened", (0.0, 0.0, 0.0), speedup=(9.0, None, None))], "1pt").trial is fast


@given(st.lists(st.tuples(drops, speeds), max_size=8), st.integers(0, 6))
def test_the_choice_is_the_fastest_that_meets_the_bar(rows, points):
    trials = [trial(i, d, speedup=s) for i, (d, s) in enumerate(rows)]
    choice = best(trials, f"{points}pt")
    good = [t for t in trials if t.quality.drop.high <= points / 100]
    faster = [t for t in good if t.inference.speedup.low > 1]
    assert (choice.trial is None) == (not faster) and (choice.keep is None) == (bool(faster) or not trials)
    if faster:
        least = max(t.inference.speedup.low for t in faster)
        alike = [t for t in faster if 1 / t.inference.speedup.value <= 1 / least]
        assert choice.trial in alike and choice.trial.quality.drop.high == min(t.quality.drop.high for t in alike)
    elif good:
        assert choice.nearest in good
        assert choice.nearest.inference.speedup.low == max(t.inference.speedup.low for t in good)
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


@pytest.mark.parametrize("text", ["3", "1", "1.5e1"])
def test_a_large_drop_without_a_unit_is_asked_about(text):
    with pytest.raises(FrontierError, match=rf"{float(text):g}pt .* {float(text):g}% .* {100 * float(text):g}pt .*say which"):
        DropBar.parse(text)


def test_a_large_drop_in_the_qualitys_own_unit_is_kept(tmp_path):
    bars = Bars.read("300pt")
    assert bars.max_drop == DropBar(3.0) and Bars.of(bars.to_json()) == bars


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


# -- the model as it is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed, says", [
    ((0.28, 0.27, 0.29), "no trial that meets the constraints is faster than it: the nearest is 0.28x"),
    ((1.02, 0.97, 1.07), r"significantly faster: the nearest is 1.02x \[0.97, 1.07\]"),
    ((0.5, None, None), "no trial that meets the constraints is faster than it"),
])
def test_nothing_that_is_not_faster_is_recommended(speed, says):
    choice = best([trial("x", speedup=speed)], "1pt")
    assert choice.trial is None and choice.nearest.id == "x" and choice.misses == ()
    assert re.search(says, choice.keep)


@pytest.mark.parametrize("minimize", ["bytes", "training"])
def test_what_is_slower_is_not_recommended_whatever_is_minimised(minimize):
    slow, fine = trial("slow", size=10, seconds=1.0, speedup=(0.5, 0.4, 0.6)), trial("fine", size=20, seconds=2.0)
    assert best([slow, fine], "1pt", minimize=minimize).trial is fine
    alone = best([slow], "1pt", minimize=minimize)
    assert alone.trial is None and "0.50x [0.40, 0.60] as fast" in alone.keep


def test_what_is_not_less_than_the_model_has_is_not_recommended():
    one = trial("one", size=1000, seconds=10.0)
    assert choose([one], Bars.read(minimize="bytes"), AsItIs(bytes=1001)).trial is one
    assert "significantly less bytes" in choose([one], Bars.read(minimize="bytes"), AsItIs(bytes=1000)).keep
    assert choose([one], Bars.read(minimize="training"), AsItIs(seconds=12.0)).trial is one
    assert choose([one], Bars.read(minimize="training"), AsItIs(seconds=10.5)).trial is None  # within what trainings vary by
    assert choose([one], Bars.read(minimize="training"), AsItIs(seconds=0.0)).trial is None  # it comes trained
    eater = trial("eater", raw={"figures": {"eager": {"peak_memory_bytes": 5}}}, inference=InferenceFigure(
        "SingleStream", 0.01, 0.02, Ratio(2.0, 1.9, 2.1), Ratio(None), None, 6, None))
    assert choose([eater], Bars.read(minimize="memory")).trial is None


def test_where_nothing_can_be_concluded_nothing_is_recommended():
    choice = choose([trial("fast", speedup=(4.0, 3.9, 4.1))], Bars.read("1pt"), AsItIs(doubt="the reference guesses"))
    assert (choice.trial, choice.nearest.id, choice.keep) == (None, "fast", "the reference guesses")


def test_the_model_as_it_is_must_meet_the_bars_too():
    lossy = trial("lossy", (0.5, 0.4, 0.6), speedup=(4.0, 3.9, 4.1))
    assert "no trial meets the constraints, but it does" in choose([lossy], Bars.read("1pt")).keep
    assert choose([lossy], Bars.read("1pt", max_bytes=10)).keep is None  # nobody knows its bytes
    assert choose([lossy], Bars.read("1pt", max_bytes=10), AsItIs(bytes=9)).keep is not None


def test_without_a_bar_the_fastest_is_chosen():
    fast = trial("fast", (0.5, 0.4, 0.6), speedup=(4.0, 3.9, 4.1))
    assert choose([trial("slow"), fast], Bars()).trial is fast


def test_more_evidence_may_show_it():
    bars = Bars.read("1pt")
    assert bars.open(trial("wide", (0.005, -0.01, 0.02)))
    assert not bars.open(trial("worse", (0.03, 0.02, 0.04)))
    assert not Bars.read("1pt", max_bytes=10).open(trial("big", size=20))


def test_what_to_minimise_is_known():
    with pytest.raises(FrontierError, match="latency, bytes, memory, training but is 'color'"):
        Bars(minimize="color")


def test_an_unmeasured_figure_misses_its_bar():
    assert Bars.read(max_bytes=5).misses(trial("x", size=None))[0].figure == math.inf
