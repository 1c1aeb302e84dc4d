from __future__ import annotations

import json
import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.studies.ledger import Charge, Kind, Ledger

amounts = st.none() | st.floats(0, 1e12)
charges = st.builds(
    Charge, kind=st.sampled_from(get_args(Kind)), what=st.text(max_size=10), seconds=st.floats(0, 1e6), flops=amounts,
    peak_memory_bytes=st.none() | st.integers(0, 2**40), joules=amounts,
    uncounted=st.lists(st.sampled_from(["aten::a", "aten::b", "aten::c"]), max_size=3).map(tuple),
)
ledgers = st.builds(Ledger, st.lists(charges, max_size=6).map(tuple), st.none() | st.floats(0, 100))


@given(ledgers)
def test_json_gives_the_ledger_back(ledger: Ledger) -> None:
    assert Ledger.from_json(json.loads(json.dumps(ledger.to_json())), ledger.price) == ledger


@given(ledgers, st.lists(charges, max_size=4))
def test_adding_adds_and_changes_nothing_that_was_there(ledger: Ledger, more: list[Charge]) -> None:
    both = ledger + more
    assert both.charges[:len(ledger.charges)] == ledger.charges
    assert math.isclose(both.seconds, ledger.seconds + Ledger(tuple(more)).seconds, rel_tol=1e-9, abs_tol=1e-9)
    assert both.price == ledger.price
    assert set(both.uncounted) >= set(ledger.uncounted)


@given(ledgers)
def test_every_charge_is_of_one_kind(ledger: Ledger) -> None:
    assert sum(len(ledger.only(kind).charges) for kind in get_args(Kind)) == len(ledger.charges)
    assert ledger.only(*get_args(Kind)) == ledger


@given(ledgers)
def test_what_was_not_measured_is_none_and_never_zero(ledger: Ledger) -> None:
    for name in ("flops", "joules", "peak_memory_bytes"):
        known = [getattr(charge, name) for charge in ledger.charges if getattr(charge, name) is not None]
        assert (getattr(ledger, name) is None) == (not known)
    assert (ledger.dollars is None) == (ledger.price is None)
    if ledger.charges:
        peaks = [c.peak_memory_bytes for c in ledger.charges if c.peak_memory_bytes is not None]
        assert ledger.peak_memory_bytes == max(peaks, default=None), "peaks do not add up"


def test_dollars_are_hours_times_the_price() -> None:
    ledger = Ledger((Charge("training", "train()", 1800.0), Charge("failure", "train()", 1800.0)), price=3.0)
    assert ledger.dollars == pytest.approx(3.0), "failures are paid for too"
    assert Ledger(price=3.0).dollars == 0.0


def test_operators_that_were_not_counted_are_named_once() -> None:
    ledger = Ledger((Charge("training", "a", 1, uncounted=("b", "a")), Charge("training", "b", 1, uncounted=("a",))))
    assert ledger.uncounted == ("a", "b")
