"""A study as one JSON document: what ``--json`` prints and what the page shows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thrifty.frontier import Frontier
    from thrifty.ledger import Ledger
    from thrifty.store import Failure
    from thrifty.trial import Trial


def study_json(trials: Sequence[Trial], found: Frontier, spent: Ledger, failures: Iterable[Failure] = (),
               recommended: str | None = None, nearest: str | None = None,
               bars: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A study as JSON values; ``docs/json.md`` says what each field is.

    Args:
        trials: all of them, failed ones too.
        found: their frontier.
        spent: all that really ran.
        failures: every run that failed, in order.
        recommended: the id of the trial that a search chose; None where nothing was asked, or nothing meets the bars.
        nearest: the id of the one that comes closest to the bars.
        bars: what the choice had to meet.

    >>> from thrifty.frontier import frontier
    >>> from thrifty.ledger import Ledger
    >>> study_json([], frontier([]), Ledger())["frontier"]
    []
    """
    return {
        "workload": trials[0].workload if trials else None,
        "target": dict(trials[0].target) if trials else None,
        "environments": environments(trials),
        "trials": [trial.to_json() for trial in trials],
        "frontier": [trial.id for trial in found.front],
        "objectives": list(found.objectives),
        "standings": [{"id": s.trial.id, "status": s.status, "by": s.by} for s in found.standings],
        "not_ranked": [{"id": x.trial.id, "reason": x.reason} for x in found.incomplete],
        "recommended": recommended,
        "nearest": nearest,
        "bars": None if bars is None else dict(bars),
        "failures": [dataclasses.asdict(failure) for failure in failures],
        "spent": {"seconds": spent.seconds, "flops": spent.flops, "joules": spent.joules, "dollars": spent.dollars,
                  "charges": spent.to_json()},
    }


def environments(trials: Iterable[Trial]) -> dict[str, dict[str, Any]]:
    """Every machine and set of versions that trials were measured with: its values and the trials' ids, by a hash.

    Where there is more than one, speeds of different ones may not be comparable.
    """
    found: dict[str, dict[str, Any]] = {}
    for trial in trials:
        text = json.dumps(finite(trial.environment), sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:8]
        found.setdefault(key, {"values": dict(trial.environment), "trials": []})["trials"].append(trial.id)
    return found


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON has not, by null.

    >>> finite({"a": float("nan"), "b": (1.5, float("inf"))})
    {'a': None, 'b': [1.5, None]}
    """
    match value:
        case float() if value != value or value in (float("inf"), float("-inf")):
            return None
        case Mapping():
            return {key: finite(part) for key, part in value.items()}
        case list() | tuple():
            return [finite(part) for part in value]
    return value
