"""What searches cost, what they save, and after how many requests that is paid back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, final

from thrifty.errors import ThriftyError
from thrifty.recipes.phases import methods_of
from thrifty.recipes.recipe import Recipe
from thrifty.studies.figures import break_even
from thrifty.studies.trial import Trial

FAMILIES = ("nas", "gradient-nas")


@final
@dataclass(frozen=True)
class Net:
    """One search of one trial.

    Args:
        trial: its id.
        phase: the search's text.
        seconds: that the phase cost, all that it measured, trained and calibrated included.
        saving: seconds a request, of the trial against the baseline; None where no speed was measured.
        requests: after which the search is paid back, "never", or None where no speed was measured.
    """

    trial: str
    phase: str
    seconds: float
    saving: float | None
    requests: float | Literal["never"] | None


def nets(trials: Iterable[Trial]) -> list[Net]:
    """Every search of every trial, in order."""
    return [net for trial in trials if trial.status == "done" for net in _of(trial)]


def _of(trial: Trial) -> list[Net]:
    try:
        phases = list(Recipe.parse(trial.recipe))
    except ThriftyError:  # of a method that is not installed here
        return []
    found = []
    for text in dict.fromkeys(str(p) for p in phases if any(method.card.family in FAMILIES for method in methods_of(p))):
        paid = [charge.seconds for charge in trial.ledger.charges if charge.what == text or charge.what.startswith(f"{text}: ")]
        saving = trial.saved_seconds_per_request
        requests = (None if saving is None or trial.inference is None
                    else break_even(sum(paid), saving, trial.inference.speedup))
        found.append(Net(trial.id, text, sum(paid), saving, requests))
    return found
