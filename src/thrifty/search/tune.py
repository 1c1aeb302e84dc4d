"""Tune optimizers on a workload: equally many trainings for each, then several seeds of the best. The verb `tune`."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from thrifty.errors import RunFailed
from thrifty.recipes.recipe import Recipe
from thrifty.runs.context import training_setup
from thrifty.runs.job import Outcome
from thrifty.runs.making import untrained_teachers
from thrifty.runs.opening import open_study
from thrifty.runs.preflight import check_recipe, resolve
from thrifty.runs.rehearsal import rehearse
from thrifty.runs.runner import Runner
from thrifty.search.attain import Attained, Trained, attained
from thrifty.search.contender import Contender, Point, TuneError, fewest, reference_of, training_of
from thrifty.search.estimate import training_seconds
from thrifty.studies.events import Charged, Event, Listener, Noted, RecipeBegan, TrialEnded, ignore
from thrifty.studies.figures import training_figure
from thrifty.studies.ledger import Charge, Ledger
from thrifty.studies.serialization import typed
from thrifty.studies.trial import Drop, QualityFigure, Trial
from thrifty.target import Target, training_machine
from thrifty.training.loop import Evaluation
from thrifty.workloads.workload import Workload

TRIALS = 9
"""For each optimizer where neither trials nor a budget is given."""
KEPT = "training"
"""What a training's round in the store is called."""


@final
@dataclass(frozen=True)
class Tried:
    """One training on the way to the best: its values, and its quality on validation, None where it diverged."""

    values: dict[str, float]
    recipe: str
    quality: float | None
    error: str = ""


@final
@dataclass(frozen=True)
class Tuning:
    """One optimizer: what was tried, the best of it, and what that attains over seeds.

    Args:
        optimizer: as it was asked for.
        tried: in the order in which they ran, each with the same seed.
        recipe: the best, to be used as it is; "" where every training diverged.
        edges: numbers whose best value has none that was tried on one of its sides: they are not tuned.
        final: over seeds that were not tuned on; None where every training diverged.
    """

    optimizer: str
    tried: tuple[Tried, ...]
    recipe: str
    edges: tuple[str, ...]
    final: Attained | None


