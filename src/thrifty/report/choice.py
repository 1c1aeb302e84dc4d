"""Which trial is recommended, what it misses where none is, and when it pays."""

from __future__ import annotations

import math
from typing import TextIO

from rich.text import Text

from thrifty.report.console import pairs, show
from thrifty.report.words import NOT_MEASURED, drop, literal, ratio, scaled, seconds, significant
from thrifty.studies.constraints import Bars, Choice, Miss
from thrifty.studies.ledger import Ledger
from thrifty.studies.trial import Trial


def print_choice(choice: Choice, bars: Bars, spent: Ledger, requests_per_day: float | None = None,
                 file: TextIO | None = None) -> None:
    """The recommended trial and its figures, or the nearest and the constraints that it misses.

    Args:
        choice: of the study's trials.
        bars: what it had to meet.
        spent: all that the study took, which the recommended trial may have to pay back.
        requests_per_day: that will be served; break-even is then in days too.
        file: stdout where None.
    """
    if choice.nearest is None:
        show(Text("Nothing was measured, so nothing is recommended."), file=file)
        return
    trial = choice.nearest
    if choice.keep is not None:
        show(Text(f"Keep the model as it is: {literal(choice.keep)}.", style="bold"), file=file)
    asked = ", ".join(f"{name} {value}" for name, value in bars.to_json().items() if value is not None)
    rows: list[tuple[str, object]] = [
        ("trial", f"{trial.id} seed {trial.seed}"),
        ("recipe", trial.recipe or "(the model as it comes)"),
        ("asked for", asked),
        *(("misses", missed(miss)) for miss in choice.misses),
        ("quality lost", drop(trial.quality)),
        *([("on test", drop(trial.test))] if trial.test else []),
        ("speedup", f"{ratio(trial.inference and trial.inference.speedup)} "
                    f"{trial.inference.speedup.verdict if trial.inference else ''}"),
        ("latency", seconds(trial.inference.latency_p50 if trial.inference else None)),
        ("artifact", f"{trial.artifact.path}, {scaled(trial.artifact.bytes, 'B')}" if trial.artifact else NOT_MEASURED),
        ("break-even", payback(trial.break_even_requests, requests_per_day)),
        ("with the search", payback(searched(trial, spent), requests_per_day)),
    ]
    title = "Recommended" if choice.trial is not None else (
        "No trial meets the constraints; the nearest" if choice.keep is None else "The nearest, which is not recommended")
    show(pairs(rows, title=title), file=file)


def missed(miss: Miss) -> str:
    """By how much a trial is over a constraint."""
    return f"{miss.bar}: {significant(miss.figure)}, and {significant(miss.limit)} is allowed"


def searched(trial: Trial, spent: Ledger) -> float | str | None:
    """Requests after which the trial has paid back all that the study spent."""
    if not isinstance(trial.break_even_requests, int | float) or not trial.saved_seconds_per_request:
        return trial.break_even_requests
    return spent.seconds / trial.saved_seconds_per_request


def payback(requests: float | str | None, per_day: float | None) -> str:
    """Requests, and days where the traffic is known.

    >>> payback(20000.0, 1000), payback("never", 1000), payback(None, None)
    ('after 20.0 krequests, 20 days', 'never', 'not measured')
    """
    if not isinstance(requests, int | float):
        return requests or NOT_MEASURED
    if not math.isfinite(requests):
        return "never"
    days = f", {significant(requests / per_day, 2)} days" if per_day else ""
    return f"after {scaled(round(requests), 'requests')}{days}"
