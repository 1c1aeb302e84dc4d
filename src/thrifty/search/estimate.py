"""What the reference will take, from a few of its steps."""

from __future__ import annotations

import time

from torch.utils.data import Subset

from thrifty import cache
from thrifty.execute import prefix_key
from thrifty.quality import as_inputs, batches, length
from thrifty.recipe import Recipe, Train
from thrifty.run import Runner
from thrifty.training.loop import Fit

STEPS = 10
LONGEST = 10.0
"""Seconds after which three steps are enough."""


def reference_seconds(runner: Runner) -> float:
    """Seconds that training the reference will take; 0 where it is kept or comes trained."""
    recipe = Recipe.parse(runner.workload.reference)
    kept = cache.lookup("checkpoints", prefix_key(runner.job(recipe), recipe)) is not None
    return 0.0 if kept else training_seconds(runner, recipe)


def training_seconds(runner: Runner, recipe: Recipe) -> float:
    """Seconds that a recipe's training will take, by the quickest of a few steps; these are charged as a rehearsal."""
    workload = runner.workload
    if workload.train is None:
        return 0.0
    began, model, total = time.perf_counter(), workload.model(), 0.0
    for phase in recipe:
        if not isinstance(phase, Train) or workload.loss is None:
            continue
        size = min(phase.batch_size or workload.batch_size, length(workload.train))
        steps = phase.steps or max(1, round((phase.epochs or 1) * (length(workload.train) // size)))
        session = Fit(model, list(phase.methods), workload.loss, steps=STEPS, settings=phase, forward=workload.forward,
                      device=runner.target.device, teachers=lambda text: workload.model().eval())
        seconds = []
        for inputs, labels in batches(Subset(workload.train, range(min(STEPS * size, length(workload.train)))), size,
                                      workload.collate):
            at = time.perf_counter()
            session.step((as_inputs(inputs), labels))
            seconds.append(time.perf_counter() - at)
            if sum(seconds) > LONGEST and len(seconds) >= 3:
                break
        total += steps * min(seconds)
    runner.spend("reference", "rehearsal", "estimate of the reference", began)
    return total
