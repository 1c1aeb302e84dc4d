import io

from tests.trials import trial

from thrifty.report.choice import print_choice, searched
from thrifty.studies.constraints import Bars, choose
from thrifty.studies.ledger import Charge, Ledger

SPENT = Ledger((Charge("training", "train()", 100.0),))


def printed(trials, bars, per_day=None):
    into = io.StringIO()
    print_choice(choose(trials, bars), bars, SPENT, per_day, into)
    return into.getvalue()


def test_the_recommended_trial_and_when_it_pays():
    one = trial("abc", "prune(ratio=0.5)", 4.0, 0.002, break_even_requests=500.0, saved_seconds_per_request=0.01)
    text = printed([one], Bars.read("1pt"), 100)
    assert text.startswith("Recommended")
    assert "abc seed 0" in text and "4.00x [3.80, 4.20] faster" in text
    assert "after 500 requests, 5.0 days" in text
    assert searched(one, SPENT) == 10_000 and "after 10.0 krequests, 100 days" in text


def test_what_the_nearest_misses():
    text = printed([trial("abc", drop=0.05, bytes=3000)], Bars.read("1pt", max_bytes="2kB"))
    assert text.startswith("No trial meets the constraints; the nearest")
    assert "max_drop: 0.0530, and 0.0100 is allowed" in text and "max_bytes: 3000, and 2000 is allowed" in text


def test_what_is_slower_is_not_recommended_and_that_is_said_first():
    text = printed([trial("abc", speed=0.5)], Bars.read("1pt"))
    told = " ".join(text.split())
    assert told.startswith("Keep the model as it is: no trial that meets the constraints is faster than it: the nearest is 0.50x")
    assert "The nearest, which is not recommended" in text and "Recommended" not in text


def test_nothing_is_recommended_of_nothing():
    assert printed([], Bars()) == "Nothing was measured, so nothing is recommended.\n"


def test_a_gain_that_never_comes_is_never_paid_back():
    slow = trial("abc", speed=0.5, break_even_requests="never", saved_seconds_per_request=-0.01)
    assert searched(slow, SPENT) == "never" and "never" in printed([slow], Bars())