@final
@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Args:
        workload, reference: the workload's name, and the recipe by which it is trained today.
        measure, higher_is_better: of quality.
        target: the reference's own quality on validation, the mean over seeds: what is to be attained.
        baseline: the reference over the same seeds.
        every: steps from one evaluation to the next, which is how exactly steps and seconds are known.
        optimizers: in the order asked for.
        use: the recipe that attains the reference's quality soonest; the reference where none is faster than it.
        spent: all that the study took.
    """

    workload: str
    reference: str
    measure: str
    higher_is_better: bool
    target: float
    baseline: Attained
    every: int
    optimizers: tuple[Tuning, ...]
    use: str
    spent: Ledger

    def to_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        spent = {"seconds": self.spent.seconds, "flops": self.spent.flops, "joules": self.spent.joules,
                 "dollars": self.spent.dollars}
        return {**dataclasses.asdict(dataclasses.replace(self, spent=Ledger())), "spent": spent}


def tune(workload: str | Workload, optimizers: Sequence[str], *, study: str | Path | None = None,
         trials: int | None = None, budget: float | None = None, also: str = "", seeds: int = 3, evaluations: int = 20,
         target: Target | None = None, seed: int = 0, price: float | None = None,
         training_threads: int | None = None, training_device: str | None = None, listener: Listener = ignore) -> Tuned:
    """Tune optimizers with equal effort, and say how soon each reaches the reference's final quality.

    Each optimizer takes the place of the reference's own; length, schedule and all else stay. What its paper says has to be
    tuned is: the learning rate, then other numbers at the best learning rate (AdamW's beta2 and weight decay, Sophia's
    gamma), each on a logarithmic grid around its default: bracketed, beyond the edge where the best stands there, then
    between the best's neighbors. Every optimizer gets the same number of trainings. The best of each, and the
    reference, are then trained with seeds that nothing was tuned on. Only validation is looked at.

    Args:
        workload: a workload, or a reference that `load_workload` takes.
        optimizers: names, or texts such as "sophia(lr=0.0003)", whose values are searched around.
        study: its directory; study-NAME, after the workload, where None. Asking again resumes, and trains nothing twice.
        trials: trainings of each optimizer; 3 bracket the learning rate, 2 more each other number.
        budget: seconds for everything, from which the trials follow once each optimizer has trained once; with
            ``trials`` too, the smaller number counts.
        also: what is tuned beside the learning rate, in the place of what each optimizer's paper says: "weight_decay,warmup",
            or any other of the optimizers'; "lr" for the learning rate alone.
        seeds: number of seeds of the final trainings.
        evaluations: evaluations of quality during a final training: the more, the more exactly is known when it is attained.
        target: what is trained on.
        seed: seed of the trials; the final seeds follow it.
        price: dollars per hour of this machine.
        training_threads: threads for every training; one a processor where None.
        training_device: "cpu" or "cuda"; the target's where None.
        listener: hears events while things go on.

    Raises:
        TuneError: an optimizer is unknown, there is nothing to train, or the budget does not reach; says what would.
        RunFailed: a training failed otherwise than by diverging; what was trained is kept.
        ThriftyError: the workload or a recipe cannot be used; nothing was spent.
    """
    definition, place = resolve(workload), target or Target()
    if not optimizers:
        raise TuneError("name at least one optimizer, such as adamw")
    machine = training_machine(place, training_device, threads=training_threads)
    contenders = tuple(dict.fromkeys(Contender.of(definition, text, also) for text in optimizers))
    for contender in contenders:
        check_recipe(definition, contender.recipe(contender.origin), place.device, machine.device)
    for name, value, least in (("trials", trials, fewest(also)), ("seeds", seeds, 1), ("evaluations", evaluations, 1)):
        if value is not None and value < least:
            raise TuneError(f"{name} must be {least} or more but are {value}")
    if budget is not None and not budget > 0:
        raise TuneError(f"the budget must be above 0 seconds but is {budget:g}")
    with open_study(study, definition, place, machine, listener) as (opened, _):
        runners = tuple(Runner(definition, opened, target=place, seed=seed + i, price=price,
                               machine=machine, listener=listener)
                        for i in range(seeds + 1))
        return _Tune(runners, contenders, trials, budget, fewest(also), evaluations).run()


class _Tune:
    """A tuning under way; which training comes next is a function of those that are kept."""

    def __init__(self, runners: Sequence[Runner], contenders: Sequence[Contender], trials: int | None,
                 budget: float | None, least: int, evaluations: int) -> None:
        self.runner, self.finals, self.contenders = runners[0], runners[1:], contenders
        self.trials, self.budget, self.least, self.evaluations = trials, budget, least, evaluations
        self.workload, self.store = self.runner.workload, self.runner.store
        self.sign = 1 if self.workload.quality.higher_is_better else -1
        self.known: dict[Contender, dict[Point, Trained]] = {}
        self.baseline: float | None = None

    def run(self) -> Tuned:
        self.rehearse()
        reference = self.final(self.reference)
        if any(not run.curve for run in reference):
            raise RunFailed(f"the reference diverged, so there is no quality to reach: {reference[0].error}")
        aim = statistics.fmean(run.quality for run in reference)
        self.baseline = self.sign * aim
        for contender in self.contenders:
            first = self.train(self.runner, contender.recipe(contender.origin, evaluations=1))
            self.known[contender] = {contender.origin: first}
        trials = self.affordable(reference)
        text = f"{trials} trials for each optimizer, then {len(self.finals)} seeds"
        self.runner.tell(Noted(text))
        for _ in range(1, trials):
            self.round(trials)
        found = tuple(self.tuning(contender, reference, aim) for contender in self.contenders)
        faster = [one for one in found if one.final is not None and one.final.verdict == "faster"]
        quickest = max(faster, key=lambda one: one.final.speedup.value, default=None)  # type: ignore[union-attr]
        return Tuned(
            workload=self.workload.name, reference=str(reference_of(self.workload)), measure=self.workload.quality.name,
            higher_is_better=self.workload.quality.higher_is_better, target=self.baseline,
            baseline=self.raw(attained(reference, reference, aim)), every=math.ceil(self.steps / self.evaluations),
            optimizers=found, use=str(reference_of(self.workload)) if quickest is None else quickest.recipe,
            spent=Ledger(self.store.spent().charges, self.runner.price))

    # -- what is run --------------------------------------------------------------------------------------------------

    @property
    def reference(self) -> Recipe:
        """The reference, looked at as often as the final trainings are."""
        phases = reference_of(self.workload)
        training = training_of(phases)
        return Recipe(tuple(training.but(evaluations=self.evaluations) if phase is training else phase
                            for phase in phases))

    @property
    def steps(self) -> int:
        """Steps of the reference's training."""
        phase = training_of(self.reference)
        return training_setup(self.workload, phase, 0, self.runner.machine.device, untrained_teachers(self.workload)).steps

    def rehearse(self) -> None:
        """One step of each optimizer, so that one that is not installed is told before anything is trained."""
        for contender in self.contenders:
            recipe = contender.recipe(contender.origin, evaluations=1)
            if not self.store.rounds(self.runner.id(recipe), KEPT):
                began = time.perf_counter()
                rehearse(self.workload, recipe, self.runner.target, self.runner.machine, ignore)
                self.runner.spend(self.runner.id(recipe), "rehearsal", str(recipe), began)
        if self.budget is not None and not self.store.rounds(self.finals[0].id(self.reference), KEPT):
            count, seeds = len(self.contenders), len(self.finals)
            needed = training_seconds(self.runner, self.reference)[1] * (seeds + count * (self.least + seeds))
            if needed > self.budget:
                raise TuneError(f"{self.least} trials and {seeds} seeds of each of {count} optimizers, and {seeds} of "
                                f"the reference, take about {needed:.0f} s here, but the budget is {self.budget:g} s: "
                                f"give at least --budget {math.ceil(1.2 * needed)}s, or fewer optimizers or --seeds")

    def round(self, trials: int) -> None:
        """Every optimizer's next training of so many in all."""
        for contender, known in self.known.items():
            point = contender.following({at: run.quality for at, run in known.items()}, trials)
            if point is not None:
                known[point] = self.train(self.runner, contender.recipe(point, evaluations=1))

    def affordable(self, reference: Sequence[Trained]) -> int:
        """Trials for each optimizer: as many as were asked for, or as the budget has room for beside the final ones."""
        if self.budget is None:
            return self.trials or TRIALS
        first = sum(next(iter(known.values())).wall for known in self.known.values())
        looks = statistics.fmean(run.apart for run in reference) * len(self.contenders)
        kept = sum(run.wall for run in reference) + len(self.finals) * (first + looks)
        room = math.floor((self.budget - kept) / first)
        if room < self.least:
            needed = 1.05 * (kept + self.least * first)
            raise TuneError(f"the budget has room for {max(0, room)} trials of each optimizer, but {self.least} "
                            f"are needed to bracket an optimum: give at least --budget {needed:.0f}s. What was trained is kept")
        return min(room, self.trials or room)

    def final(self, recipe: Recipe) -> list[Trained]:
        """A recipe with every seed that nothing is tuned on."""
        return [self.train(runner, recipe) for runner in self.finals]

    def tuning(self, contender: Contender, reference: Sequence[Trained], aim: float) -> Tuning:
        runs = self.known[contender]
        known = {point: run.quality for point, run in runs.items()}
        tried = tuple(Tried(contender.values(point), str(contender.recipe(point)),
                            self.sign * run.quality if run.curve else None, run.error) for point, run in runs.items())
        best = contender.best(known)
        if not runs[best].curve:
            return Tuning(str(contender), tried, "", contender.edges(known), None)
        final = self.final(contender.recipe(best, evaluations=self.evaluations))
        return Tuning(str(contender), tried, str(contender.recipe(best)), contender.edges(known),
                      self.raw(attained(final, reference, aim)))

    def raw(self, found: Attained) -> Attained:
        """With quality as the workload's measure has it."""
        if self.sign > 0 or found.quality is None:
            return found
        mean = found.quality
        ends = (None, None) if mean.low is None or mean.high is None else (-mean.high, -mean.low)
        flipped = dataclasses.replace(mean, value=-mean.value, low=ends[0], high=ends[1])
        return dataclasses.replace(found, quality=flipped)

    # -- one training -------------------------------------------------------------------------------------------------

    def train(self, runner: Runner, recipe: Recipe) -> Trained:
        """One training in a process of its own; what the store has is not trained again."""
        name = runner.id(recipe)
        if kept := self.store.rounds(name, KEPT):
            return typed(Trained, kept[0])  # type: ignore[no-any-return]
        runner.tell(RecipeBegan(f"{recipe}, seed {runner.seed}", name))
        charged: list[Charge] = []

        def hear(event: Event) -> None:
            if isinstance(event, Charged):
                charged.append(event.charge)
            runner.tell(event)

        began = time.perf_counter()
        try:
            outcome = runner.launcher.run(runner.job(recipe, lower=False), runner.spender(name, hear))
        except RunFailed as error:
            self.keep(runner.failed(recipe, name, str(error)))
            # A loss that is not finite leaves a failure that its process metered; one that died is charged by the clock alone.
            if not any(charge.kind == "failure" and charge.device_seconds is not None for charge in charged):
                raise RunFailed(f"{recipe}, seed {runner.seed}: {error}") from error
            found = Trained(runner.seed, (), time.perf_counter() - began, error=str(error))
        else:
            apart = sum(charge.seconds for charge in charged if charge.kind == "evaluation")
            found = Trained(runner.seed, self.curve(outcome, recipe), time.perf_counter() - began, apart)
            self.keep(self.trial(runner, recipe, outcome))
        self.store.put_round(name, 0, dataclasses.asdict(found), KEPT)
        return found

    def curve(self, outcome: Outcome, recipe: Recipe) -> tuple[Evaluation, ...]:
        """Its evaluations; FLOPs by the share of the steps."""
        looks = training_of(recipe).evaluations
        at = sorted({round(self.steps * (i + 1) / looks) for i in range(looks)} - {0})
        whole = Ledger(outcome.charges).only("training").flops or 0.0
        return tuple(Evaluation(step, seconds, whole * step / self.steps, self.sign * quality)
                     for step, (seconds, quality) in zip(at, outcome.curve[-len(at):], strict=True))

    def trial(self, runner: Runner, recipe: Recipe, outcome: Outcome) -> Trial:
        """What `thrifty show` tells of it: no engine was made of it, so that inference is not measured."""
        name, quality = runner.id(recipe), self.workload.quality
        cost, value = Ledger(outcome.charges, runner.price), outcome.curve[-1][1]
        baseline = value if self.baseline is None else self.baseline
        drop = Drop(self.sign * (baseline - value), math.nan, math.nan)
        figure = QualityFigure(quality.name, quality.higher_is_better, value, baseline, drop)
        return dataclasses.replace(runner.blank(recipe, name), status="done", quality=figure, effects=outcome.effects,
                                   training=training_figure(cost), ledger=cost)

    def keep(self, trial: Trial) -> None:
        """A trial that was measured whole already stays."""
        known = self.store.trial(trial.id)
        if known is None or known.status == "failed":
            self.store.put_trial(trial)
        self.runner.tell(TrialEnded(trial))


def plan(workload: str | Workload, optimizers: Sequence[str], also: str = "") -> list[str]:
    """The recipes that bracket each optimizer's learning rate at its other values, which is what tuning begins with."""
    definition = resolve(workload)
    contenders = [Contender.of(definition, text, also) for text in optimizers]
    return [str(contender.recipe((exponent, *contender.origin[1:])))
            for contender, exponent in itertools.product(contenders, (0.0, -1.0, 1.0))]
