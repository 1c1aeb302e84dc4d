"""What a study spent is the wall-clock of its writers, however they ended."""

import os
import time

import pytest

from thrifty.measure import command
from thrifty.studies.clock import HARNESS, KILLED, Clock, reconciled, running
from thrifty.studies.ledger import Charge
from thrifty.studies.store import Store, Study

STUDY = Study("digits", "ab12", {"device": "cpu"})


class Time:
    """A clock that is set by hand."""

    def __init__(self, at: float) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def place(tmp_path):
    return tmp_path / "study"


def lived_until(place, at):
    os.utime(place / "study.lock", (at, at))


def test_what_no_charge_covers_is_charged_at_the_end(place):
    now = Time(1000.0)
    with Store.open(place, "write", STUDY) as store:
        clock = Clock(store, 990.0, now)  # the command began ten seconds ago
        store.charge("a", Charge("training", "train()", 30.0))
        now.at = 1040.0
        assert clock.spent == 50.0
        clock.end()
        assert [(c.kind, c.what, c.seconds) for c in store.spent().charges[1:]] == [("harness", HARNESS, 20.0)]
        now.at = 1100.0
        again = Clock(store, 1090.0, now)
        assert again.spent == 60.0
        again.end()
    with Store.open(place) as store:
        assert store.spent().seconds == 60.0 and store.noted("session") is None


def test_what_a_killed_writer_had_in_hand_is_charged_by_the_next(place):
    now = Time(1000.0)
    with Store.open(place, "write", STUDY) as store:
        Clock(store, 1000.0, now)
        store.charge("a", Charge("training", "train()", 30.0))  # and then it was killed
    lived_until(place, 1047.0)
    with Store.open(place, "write", STUDY) as store:
        now.at = 5000.0
        clock = Clock(store, 5000.0, now)
        assert clock.spent == 47.0
        assert [(c.kind, c.what, c.seconds) for c in store.spent().charges[1:]] == [("failure", KILLED, 17.0)]
    lived_until(place, 4000.0)  # it was killed before its first sign of life
    with Store.open(place, "write", STUDY) as store:
        assert reconciled(store) == 47.0


def test_work_side_by_side_is_charged_as_it_was(place):
    """Two recipes of 30 s at once are 60 s of work in 30: nothing is left to charge, and nothing is given back."""
    now = Time(1000.0)
    with Store.open(place, "write", STUDY) as store:
        clock = Clock(store, 1000.0, now)
        for trial in "ab":
            store.charge(trial, Charge("compilation", "inductor", 30.0))
        now.at = 1030.0
        clock.end()
        assert store.spent().seconds == 60.0


def test_a_writer_gives_signs_of_life(place):
    with Store.open(place, "write", STUDY) as store, running(store, time.time()):
        lived_until(place, 1000.0)
        deadline = time.monotonic() + 20
        while (place / "study.lock").stat().st_mtime < 2000 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (place / "study.lock").stat().st_mtime == pytest.approx(time.time(), abs=5)


def test_a_command_began_with_its_process_and_what_comes_later_when_it_comes():
    command.begin()
    assert command.began() == pytest.approx(command.process_began(), abs=0.1)
    assert command.began() == pytest.approx(time.time(), abs=0.1)
    assert command.process_began() < time.time()
