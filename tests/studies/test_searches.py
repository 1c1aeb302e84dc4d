"""The net of a search: what it cost, and after how many requests that is paid back."""

from __future__ import annotations

import io

import pytest

from tests.trials import BASELINE_SECONDS, trial
from thrifty.report.terminal import print_study
from thrifty.studies.frontier import frontier
from thrifty.studies.ledger import Charge, Ledger
from thrifty.studies.searches import nets

NAS = "nas(limits='latency<=50%')"


def searched(speed: float = 2.0, **fields):
    ledger = Ledger((Charge("training", "train(adamw)", 60.0), Charge("calibration", NAS, 5.0), Charge("search", NAS, 20.0),
                     Charge("search", f"{NAS}: recalled", 10.0), Charge("compilation", "compile(onnxruntime)", 2.0)))
    saving = BASELINE_SECONDS * (1 - 1 / speed)
    return trial("a", f"train(adamw) | {NAS} | compile(onnxruntime)", speed, ledger=ledger, saved_seconds_per_request=saving,
                 **fields)


def test_a_search_is_all_that_its_phase_cost_recalled_parts_included():
    (net,) = nets([searched(), trial("b", "train(adamw) | quantize(w8a8)")])
    assert (net.trial, net.phase, net.seconds) == ("a", NAS, 35.0)
    assert net.requests == pytest.approx(35.0 / (BASELINE_SECONDS / 2))


def test_without_a_significant_saving_it_is_never_paid_back():
    assert nets([searched(1.01)])[0].requests == "never"
    assert nets([searched(inference=None)])[0].requests is None


def test_a_gradient_search_is_the_training_phase_that_holds_it():
    text = "train(darts(softmax), epochs=2)"
    found = nets([trial("a", f"{text} | train(epochs=3)", ledger=Ledger((Charge("training", text, 7.0),
                                                                        Charge("training", "train(epochs=3)", 9.0))))])
    assert [(net.phase, net.seconds) for net in found] == [(text, 7.0)]


def test_show_tells_it():
    out = io.StringIO()
    trials = [searched()]
    print_study(trials, frontier(trials), Ledger(), file=out)
    shown = " ".join(out.getvalue().split())
    assert "requests to pay them back" in shown and "35.0 s" in shown and "after 3.30 krequests" in shown
