from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.measure.statistics import Interval
from thrifty.studies.figures import (
    break_even,
    no_better,
    quality_figure,
    ratio_figure,
    training_figure,
    training_speedup,
)
from thrifty.studies.ledger import Charge, Ledger
from thrifty.studies.trial import Drop, QualityFigure, Ratio
from thrifty.workloads.quality import Accuracy, BitsPerByte, Scores
from thrifty.workloads.regression import R2


@pytest.mark.parametrize(("extra", "saving", "verdict", "expected"), [
    (10.0, 0.5, "faster", 20.0), (-5.0, 0.5, "faster", 0.0), (10.0, 0.5, "no significant gain", "never"),
    (10.0, -0.5, "slower", "never"),
])
def test_break_even(extra, saving, verdict, expected):
    assert break_even(extra, saving, Ratio(1.0, 0.9, 1.1, verdict, 5)) == expected


@pytest.mark.parametrize(("hits", "constant", "told"), [(60, 0.5, False), (55, 0.5, False), (52, 0.5, True), (10, 0.1, True)])
def test_a_reference_no_better_than_a_constant_is_told(hits, constant, told):
    scores = Scores(np.repeat([1.0, 0.0], [hits, 100 - hits]), np.ones(100), np.arange(100))
    text = no_better(Accuracy(), scores, constant)
    assert (text is not None) == told
    if told:
        assert f"({scores.value:.2f} against {constant:.2f}): nothing can be concluded" in text


def test_a_quality_that_is_no_sum_is_compared_with_a_constant_by_resampling():
    draw = np.random.default_rng(0)
    target, noise = draw.normal(size=200), draw.normal(size=200)
    for share, told in ((1.0, False), (0.0, True)):
        scores = Scores((target - share * target - 0.1 * noise)**2, target - target.mean(), np.arange(200), R2().statistic)
        assert (no_better(R2(), scores, 0.0) is not None) == told


def test_one_pair_gives_an_estimate_of_break_even():
    assert break_even(10.0, 0.5, Ratio(9.0, None, None, "screened", 1)) == 20.0
    assert break_even(10.0, -0.5, Ratio(0.9, None, None, "screened", 1)) == "never"
    assert break_even(10.0, 0.5, Ratio(None)) is None


@given(st.floats(0, 1e6), st.floats(1e-6, 1e3))
def test_break_even_pays_back_exactly(extra, saving):
    assert break_even(extra, saving, Ratio(2.0, 1.9, 2.1, "faster", 5)) * saving == pytest.approx(extra)


def quality(value: float, low: float, higher: bool = True) -> QualityFigure:
    return QualityFigure("q", higher, value, 0.9, Drop(0.9 - value, low, 1.0))


def test_the_first_evaluation_that_reaches_the_reference_counts():
    charges = (Charge("training", "t", 50.0),)
    curve = ((10.0, 0.8), (20.0, 0.9), (50.0, 0.95))
    assert training_speedup(Ledger((Charge("training", "r", 60.0),)), charges, curve, quality(0.95, -0.1)) == 3.0


def test_a_drop_that_is_not_significant_counts_at_the_end_with_teachers_and_without_compiling():
    charges = (Charge("teacher", "r", 60.0), Charge("training", "t", 60.0), Charge("compilation", "c", 1000.0))
    reference = Ledger((Charge("training", "r", 60.0),))
    assert training_speedup(reference, charges, ((120.0, 0.89),), quality(0.89, -0.01)) == 0.5


def test_quality_that_is_never_reached_has_no_speedup():
    reference, charges = Ledger((Charge("training", "r", 60.0),)), (Charge("training", "t", 1.0),)
    assert training_speedup(reference, charges, ((1.0, 0.5),), quality(0.5, 0.3)) is None
    assert training_speedup(Ledger(), (), (), quality(0.9, -0.1)) is None


def test_quality_that_a_later_phase_lost_again_does_not_count():
    reference = Ledger((Charge("training", "r", 60.0),))
    charges = (Charge("training", "t", 60.0), Charge("training", "u", 20.0))
    pruned = ((60.0, 0.9), (80.0, 0.88))
    assert training_speedup(reference, charges, pruned, quality(0.88, 0.01)) is None
    assert training_speedup(reference, charges, pruned, quality(0.88, -0.01)) == 0.75


def test_lower_is_better_is_read_the_other_way():
    reference = Ledger((Charge("training", "r", 60.0),))
    curve = ((10.0, 0.95), (30.0, 0.85))
    assert training_speedup(reference, (), curve, quality(0.85, -0.1, higher=False)) == 2.0


def test_a_drop_is_positive_when_worse_whichever_way_is_better():
    ones, files = np.ones(40), np.arange(40)
    good, bad = Scores(ones, ones, files), Scores(np.zeros(40), ones, files)
    assert quality_figure(Accuracy(), good, bad, "test").drop.value == 1.0
    assert quality_figure(BitsPerByte(), bad, good, "test").drop.value == 1.0


def test_ratios_keep_their_interval():
    assert ratio_figure(None) == Ratio(None)
    found = ratio_figure(Interval(2.0, 1.5, 2.5, 5))
    assert (found.value, found.low, found.high, found.verdict, found.pairs) == (2.0, 1.5, 2.5, "faster", 5)


def test_all_that_was_paid_is_in_the_training_figure():
    charges = (Charge("training", "t", 1.0, 5.0, uncounted=("a",)), Charge("compilation", "c", 2.0))
    figure = training_figure(Ledger(charges, 3600.0))
    assert (figure.seconds, figure.flops, figure.dollars, figure.uncounted_operators) == (3.0, 5.0, 3.0, ("a",))
