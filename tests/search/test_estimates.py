"""Estimates carry their error, and are mended by what was seen."""

import pytest

from thrifty.search.estimates import ENOUGH, LEAST, UNKNOWN, Estimate, Estimates


def test_nothing_seen_may_be_far_off():
    assert Estimates().of(10.0) == Estimate(10.0, 10.0 * UNKNOWN)
    assert Estimates([(5.0, 5.0)] * (ENOUGH - 1)).error == UNKNOWN


def test_a_machine_that_became_busy_takes_longer_for_all():
    seen = [(10.0, 10.0)] * 8
    assert Estimates(seen).of(10.0) == Estimate(10.0, pytest.approx(10.0 * LEAST))
    busy = Estimates([*seen, *[(10.0, 25.0)] * 5])
    assert busy.of(10.0).seconds == 25.0 and busy.error > LEAST
    assert Estimates([*seen, *[(10.0, 25.0)] * 8]).error == LEAST  # of what came before nothing is left


def test_what_scatters_is_not_relied_on():
    steady, wild = (Estimates([(1.0, took) for took in each]) for each in ((1.0, 1.1, 0.9, 1.0), (0.5, 1.5, 1.0, 2.5)))
    assert LEAST == steady.error < wild.error <= UNKNOWN


def test_an_estimate_of_nothing_mends_nothing():
    assert Estimates([(0.0, 3.0), (3.0, 0.0)]).scale == 1.0


def test_it_says_both_ends():
    assert str(Estimate(12.4, 15.6)) == "about 12 s, up to 16"
