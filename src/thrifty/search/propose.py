"""Which recipe next: Optuna's ask and tell over the slots of a space, told all that the store knows.

Nothing is kept between two proposals: the same trials and the same seed give the same proposal, so that an
exploration that was killed goes on as if it had not been.
"""

from __future__ import annotations

import itertools
import math
import random
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from thrifty.errors import MissingExtra
from thrifty.recipes.recipe import Recipe
from thrifty.search.space import Space
from thrifty.studies.constraints import Bars
from thrifty.studies.frontier import objectives_of
from thrifty.studies.trial import Trial

ASKS = 4
"""Asks for each proposal, known recipes and choices without one included; then chance decides."""
STARTUP = 4
"""Trials before which the Gaussian processes have nothing to say."""
DROP_CAP = 3.0
"""Drops beyond so many times the constraint are all the same: lost."""
CAP_WITHOUT_BAR = 0.1
"""The same without a constraint, as a share of the baseline's quality."""

Values = tuple[float, ...]


def propose(space: Space, trials: Sequence[Trial], bars: Bars, count: int, seed: int,
            sampler: Any = None) -> list[Recipe]:
    """Recipes of the space that no trial has run, the most promising first.

    Gaussian processes over the slots model quality, what is to be minimized, and the cost of training; what is asked
    for is the largest expected gain in the volume that the front dominates (Optuna's ``GPSampler``). A failed trial
    counts as the worst of everything.

    Args:
        space: of recipes.
        trials: all that ran, failed ones too.
        bars: what is minimized, and which drop is too much.
        count: how many to propose.
        seed: the same one gives the same proposals.
        sampler: seed -> an Optuna sampler, to compare with; GPSampler where None.

    Returns:
        ``count`` recipes, fewer where the space has no more.

    Raises:
        MissingExtra: optuna or scipy is not installed.
    """
    optuna = _optuna()
    told = outcomes(space, trials, bars)
    known = {trial.recipe: values_of(trial, bars) for trial in trials}
    width = 2 if bars.minimize == "training" else 3
    worst = tuple(map(max, zip(*(values for _, values in told if values is not None), strict=True))) or (1.0,) * width
    slots = {slot.name: optuna.distributions.CategoricalDistribution(slot.options)
             for slot in space.slots if len(slot.options) > 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the sampler calls itself experimental
        study = optuna.create_study(directions=["minimize"] * width,
                                    sampler=(sampler or _gaussian)(seed * 100_003 + len(told)))
        for choice, values in told:
            study.add_trial(optuna.trial.create_trial(params={name: choice[name] for name in slots},
                                                      distributions=slots, values=values or worst))
        found: dict[str, Recipe] = {}
        for _ in range(ASKS * count if slots else 0):
            if len(found) == count:
                break
            asked = study.ask(slots)
            recipe = space.recipe({**space.plain, **asked.params})
            if recipe is None or str(recipe) in known:
                study.tell(asked, known.get(str(recipe)) or worst)
            else:
                found[str(recipe)] = recipe  # left running: the next ask keeps away from it
    return [*found.values(), *by_chance(space, {*known, *found}, count - len(found), seed)]


def outcomes(space: Space, trials: Iterable[Trial], bars: Bars) -> list[tuple[dict[str, str], Values | None]]:
    """(choice, values to be made small) of every trial of the space; None for one that failed or misses a hard bar."""
    found = []
    for trial in trials:
        choice = space.choice(Recipe.parse(trial.recipe))
        if choice is not None:
            found.append((choice, values_of(trial, bars)))
    return found


def values_of(trial: Trial, bars: Bars) -> Values | None:
    """The drop (capped), the logarithm of what is minimized, and that of the training cost."""
    names = ("quality", bars.objective) if bars.minimize == "training" else ("quality", bars.objective, "training")
    reason, row = objectives_of(trial, names)
    if reason or any(miss.bar != "max_drop" for miss in bars.misses(trial)):
        return None
    assert trial.quality is not None
    baseline = trial.quality.baseline
    cap = DROP_CAP * bars.max_drop.allows(baseline) if bars.max_drop is not None else 0.0
    drop = min(row[0].value, cap or CAP_WITHOUT_BAR * abs(baseline))
    return (drop, *(math.log(max(part.value, 1e-9)) for part in row[1:]))


def by_chance(space: Space, known: set[str], count: int, seed: int) -> list[Recipe]:
    """Recipes that are not known, drawn without end where the space is large, from all that are left where it is small."""
    if count <= 0:
        return []
    draw = random.Random(f"{seed}/{len(known)}")
    options = [slot.options for slot in space.slots]
    if space.size() <= 20_000:
        choices: Iterable[Sequence[str]] = draw.sample(list(itertools.product(*options)), space.size())
    else:
        choices = ([draw.choice(option) for option in options] for _ in range(2_000))
    found: dict[str, Recipe] = {}
    for chosen in choices:
        recipe = space.recipe(dict(zip((slot.name for slot in space.slots), chosen, strict=True)))
        if recipe is not None and str(recipe) not in known:
            found.setdefault(str(recipe), recipe)
            if len(found) == count:
                break
    return list(found.values())


def _gaussian(seed: int) -> Any:
    return _optuna().samplers.GPSampler(seed=seed % 2**32, n_startup_trials=STARTUP)


def _optuna() -> Any:
    try:
        import optuna
        import scipy  # noqa: F401  # the sampler imports it when it is first asked
    except ImportError as error:
        raise MissingExtra(error.name or "optuna", "explore") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
