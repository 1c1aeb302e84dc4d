"""Two studies side by side: what each answers, and the recipes that both have."""

from __future__ import annotations

import dataclasses
from typing import Any

from thrifty.report.answer import answer
from thrifty.studies.findings import Findings
from thrifty.studies.trial import Ratio, Trial

LEFT_OUT = ("effects", "environment", "ledger", "target")
"""Of the other study's trials: what no chart draws."""


def comparison(mine: Findings, other: Findings, name: str) -> dict[str, Any]:
    """The other study as the page of the first one shows it.

    Args:
        mine: the study whose page it is.
        other: the study beside it.
        name: the other study's.

    Returns:
        JSON values; ``docs/json.md`` says what each field is.

    >>> comparison(Findings.of([]), Findings.of([]), "study-other")["rows"]
    []
    """
    here = {(trial.recipe, trial.seed): trial for trial in mine.trials if trial.status == "done"}
    both = [(here[key], trial) for trial in other.trials
            if trial.status == "done" and (key := (trial.recipe, trial.seed)) in here]
    doubts = _doubts(mine, other)
    return {
        "study": name,
        "answer": answer(other),
        "trials": len(other.trials),
        "seconds": other.spent.seconds,
        "front": [_drawn(trial) for trial in other.frontier.front],
        "doubts": [text for text, _ in doubts],
        "apart": any(apart for _, apart in doubts),
        "rows": [_row(one, two) for one, two in both],
    }


def difference(this: Ratio | None, other: Ratio | None) -> str:
    """What two speeds over the same baseline say of each other, by their intervals.

    >>> difference(Ratio(2.0, 1.9, 2.1), Ratio(1.5, 1.4, 1.6)), difference(Ratio(2.0), Ratio(1.0, 0.9, 1.1))
    ('faster here', 'no interval')
    """
    if this is None or other is None or None in (this.low, this.high, other.low, other.high):
        return "no interval"
    if this.low > other.high:  # type: ignore[operator]
        return "faster here"
    return "slower here" if this.high < other.low else "no significant difference"  # type: ignore[operator]


def _drawn(trial: Trial) -> dict[str, Any]:
    """A trial as a chart needs it; where its artifact is concerns the other study's page."""
    artifact = trial.artifact and {"bytes": trial.artifact.bytes, "portable": trial.artifact.portable}
    return {key: value for key, value in trial.to_json().items() if key not in LEFT_OUT} | {"artifact": artifact}


def _row(mine: Trial, other: Trial) -> dict[str, Any]:
    speeds = [trial.inference.speedup if trial.inference else None for trial in (mine, other)]
    drops = [trial.quality.drop if trial.quality else None for trial in (mine, other)]
    values = {name: [None if one is None else dataclasses.asdict(one) for one in pair]  # type: ignore[call-overload]
              for name, pair in (("speedup", speeds), ("drop", drops))}
    return {
        "recipe": mine.recipe, "seed": mine.seed, "id": mine.id, "other_id": other.id,
        "speedup": {"this": values["speedup"][0], "other": values["speedup"][1], "says": difference(*speeds)},
        "drop": {"this": values["drop"][0], "other": values["drop"][1]},
    }


def _doubts(mine: Findings, other: Findings) -> list[tuple[str, bool]]:
    """Why figures may not be comparable, and whether so much that no chart should hold both."""
    if not mine.trials or not other.trials:
        return []
    one, two = mine.trials[0], other.trials[0]
    found = []
    if one.workload_hash != two.workload_hash:
        same = one.workload == two.workload
        found.append(("its workload's source or data differ" if same else f"it is a study of {two.workload}", not same))
    if dict(one.target) != dict(two.target):
        found.append(("its target differs: " + ", ".join(f"{key} {value}" for key, value in two.target.items()), False))
    machines = [{str(trial.environment.get("cpu")) for trial in each.trials} for each in (mine, other)]
    if machines[0] != machines[1]:
        found.append((f"it was measured on {', '.join(sorted(machines[1]))}", False))
    return found
