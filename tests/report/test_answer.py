"""The answer in one sentence."""

import dataclasses

import pytest
from tests.trials import failed, trial

from thrifty.report.answer import answer, sentence
from thrifty.studies.as_it_is import AsItIs
from thrifty.studies.constraints import Bars, choose
from thrifty.studies.findings import Findings
from thrifty.studies.trial import Drop, QualityFigure


def said(*trials, **bars):
    asked = Bars.read(**bars)
    model = AsItIs(bytes=4_000_000, seconds=100.0)
    return sentence(choose(trials, asked, model), asked, model)


@pytest.mark.parametrize("requests, words", [
    (2134.2, "pays back after 2,100 requests"), (7.4, "pays back after 7 requests"), (0.0, "pays back at once"),
    ("never", "never pays back its cost"), (None, "its payback was not measured"),
])
def test_when_it_pays(requests, words):
    assert said(trial("aaa", speed=1.79, drop=0.001, break_even_requests=requests)) == (
        f"1.79x faster at no measurable loss; {words}.")


@pytest.mark.parametrize("drop, words", [
    (0.0, "at no measurable loss"), (0.02, "at a loss of 2 points of accuracy"),
    (-0.02, "at a gain of 2 points of accuracy")])
def test_what_is_lost(drop, words):
    assert words in said(trial("aaa", speed=2.0, drop=drop))


def test_a_quality_that_is_no_share_has_no_points():
    bits = QualityFigure("bits per byte", False, 1.25, 1.2, Drop(0.05, 0.04, 0.06))
    assert "at a loss of 0.0500 bits per byte;" in said(trial("aaa", quality=bits))


@pytest.mark.parametrize("minimize, words", [("bytes", "4.00x smaller"), ("training", "5.00x cheaper to train")])
def test_what_is_gained_is_what_was_asked_for(minimize, words):
    assert said(trial("aaa", seconds=20.0, bytes=1_000_000), minimize=minimize).startswith(words)


def test_the_model_stays_as_it_is():
    slow = said(trial("aaa", speed=0.28), max_drop="1pt")
    assert slow.startswith("Keep the model as it is: no trial that meets the constraints is faster than it")
    assert slow.endswith(".")
    assert said(trial("aaa", speed=3.0, drop=0.5), max_drop="1pt") == (
        "Keep the model as it is: no trial is shown to lose at most 1 point of accuracy; the nearest may lose 50.3 points "
        "of accuracy.")
    assert said(trial("aaa", speed=3.0), max_bytes="1kB") == "No trial meets the constraints: the nearest misses max bytes."
    assert said() == said(failed("aaa", "train()", "nan")) == "Nothing was measured yet."


def test_without_an_exploration_a_point_may_be_lost():
    trials = [trial("aaa", speed=9.0, drop=0.4), trial("bbb", speed=2.0)]
    found = answer(Findings.of(trials))
    assert found["trial"] == "bbb" and found["bars"]["max_drop"] == "0.01"
    assert answer(Findings.of(trials, asked={"max_drop": "50pt"}))["trial"] == "aaa"
    bits = QualityFigure("bits per byte", False, 1.205, 1.2, Drop(0.005, 0.004, 0.006))
    assert answer(Findings.of([dataclasses.replace(trials[1], quality=bits)]))["bars"]["max_drop"] == "1%"
