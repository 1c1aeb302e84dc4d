"""What runs before and after Optuna's proposals: methods alone, the best of them together, candidates for a claim."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

from thrifty.recipes.method import Method
from thrifty.recipes.recipe import Recipe
from thrifty.runs.runner import CLAIM_PAIRS
from thrifty.search.space import Kind, Part, Space
from thrifty.studies.constraints import Bars, choose
from thrifty.studies.findings import objectives
from thrifty.studies.frontier import frontier, objectives_of
from thrifty.studies.trial import Trial

FIRST: tuple[Kind, ...] = ("last", "structure", "after")
"""Kinds in the order of what to expect of them for what they cost: fewer bits, then less of the model; then what trains it."""
TOGETHER: frozenset[Kind] = frozenset({"place", "recovery", "compiler"})
"""Kinds that are nothing alone: they say how another one's options are used."""


def alone(space: Space, trials: Sequence[Trial], bars: Bars) -> list[Recipe]:
    """Each method that has not run, on its own: compilers on the reference, then the others with the best compiler.

    What fails with the best compiler is tried with the next (`again`). A transform that no training follows comes with the one
    that recovers from it, where there is one. Compilers that refuse integer products come last: with what matters most after
    training, fewer bits, they cannot be composed.

    Args:
        space: of recipes.
        trials: all that ran, failed ones too.
        bars: what makes a compiler the best.
    """
    known = {trial.recipe for trial in trials}
    compilers = _compiled(space)
    narrow = [recipe for recipe in compilers if "integer-products" in recipe.compiler.card.refuses]
    if waiting := [recipe for recipe in compilers if recipe not in narrow and str(recipe) not in known]:
        return waiting
    return singles(space, trials, bars) or again(space, trials, bars) or [
        recipe for recipe in narrow if str(recipe) not in known]


def singles(space: Space, trials: Sequence[Trial], bars: Bars) -> list[Recipe]:
    """Each method that has not run with the compiler that is best so far, in the order of what to expect of them."""
    known = {trial.recipe for trial in trials}
    found = _recipes(space, [choice for _, choice in _choices_alone(space, _base(space, trials, bars))])
    return [recipe for recipe in found if str(recipe) not in known]


def again(space: Space, trials: Sequence[Trial], bars: Bars) -> list[Recipe]:
    """What failed alone with the best compiler, by the next best, until one takes it: what one engine refuses another may do.

    Args:
        space: of recipes.
        trials: all that ran, failed ones too.
        bars: what makes a compiler better than another.
    """
    slot, status = space.slot("compiler"), {trial.recipe: trial.status for trial in trials}
    ranked = _ranked(space, trials, bars)
    if slot is None:
        return []
    found = []
    for _, choice in _choices_alone(space, _base(space, trials, bars)):
        for option in (choice[slot.name], *ranked):
            recipe = space.recipe({**choice, slot.name: option})
            if recipe is None:
                continue
            if str(recipe) not in status:
                found.append(recipe)
            if status.get(str(recipe)) != "failed":  # it is to be tried, or it went well
                break
    return list(dict.fromkeys(found))


def composed(space: Space, trials: Sequence[Trial], bars: Bars) -> list[Recipe]:
    """What improved alone, together: the best two, the best three, and so on, as far as they have not run.

    Args:
        space: of recipes.
        trials: all that ran; those of methods alone decide.
        bars: what improves: the minimized figure, while the drop may yet meet its constraint.
    """
    base, ran = _base(space, trials, bars), {trial.recipe: trial for trial in trials if trial.status == "done"}
    start = ran.get(str(space.recipe(base)))
    if start is None:
        return []
    best: dict[str, tuple[float, dict[str, str]]] = {}
    engine = space.slot("compiler")
    ranked = _ranked(space, trials, bars)
    for slot, single in _choices_alone(space, base):
        choices = [single] if engine is None else [single, *({**single, engine.name: option} for option in ranked)]
        choice, trial = next(((each, ran[text]) for each in choices if (text := str(space.recipe(each))) in ran), (single, None))
        figures = [objectives_of(one, (bars.objective,))[1] for one in (start, trial) if one is not None]
        if trial is not None and len(figures) == 2 and all(figures) and bars.open(trial):
            gain = figures[0][0].value - figures[1][0].value
            if gain > best.get(slot, (0.0, {}))[0]:
                best[slot] = gain, {name: option for name, option in choice.items() if option != base[name]}
    gains = sorted(best.values(), key=lambda entry: -entry[0])
    together = []
    for count in range(2, len(gains) + 1):
        joint = dict(base)
        for _, changes in gains[:count]:
            joint |= changes
        together.append(joint)
    known = {trial.recipe for trial in trials}
    return [recipe for recipe in _recipes(space, together) if str(recipe) not in known]


