"""Which methods decide: how much each one sets the best quarter of the trials apart from all of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.errors import RecipeError
from thrifty.recipes.recipe import Recipe
from thrifty.studies.frontier import objectives_of
from thrifty.studies.trial import Trial

ENOUGH = 24
"""Trials, of which a quarter are six: fewer say nothing of the methods."""
BEST = 0.25
VARIANTS = 6
"""Of one method's settings, so that each has several trials; with more, only whether it stands in the recipe counts."""


def importance(trials: Sequence[Trial]) -> dict[str, dict[str, float]] | None:
    """The importance of every method for speed and for quality, by PED-ANOVA (Watanabe et al., 2023), the largest first.

    Args:
        trials: of one study.

    Returns:
        "speedup" and "quality": method -> share, of 1 in all; empty where no method varies. None where fewer than `ENOUGH`
        trials have both figures, or where Optuna is not installed.

    >>> importance([]) is None
    True
    """
    known = [(trial, row) for trial in trials for reason, row in [objectives_of(trial, ("quality", "inference"))] if not reason]
    settings = [_settings(trial.recipe) for trial, _ in known]
    rows = [(setting, row) for setting, (_, row) in zip(settings, known, strict=True) if setting is not None]
    if len(rows) < ENOUGH:
        return None
    try:
        import optuna
    except ImportError:
        return None
    names = sorted({name for setting, _ in rows for name in setting})
    values = {name: [setting.get(name, "") for setting, _ in rows] for name in names}
    for name, of in values.items():
        if len(set(of)) > VARIANTS:
            values[name] = ["yes" if value else "" for value in of]
    varying = {name: of for name, of in values.items() if len(set(of)) > 1}
    return {figure: _shares(optuna, varying, [row[i].value for _, row in rows])
            for i, figure in ((1, "speedup"), (0, "quality"))}


def _settings(recipe: str) -> dict[str, str] | None:
    """Each method of a recipe with its settings, as text; None where this Thrifty cannot read it."""
    try:
        methods = Recipe.parse(recipe).methods()
    except RecipeError:
        return None
    found: dict[str, str] = {}
    for method in methods:
        found[method.name] = f"{found[method.name]} | {method}" if method.name in found else str(method)
    return found


def _shares(optuna: Any, varying: Mapping[str, Sequence[str]], losses: Sequence[float]) -> dict[str, float]:
    if not varying or len(set(losses)) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    slots = {name: optuna.distributions.CategoricalDistribution(sorted(set(values))) for name, values in varying.items()}
    study = optuna.create_study()
    for i, loss in enumerate(losses):
        study.add_trial(optuna.trial.create_trial(params={name: of[i] for name, of in varying.items()},
                                                  distributions=slots, value=loss))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the evaluator calls itself experimental
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST))
    return {str(name): float(share) for name, share in found.items()}
