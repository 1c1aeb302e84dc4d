"""A search is ended from outside, and what was there before is there again."""

import os
import signal
import threading
import time

import pytest

from thrifty.search.deadline import BudgetOver, deadline


def test_a_spent_budget_stops_what_is_under_way():
    began = time.monotonic()
    with pytest.raises(BudgetOver), deadline(0.1):
        time.sleep(30)
    assert time.monotonic() - began < 10


def test_what_ends_in_time_is_not_disturbed():
    before = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGTERM)
    with deadline(30):
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 30
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert (signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGTERM)) == before
    with deadline(float("inf")):
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_sigterm_is_ctrl_c():
    with pytest.raises(KeyboardInterrupt), deadline(30):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)


def test_a_thread_has_no_deadline():
    ended = []

    def run():
        with deadline(0.01):
            time.sleep(0.1)
            ended.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert ended == [True]
