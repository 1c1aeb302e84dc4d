"""What the reference will take, from a few of its steps."""

from __future__ import annotations

import itertools
import time

from thrifty.recipes.phases import Train
from thrifty.recipes.recipe import Recipe
from thrifty.runs import cache
from thrifty.runs.context import training_setup
from thrifty.runs.job import checkpoint_key
from thrifty.runs.making import made, untrained_teachers
from thrifty.runs.runner import Runner

STEPS = 10
LONGEST = 10.0
"""Seconds after which three steps are enough."""


def reference_seconds(runner: Runner) -> float:
    """Seconds that training the reference will take; 0 where it is kept or comes trained."""
    recipe = Recipe.parse(runner.workload.reference)
    kept = cache.lookup("checkpoints", checkpoint_key(runner.job(recipe), recipe)) is not None
    return 0.0 if kept else training_seconds(runner, recipe)


def training_seconds(runner: Runner, recipe: Recipe) -> float:
    """Seconds that a recipe's training will take, by the quickest of a few steps; these are charged as a rehearsal."""
    workload = runner.workload
    if workload.lessons is None:
        return 0.0
    began, model, total = time.perf_counter(), made(workload), 0.0
    for phase in recipe:
        if not isinstance(phase, Train):
            continue
        setup = training_setup(workload, phase, 0, runner.target.device, untrained_teachers(workload))
        session, seconds = setup.session(model, steps=STEPS), []
        for batch in itertools.islice(setup.loader.batches(), STEPS):
            at = time.perf_counter()
            session.step(batch)
            seconds.append(time.perf_counter() - at)
            if sum(seconds) > LONGEST and len(seconds) >= 3:
                break
        total += setup.steps * min(seconds)
    runner.spend("reference", "rehearsal", "estimate of the reference", began)
    return total
