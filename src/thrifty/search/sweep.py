"""Measure a list of recipes: screen all, measure the front again with enough pairs for a claim, score it on test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from thrifty.recipes.recipe import Recipe
from thrifty.runs.opening import open_study
from thrifty.runs.preflight import check_recipe, resolve
from thrifty.runs.runner import CLAIM_PAIRS, Runner
from thrifty.studies.events import Listener, Promoted, SweepBegan, ignore
from thrifty.studies.frontier import Frontier, frontier
from thrifty.studies.trial import Trial
from thrifty.target import Target, training_machine
from thrifty.workloads.workload import Workload


@final
@dataclass(frozen=True)
class Swept:
    """The trials in the order of their recipes, the front's being measured again, and the frontier."""

    trials: tuple[Trial, ...]
    frontier: Frontier


def sweep(workload: str | Workload, recipes: Sequence[str | Recipe], *, study: str | Path | None = None,
          target: Target | None = None, seed: int = 0, price: float | None = None, promote: int = 4,
          training_threads: int | None = None, training_device: str | None = None, listener: Listener = ignore) -> Swept:
    """Run recipes one by one and find their frontier.

    Args:
        workload: a workload, or a reference that `load_workload` takes.
        recipes: texts or values; all are checked before the first runs.
        study: its directory; study-NAME, after the workload, where None. Asking again resumes.
        target: what they will run on.
        seed: seed of all random streams.
        price: dollars per hour of this machine.
        promote: largest number of front trials, fastest first, that are measured again with five pairs and scored
            on test.
        training_threads: threads for every training; one a processor where None.
        training_device: "cpu" or "cuda"; the target's where None.
        listener: hears events while things go on.

    Raises:
        ThriftyError: a recipe cannot run; nothing was spent.
    """
    definition, place = resolve(workload), target or Target()
    parsed = [Recipe.of(recipe) for recipe in recipes]
    machine = training_machine(place, training_device, threads=training_threads)
    for recipe in parsed:
        check_recipe(definition, recipe, place.device, machine.device)
    with open_study(study, definition, place, machine, listener) as (opened, _):
        runner = Runner(definition, opened, target=place, seed=seed, price=price,
                        machine=machine, listener=listener)
        listener(SweepBegan(len(parsed)))
        trials = {str(recipe): runner.run(recipe, pairs=1) for recipe in parsed}
        chosen = promoted(list(trials.values()), promote)
        if chosen:
            listener(Promoted(len(chosen), CLAIM_PAIRS))
        for trial in chosen:
            trials[trial.recipe] = runner.run(Recipe.parse(trial.recipe), pairs=CLAIM_PAIRS, test=True)
        return Swept(tuple(trials.values()), frontier(list(trials.values())))


def promoted(trials: Sequence[Trial], most: int) -> list[Trial]:
    """Trials of the front, the fastest to serve first."""
    front = frontier(trials).front
    return sorted(front, key=lambda t: t.inference.latency_p50 if t.inference else float("inf"))[:most]
