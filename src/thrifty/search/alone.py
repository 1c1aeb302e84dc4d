"""What runs before and after Optuna's proposals: each method alone, and the front's candidates for a claim."""

from __future__ import annotations

import re
from collections.abc import Sequence

from thrifty.choosing import Bars, choose
from thrifty.findings import objectives
from thrifty.frontier import frontier, objectives_of
from thrifty.recipe import Recipe
from thrifty.search.space import Space
from thrifty.trial import Trial


def alone(space: Space, trials: Sequence[Trial], bars: Bars) -> list[Recipe]:
    """Each method that has not run, on its own: compilers on the reference, then the others with the best compiler.

    A structural transform comes with the training that recovers from it, where there is one.

    Args:
        space: of recipes.
        trials: all that ran, failed ones too.
        bars: what makes a compiler the best.
    """
    known = {trial.recipe for trial in trials}
    compiled = _recipes(space, [{**space.plain, "compile": option} for option in space.parts.get("compile", ())])
    if waiting := [recipe for recipe in compiled if str(recipe) not in known]:
        return waiting
    ran = {str(recipe) for recipe in compiled}
    quickest = choose([trial for trial in trials if trial.recipe in ran], bars).nearest
    base = (space.choice(Recipe.parse(quickest.recipe)) if quickest else None) or space.plain
    choices = []
    for slot in space.slots:
        if slot.name in ("compile", "recover", "place"):
            continue
        recovered = slot.name.startswith("structure.") and "recover" in space.parts
        recovery = {"recover": list(space.parts["recover"])[:2][-1]} if recovered else {}  # the plainest that there is
        choices += [{**base, slot.name: option, **recovery} for option in representative(slot.options[1:])]
    return [recipe for recipe in _recipes(space, choices) if str(recipe) not in known]


def candidates(trials: Sequence[Trial], bars: Bars) -> list[Trial]:
    """Trials of the front that meet the bars or may, by what is minimised; the nearest where there are none."""
    standings = frontier(trials, objectives(bars)).standings
    front = [s.trial for s in standings if s.status == "front" and bars.open(s.trial)]
    ranked = sorted(front, key=lambda trial: objectives_of(trial, (bars.objective,))[1][0].value)
    nearest = choose(trials, bars).nearest
    return ranked or ([nearest] if nearest is not None else [])


def representative(options: Sequence[str]) -> list[str]:
    """Of options that differ in numbers alone, the middle one: alone, a method runs once for each of its words.

    >>> representative(["prune(ratio=0.25)", "prune(ratio=0.5)", "prune(ratio=0.75)", "quantize(w8a8)", "quantize(bf16)"])
    ['prune(ratio=0.5)', 'quantize(w8a8)', 'quantize(bf16)']
    """
    groups: dict[str, list[str]] = {}
    for option in options:
        groups.setdefault(re.sub(r"=[-+.\de]+", "=", option), []).append(option)
    return [group[len(group) // 2] for group in groups.values()]


def _recipes(space: Space, choices: Sequence[dict[str, str]]) -> list[Recipe]:
    """The recipes of the choices that make one, each once."""
    return list(dict.fromkeys(recipe for choice in choices if (recipe := space.recipe(choice)) is not None))
