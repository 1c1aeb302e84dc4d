"""What the reference will take, from a few of its steps."""

from __future__ import annotations

import time

from thrifty.recipes.recipe import Recipe
from thrifty.runs import cache
from thrifty.runs.job import checkpoint_key
from thrifty.runs.runner import Runner


def reference_seconds(runner: Runner) -> tuple[float, float]:
    """Seconds that training the reference will take at the very least, and about; 0 where it is kept or comes trained."""
    recipe = Recipe.parse(runner.workload.reference)
    kept = cache.lookup("checkpoints", checkpoint_key(runner.job(recipe), recipe)) is not None
    return (0.0, 0.0) if kept or not recipe.phases else training_seconds(runner, recipe)


def training_seconds(runner: Runner, recipe: Recipe) -> tuple[float, float]:
    """Seconds that a recipe's training will take at the very least, and about, by a few steps in a process like its own."""
    began = time.perf_counter()
    found = runner.launcher.pace(runner.job(recipe, lower=False))
    runner.spend("reference", "rehearsal", "estimate of the reference", began)
    return found
