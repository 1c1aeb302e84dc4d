"""What a recipe will cost to run, from what the study's recipes did cost."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from thrifty.recipes.cost import Known
from thrifty.recipes.phases import Phase, Train
from thrifty.recipes.recipe import Recipe
from thrifty.runs.context import CALIBRATION_EXAMPLES
from thrifty.studies.ledger import Ledger
from thrifty.studies.trial import Trial

TRANSFORM, COMPILER, OVERHEAD = 1.0, 10.0, 10.0
"""Seconds of a transform, of a compiler, and of measuring, while nothing better is known."""
COMPILERS = {"export": 1.0, "onnxruntime": 1.5, "openvino": 3.0, "executorch": 4.0, "xla": 5.0, "inductor": 18.0, "tvm": 30.0}
"""Seconds in which each compiles a small net, on two processors: what one that has run took, against this, mends the others'."""
STEP = 0.5
"""An optimizer step in forward passes over the calibration examples, while no training ran: each of a batch of about 40
examples goes forward, and backward at twice that."""


@final
@dataclass(frozen=True)
class Costs:
    """Seconds of phases, of compilers, and of measuring a recipe once.

    Args:
        phases: {phase's text: seconds}.
        known: what methods estimate by that have not run yet, and trainings by their length.
        compilers: {compiler's name: seconds}.
        overhead: seconds of starting, scoring and timing one recipe.
        kept: texts of recipes whose checkpoints are there.
    """

    phases: Mapping[str, float]
    known: Known
    compilers: Mapping[str, float]
    overhead: float
    kept: frozenset[str]

    @staticmethod
    def of(trials: Iterable[Trial], spent: Mapping[str, Ledger], reference: Ledger, recipe: Recipe) -> Costs:
        """From the trials so far, what was really spent on each, and the reference.

        Args:
            trials: of the study.
            spent: {trial's id: what ran on its behalf}.
            reference: what the reference cost, its scoring included, which the first trial's is expected to be like.
            recipe: the reference's.
        """
        phases, compilers = defaultdict(list), defaultdict(list)
        overheads, kept = [], {str(Recipe(recipe.phases[:i])) for i in range(len(recipe.phases) + 1)}
        ran = [(trial, Recipe.parse(trial.recipe)) for trial in trials]
        for trial, parsed in ran:
            for text, seconds in _paid(parsed, trial.ledger).items():
                phases[text].append(seconds)
            for charge in trial.ledger.only("compilation").charges:
                compilers[parsed.compiler.name].append(charge.seconds)
            if trial.status == "done":
                kept |= {str(Recipe(parsed.phases[:i])) for i in range(len(parsed.transforms.phases) + 1)}
                overheads.append(_screening(spent[trial.id]))
        return Costs(
            {text: statistics.fmean(values) for text, values in phases.items()},
            _known(ran, reference, recipe),
            {name: statistics.fmean(values) for name, values in compilers.items()},
            statistics.median(overheads) if overheads else OVERHEAD + reference.only("scoring").seconds,
            frozenset(kept),
        )

    def seconds(self, recipe: Recipe) -> float:
        """What the recipe will take, its kept prefix left out."""
        phases = recipe.transforms.phases
        done = max((i for i in range(len(phases) + 1) if str(Recipe(phases[:i])) in self.kept), default=0)
        return sum(map(self._phase, phases[done:])) + self._compiler(recipe) + self.overhead

    def _compiler(self, recipe: Recipe) -> float:
        compiler = recipe.compiler
        if compiler.name in self.compilers:
            return self.compilers[compiler.name]
        estimate = compiler.estimate(self.known)
        return self._usual(compiler.name) if estimate is None else estimate

    def _usual(self, name: str) -> float:
        """A compiler's prior, by what those that have run took against theirs."""
        ratios = [seconds / COMPILERS[other] for other, seconds in self.compilers.items() if other in COMPILERS]
        return COMPILERS.get(name, COMPILER) * (statistics.median(ratios) if ratios else 1.0)

    @property
    def cheapest_compiler(self) -> float:
        """That of the quickest compiler that has run; a prior where none has."""
        return min(self.compilers.values(), default=COMPILERS["onnxruntime"])

    def _phase(self, phase: Phase) -> float:
        if str(phase) in self.phases:
            return self.phases[str(phase)]
        if isinstance(phase, Train):
            return self._steps(phase) + sum(method.estimate(self.known) or 0.0 for method in phase.methods)
        estimate = phase.estimate(self.known)
        return TRANSFORM if estimate is None else estimate

    def _steps(self, phase: Train) -> float:
        """What a training takes by its length; nothing while neither its pace nor a forward pass is known."""
        if phase.steps is None:
            return _epochs(phase) * (self.known.epoch or 0.0)
        return phase.steps * (STEP * (self.known.forward or 0.0) if self.known.step is None else self.known.step)


def _screening(ledger: Ledger) -> float:
    """Seconds of starting, scoring and timing once: what comes after the first round of timing is a claim's."""
    seconds = 0.0
    for charge in ledger.only("start", "rehearsal", "scoring", "timing").charges:
        if charge.kind == "timing":
            return seconds + charge.seconds / (charge.amount or 1)
        seconds += charge.seconds
    return seconds


def _paid(recipe: Recipe, ledger: Ledger) -> dict[str, float]:
    """{phase's text: seconds of it once}, all kinds of charges together."""
    times, found = Counter(map(str, recipe)), defaultdict[str, float](float)
    for charge in ledger.only("training", "calibration", "search", "evaluation").charges:
        found[charge.what] += charge.seconds / max(1, times[charge.what])
    return found


def _known(ran: Sequence[tuple[Trial, Recipe]], reference: Ledger, recipe: Recipe) -> Known:
    """What the reference tells, and what the trials do where it does not."""
    figures = [trial.inference for trial, _ in ran if trial.inference is not None]
    requests = [figure.speedup.value / figure.throughput_per_second for figure in figures
                if figure.speedup.value and figure.throughput_per_second]
    trainings = [(parsed, trial.ledger) for trial, parsed in ran]

    def pace(length: Callable[[Train], float]) -> float | None:
        return next((found for found in (_pace([(recipe, reference)], length), _pace(trainings, length)) if found), None)

    return Known(CALIBRATION_EXAMPLES * statistics.median(requests) if requests else None,
                 pace(lambda phase: phase.steps or 0), pace(_epochs))


def _pace(ran: Iterable[tuple[Recipe, Ledger]], length: Callable[[Train], float]) -> float | None:
    """Seconds of one step or epoch, whichever a length is of; None where nothing of a length was trained."""
    seconds = total = 0.0
    for recipe, ledger in ran:
        lengths = {str(phase): length(phase) for phase in recipe if isinstance(phase, Train) and length(phase)}
        paid = [charge for charge in ledger.only("training").charges if charge.what in lengths]
        seconds += sum(charge.seconds for charge in paid)
        total += sum(lengths[charge.what] for charge in paid)
    return seconds / total if total else None


def _epochs(phase: Train) -> float:
    """Passes over the training set; none where the length is given in steps."""
    return 0.0 if phase.steps is not None else phase.epochs or 1.0
