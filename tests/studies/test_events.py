"""Events go from one process to another as JSON lines, and come back as they were."""

from __future__ import annotations

import json

import pytest

from tests.trials import trial
from thrifty.studies.events import (
    BudgetSpent,
    Charged,
    Noted,
    PhaseBegan,
    Promoted,
    Proposed,
    RecipeBegan,
    Stepped,
    SweepBegan,
    TrialEnded,
    from_json,
    to_json,
)
from thrifty.studies.ledger import Charge

EVENTS = [
    SweepBegan(3), BudgetSpent(60.0, 1.5), Proposed(("train()", "prune(ratio=0.5)")), Promoted(2, 5),
    RecipeBegan("train()", "a1"), PhaseBegan("train()"), Stepped(3, 9, loss=0.5, examples_per_second=10.0), Noted("so \u2026"),
    Charged(Charge("training", "train()", 1.5, 2e9, 10**9, None, ("aten.x",), 3.0, None, 2)), TrialEnded(trial("a1")),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_as_it_was(event):
    assert from_json(json.loads(json.dumps(to_json(event)))) == event


@pytest.mark.parametrize("values", [{}, {"event": "Ledger"}, {"event": "Noted"}, {"event": "Noted", "text": 3}])
def test_what_is_no_event_is_refused(values):
    with pytest.raises(ValueError, match="is not an event|Noted|text should be str"):
        from_json(values)
