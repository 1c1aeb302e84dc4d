"""What is read off several rows at once."""

import pytest

from tests.trials import HASH, TARGET
from thrifty.studies import store as stores
from thrifty.studies.ledger import Charge
from thrifty.studies.store import Store, Study


def test_history_is_what_was_charged_when_a_trial_was_first_timed(tmp_path, monkeypatch):
    clock = iter(f"2026-11-24T10:00:{second:02}.000+00:00" for second in range(60))
    monkeypatch.setattr(stores, "now", lambda: next(clock))
    with Store.open(tmp_path, "write", Study("digits", HASH, TARGET)) as store:
        assert store.history() == ()
        store.charge("aaa", Charge("training", "train()", 5.0))
        store.put_round("aaa", 0, {}, "screen")
        store.charge("bbb", Charge("training", "train()", 7.0))
        store.put_round("bbb", 0, {}, "screen")
        store.charge("aaa", Charge("timing", "rounds", 2.0))
        for round in range(5):  # promoted: it was known before
            store.put_round("aaa", round, {}, "claim")
        store.charge(None, Charge("harness", "starting", 1.0))
        store.put_round("ccc", 0, {}, "claim")
        store.put_round("ddd", 0, {}, "evaluations")  # no timing
        assert store.history() == (("aaa", pytest.approx(5.0)), ("bbb", pytest.approx(12.0)), ("ccc", pytest.approx(15.0)))
