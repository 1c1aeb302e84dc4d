"""What a recipe will cost to run, from what the study's recipes did cost."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

from thrifty.recipes.phases import Train
from thrifty.recipes.recipe import Recipe
from thrifty.studies.ledger import Ledger
from thrifty.studies.trial import Trial


@final
@dataclass(frozen=True)
class Costs:
    """Seconds of phases, of compilers, and of measuring a recipe once.

    Args:
        phases: {phase's text: seconds}.
        step: seconds of one epoch (or step) of training: {"epochs" or "steps": seconds}, from the reference.
        compilers: {compiler's name: seconds}.
        overhead: seconds of starting, scoring and timing one recipe.
        kept: texts of recipes whose checkpoints are there.
    """

    phases: Mapping[str, float]
    step: Mapping[str, float]
    compilers: Mapping[str, float]
    overhead: float
    kept: frozenset[str]

    @staticmethod
    def of(trials: Iterable[Trial], spent: Mapping[str, Ledger], reference: Ledger, recipe: Recipe) -> Costs:
        """From the trials so far, what was really spent on each, and the reference.

        Args:
            trials: of the study.
            spent: {trial's id: what ran on its behalf}.
            reference: what the reference cost.
            recipe: the reference's.
        """
        phases, compilers = defaultdict(list), defaultdict(list)
        overheads, kept = [], {str(Recipe(recipe.phases[:i])) for i in range(len(recipe.phases) + 1)}
        for trial in trials:
            parsed = Recipe.parse(trial.recipe)
            for charge in trial.ledger.only("training", "calibration", "search", "evaluation").charges:
                phases[charge.what].append(charge.seconds)
            for charge in trial.ledger.only("compilation").charges:
                compilers[parsed.compiler.name].append(charge.seconds)
            if trial.status == "done":
                kept |= {str(Recipe(parsed.phases[:i])) for i in range(len(parsed.transforms.phases) + 1)}
                overheads.append(spent[trial.id].only("start", "rehearsal", "scoring", "timing").seconds)
        trained = reference.only("training").seconds
        lengths = {unit: sum(getattr(phase, unit) or 0 for phase in recipe if isinstance(phase, Train))
                   for unit in ("epochs", "steps")}
        return Costs(
            {text: statistics.fmean(values) for text, values in phases.items()},
            {unit: trained / length for unit, length in lengths.items() if length},
            {name: statistics.fmean(values) for name, values in compilers.items()},
            statistics.median(overheads) if overheads else 10.0,
            frozenset(kept),
        )

    def seconds(self, recipe: Recipe) -> float:
        """What the recipe will take, its kept prefix left out."""
        phases = recipe.transforms.phases
        done = max((i for i in range(len(phases) + 1) if str(Recipe(phases[:i])) in self.kept), default=0)
        compiler = self.compilers.get(recipe.compiler.name, max(self.compilers.values(), default=10.0))
        return sum(self._phase(phase) for phase in phases[done:]) + compiler + self.overhead

    def _phase(self, phase: object) -> float:
        text = str(Recipe((phase,)))  # type: ignore[arg-type]
        if text in self.phases:
            return self.phases[text]
        if not isinstance(phase, Train):
            return 1.0
        unit = "steps" if phase.steps is not None else "epochs"
        return self.step.get(unit, 0.0) * (getattr(phase, unit) or 1)
