"""A study as one JSON document: what ``--json`` prints and what the page shows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thrifty.studies.findings import Findings
    from thrifty.studies.trial import Trial


def study_json(found: Findings) -> dict[str, Any]:
    """A study as JSON values; ``docs/reference/json.md`` says what each field is.

    >>> from thrifty.studies.findings import Findings
    >>> study_json(Findings.of([]))["frontier"]
    []
    """
    trials, standings, spent = found.trials, found.frontier, found.spent
    asked = found.bars is not None
    return {
        "workload": trials[0].workload if trials else None,
        "target": dict(trials[0].target) if trials else None,
        "source": found.source,
        "doubt": found.doubt,
        "environments": environments(trials),
        "trials": [trial.to_json() for trial in trials],
        "frontier": [trial.id for trial in standings.front],
        "objectives": list(standings.objectives),
        "standings": [{"id": s.trial.id, "status": s.status, "by": s.by} for s in standings.standings],
        "not_ranked": [{"id": x.trial.id, "reason": x.reason} for x in standings.incomplete],
        "recommended": found.choice.trial.id if asked and found.choice.trial else None,
        "nearest": found.choice.nearest.id if asked and found.choice.nearest else None,
        "keep": found.choice.keep if asked else None,
        "as_it_is": found.as_it_is.to_json(),
        "ended": found.ended,
        "bars": found.bars and found.bars.to_json(),
        "failures": [dataclasses.asdict(failure) for failure in found.failures],
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
        case float():
            return value or 0.0  # -0.0 is 0
        case Mapping():
            return {key: finite(part) for key, part in value.items()}
        case list() | tuple():
            return [finite(part) for part in value]
    return value