def _base(space: Space, trials: Sequence[Trial], bars: Bars) -> dict[str, str]:
    """The reference with the compiler that is best so far."""
    ran = {str(recipe) for recipe in _compiled(space)}
    quickest = choose([trial for trial in trials if trial.recipe in ran], bars).nearest
    return (space.choice(Recipe.parse(quickest.recipe)) if quickest else None) or space.plain


def _ranked(space: Space, trials: Sequence[Trial], bars: Bars) -> list[str]:
    """The compiler slot's options that took the reference, the best first."""
    slot = space.slot("compiler")
    if slot is None:
        return []
    option = {str(space.recipe({**space.plain, slot.name: name})): name for name in slot.changes}
    ran = [(objectives_of(trial, (bars.objective,))[1], option[trial.recipe]) for trial in trials if trial.recipe in option]
    return [name for _, name in sorted((row[0].value, name) for row, name in ran if row)]


def _compiled(space: Space) -> list[Recipe]:
    """The reference by each compiler; uncompiled, it is the baseline of every ratio already."""
    slot = space.slot("compiler")
    return [] if slot is None else _recipes(space, [{**space.plain, slot.name: option} for option in slot.changes])


def _choices_alone(space: Space, base: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    """(slot, the base with another option of it), each method once; what needs no training first."""
    recovery = space.slot("recovery")
    plainest = {recovery.name: recovery.changes[0]} if recovery is not None and recovery.changes else {}
    found = []
    for slot in sorted(space.slots, key=lambda slot: (*FIRST, slot.kind).index(slot.kind)):
        if slot.kind in TOGETHER:
            continue
        recovered = plainest if slot.kind in space.recovered else {}
        others = {option: slot.parts[option] for option in slot.options[1:]}
        found += [(slot.name, {**base, slot.name: option, **recovered}) for option in representative(others)]
    return found


def candidates(trials: Sequence[Trial], bars: Bars) -> list[Trial]:
    """Trials whose speed is worth an interval: of the front, those that meet the constraints, then those that may; each by what
    is minimized. The nearest where there are none.

    More pairs narrow a speed, not a drop: a claim of what only may meet the constraints answers nobody's question. Nor does one
    of what is no better, in quality and in what is minimized, than a trial that has been claimed and meets the constraints too.
    """
    def values(trial: Trial) -> tuple[float, ...]:
        return tuple(figure.value for figure in objectives_of(trial, ("quality", bars.objective))[1])

    standings = frontier(trials, objectives(bars)).standings
    front = [s.trial for s in standings if s.status == "front" and bars.open(s.trial)]
    if not front and (nearest := choose(trials, bars).nearest) is not None:
        front = [nearest]
    had = [trial for trial in trials if claimed(trial) and values(trial)]

    def outdone(trial: Trial) -> bool:
        return any(all(theirs <= ours for theirs, ours in zip(values(other), values(trial), strict=True))
                   for other in had if not bars.misses(other) or bars.misses(trial))

    found = [trial for trial in front if not claimed(trial) and not outdone(trial)]
    return sorted(found, key=lambda trial: (bool(bars.misses(trial)), values(trial)[1]))


def claimed(trial: Trial) -> bool:
    """Whether its speed has an interval and its quality was scored on test."""
    return trial.inference is not None and trial.inference.speedup.pairs >= CLAIM_PAIRS and trial.test is not None


def representative(parts: Mapping[str, Part]) -> list[str]:
    """The middle one of options that differ in numbers alone: alone, a method runs once for each of its words.

    >>> from thrifty import Prune, Quantize
    >>> found = [Prune(ratio=0.25), Prune(ratio=0.5), Prune(ratio=0.75), Quantize("w8a8"), Quantize("bf16")]
    >>> representative({str(method): method for method in found})
    ['prune(ratio=0.5)', 'quantize(w8a8)', 'quantize(bf16)']
    """
    groups: dict[Hashable, list[str]] = {}
    for option, part in parts.items():
        groups.setdefault(_words(part), []).append(option)
    return [group[len(group) // 2] for group in groups.values()]


def _words(part: Part) -> Hashable:
    """What a part is, its numbers left out."""
    if not isinstance(part, Method):
        return (type(part),)
    values = [(spec.name, getattr(part, spec.name)) for spec in dataclasses.fields(part)]
    return type(part), *((name, value) for name, value in values if type(value) not in (int, float))


def _recipes(space: Space, choices: Sequence[dict[str, str]]) -> list[Recipe]:
    """The recipes of the choices that make one, each once."""
    return list(dict.fromkeys(recipe for choice in choices if (recipe := space.recipe(choice)) is not None))
