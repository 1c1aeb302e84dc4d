"""What a study says: its trials, their frontier, what it recommends, what it took."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from thrifty.studies.as_it_is import AsItIs
from thrifty.studies.constraints import Bars, Choice, choose
from thrifty.studies.frontier import Frontier, frontier
from thrifty.studies.ledger import Ledger
from thrifty.studies.places import found_source
from thrifty.studies.remarks import Remarks, remarks_of
from thrifty.studies.store import Failure, Store
from thrifty.studies.trial import Trial


@final
@dataclass(frozen=True)
class Findings:
    """A study's trials and what follows from them: standings, frontier, recommendation.

    Args:
        trials: in the order in which they first ran.
        frontier: over quality, the cost of training, and what is minimized.
        bars: constraints of the last exploration; None where there was none.
        choice: by those bars; without any, the fastest.
        spent: all that really ran.
        failures: every run that failed.
        source: where the workload was found, as `load_workload` takes it; None where that was not noted.
        doubt: why nothing can be concluded from it; None where there is no such reason.
        as_it_is: what is known of the model that nothing was done to, the doubt included.
        ended: how the last exploration ended, as `thrifty.search.ending` says; None where there was none.
        remarks: tags and notes, by the trial's id.
        history: trials in the order in which they were first timed, each with the seconds charged by then.
    """

    trials: tuple[Trial, ...]
    frontier: Frontier
    bars: Bars | None
    choice: Choice
    spent: Ledger
    failures: tuple[Failure, ...]
    source: str | None = None
    doubt: str | None = None
    as_it_is: AsItIs = AsItIs()
    ended: Mapping[str, Any] | None = None
    remarks: Mapping[str, Remarks] = field(default_factory=dict)
    history: tuple[tuple[str, float], ...] = ()

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Findings:
        """The findings of the study in a directory.

        Raises:
            ThriftyError: there is none, or it cannot be read.
        """
        with Store.open(path) as store:
            source = found_source(store.noted("source"), store.path)
            return Findings.of(store.trials(), store.spent(), store.failures(), store.noted("bars"), source,
                               store.noted("doubt"), store.noted("as it is"), store.noted("ended"),
                               store.noted("remarks"), store.history())

    @staticmethod
    def of(trials: Sequence[Trial], spent: Ledger = Ledger(), failures: Sequence[Failure] = (),
           asked: Mapping[str, Any] | None = None, source: str | None = None,
           doubt: str | None = None, as_it_is: Mapping[str, Any] | None = None,
           ended: Mapping[str, Any] | None = None, remarks: Mapping[str, Any] | None = None,
           history: Sequence[tuple[str, float]] = ()) -> Findings:
        """The findings of trials, judged by the constraints that were asked for.

        >>> Findings.of([]).choice.trial is None
        True
        """
        bars, model = Bars.of(asked), AsItIs.of(as_it_is, doubt)
        return Findings(tuple(trials), frontier(trials, objectives(bars)), None if asked is None else bars,
                        choose(trials, bars, model), spent, tuple(failures), source, doubt, model, ended, remarks_of(remarks),
                        tuple(history))


def objectives(bars: Bars) -> tuple[str, ...]:
    """What a frontier is drawn over: quality, the cost of training, and what is minimized."""
    return tuple(dict.fromkeys(("quality", "training", bars.objective)))
