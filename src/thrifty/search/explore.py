"""Explore: the frontier under a budget. The reference, each method alone, the best together, then what Optuna proposes.

Every decision is a function of what the store holds: a killed exploration resumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from thrifty.errors import ThriftyError
from thrifty.runs.launcher import Launcher
from thrifty.runs.opening import open_study
from thrifty.runs.preflight import resolve
from thrifty.runs.runner import Runner
from thrifty.search.deadline import BudgetOver, deadline
from thrifty.search.ending import Ended, Ending
from thrifty.search.exploration import Exploration, ExploreError
from thrifty.search.space import Space
from thrifty.studies.as_it_is import AsItIs
from thrifty.studies.constraints import Bars, Choice, choose
from thrifty.studies.events import Listener, Noted, ignore
from thrifty.studies.findings import objectives
from thrifty.studies.frontier import Frontier, frontier
from thrifty.studies.trial import Trial
from thrifty.target import Target, cores, training_machine
from thrifty.workloads.workload import Workload

__all__ = ["Explored", "ExploreError", "explore"]


@final
@dataclass(frozen=True)
class Explored:
    """What an exploration found.

    Args:
        trials: of the study, in the order in which they first ran.
        frontier: over quality, training and what is minimized.
        choice: the recommended trial, or the nearest and why the model as it is should be kept.
        ending: what stopped it, what was skipped, what would come next.
        error: what an error said that ended it.
    """

    trials: tuple[Trial, ...]
    frontier: Frontier
    choice: Choice
    ending: Ending
    error: str = ""

    @property
    def ended(self) -> Ended:
        """By its budget, for want of recipes, by the user, or by an error (for example of the disk)."""
        return self.ending.ended


def explore(workload: str | Workload, budget: float, *, study: str | Path | None = None, bars: Bars = Bars(),
            methods: Sequence[str] = (), target: Target | None = None, seed: int = 0, price: float | None = None,
            promote: int = 4, workers: int = 1, launcher: Launcher | None = None, nproc: int = 1,
            training_threads: int | None = None, training_device: str | None = None,
            listener: Listener = ignore) -> Explored:
    """Find the frontier of a workload within a budget.

    Recipes are screened with one pair; then the front's that may meet the constraints are measured again with five pairs,
    for which a part of the budget is kept, and scored on test. What no recipe fits into goes into more pairs of the best.
    What the store holds is not run again, and what was spent on it counts, killed work too: the same call after an
    interruption goes on, and after its end changes nothing.

    Args:
        workload: a workload, or a reference that `load_workload` takes.
        budget: seconds that the study may spend in all. What is under way then has up to 4% more, and is stopped.
        study: its directory; study-NAME, after the workload, where None.
        bars: what the recommended trial keeps to, and what is made smallest.
        methods: names of the methods to use; all that are installed where none is given.
        target: what the models will run on.
        seed: seed of all random streams.
        price: dollars per hour of this machine.
        promote: largest number of trials that are measured again.
        workers: recipes without training that are compiled side by side; timing is always alone.
        launcher: where recipes run; in processes of this machine where None.
        nproc: processes that train together in recipes that spread a training; ddp and the like are proposed where it is above 1.
        training_threads: threads for every training; one a processor where None.
        training_device: "cpu" or "cuda"; the target's where None.
        listener: hears events while things go on.

    Raises:
        ExploreError: the budget does not reach for the reference, or the reference itself cannot meet a constraint.
        ThriftyError: the workload or a method cannot be used; nothing was spent.
    """
    definition, place = resolve(workload), target or Target()
    if not budget > 0:
        raise ExploreError(f"the budget must be above 0 seconds but is {budget:g}")
    if launcher is None and not 1 <= workers <= cores():
        raise ExploreError(f"workers must be 1 to {cores()} on this machine but are {workers}")
    machine = training_machine(place, training_device, nproc, training_threads)
    space = Space.of(definition, methods, place.device, nproc, machine.device)
    with open_study(study, definition, place, machine, listener) as (opened, clock):
        opened.note("bars", bars.to_json())
        runner = Runner(definition, opened, target=place, seed=seed, price=price, machine=machine, launcher=launcher,
                        listener=listener)
        search, why = Exploration(runner, space, bars, budget, promote, workers, lambda: clock.spent), ""
        ended: Ended = "budget"
        try:
            with deadline(search.grace):
                search.ready()
                ended = search.run()
        except BudgetOver:
            search.overrun()
        except KeyboardInterrupt:
            ended = "interrupted"
        except (ThriftyError, OSError) as error:
            if not search.started:
                raise
            ended, why = "error", str(error)
        ending = search.ending(ended, why)
        opened.note("ended", ending.to_json())
        listener(Noted(ending.says))
        trials = opened.trials()
        as_it_is = AsItIs.of(opened.noted("as it is"), opened.noted("doubt"))
        return Explored(trials, frontier(trials, objectives(bars)), choose(trials, bars, as_it_is), ending, why)
