"""Run a recipe: in a process of its own, then measured in fresh ones, then kept. The verb `run`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from thrifty.artifacts import artifact
from thrifty.errors import RunFailed, ThriftyError
from thrifty.measure.comparison import Comparison, Reading
from thrifty.measure.environment import environment, now
from thrifty.measure.predict import predictor
from thrifty.measure.process import Worker
from thrifty.measure.scenarios import measure
from thrifty.measure.sides import ArtifactSide, ModuleSide, Side
from thrifty.recipes.recipe import Recipe
from thrifty.runs import cache
from thrifty.runs.baseline import compilers, weighed
from thrifty.runs.cures import cures
from thrifty.runs.job import Job, Outcome, place
from thrifty.runs.launcher import Launcher, LocalLauncher
from thrifty.runs.opening import open_study
from thrifty.runs.preflight import check_ranks, check_recipe, initial_properties, resolve
from thrifty.studies.card import write_card
from thrifty.studies.events import (
    Charged,
    Event,
    Listener,
    Noted,
    PhaseBegan,
    RecipeBegan,
    Stepped,
    TrialEnded,
    ignore,
)
from thrifty.studies.figures import (
    break_even,
    inference_figure,
    no_better,
    quality_figure,
    training_figure,
    training_speedup,
)
from thrifty.studies.ledger import Charge, Kind, Ledger
from thrifty.studies.places import ARTIFACTS
from thrifty.studies.store import Store, trial_id
from thrifty.studies.trial import ArtifactFigure, QualityFigure, Trial
from thrifty.target import Machine, Target, cores, training_machine
from thrifty.workloads.blame import part
from thrifty.workloads.quality import Scores, Split, length
from thrifty.workloads.workload import Workload

CLAIM_PAIRS = 5
SCREENING_EXAMPLES = 1000
"""Of validation, where fewer than `CLAIM_PAIRS` pairs screen."""


# -- running ----------------------------------------------------------------------------------------------------


class Runner:
    """Runs recipes of one workload on one target with one seed, and keeps everything in one store.

    Args:
        workload: a workload, or a reference that `load_workload` takes.
        store: the study's directory.
        target: what the models will run on.
        seed: seed of all random streams.
        price: dollars per hour of this machine; None where money is not asked for.
        machine: what trains; one process on the target's device where None.
        launcher: where jobs run; in processes of this machine where None.
        force: whether to run a precision that is slower here than fp32.
        listener: hears events while things go on.
    """

    def __init__(self, workload: str | Workload, store: Store, *, target: Target | None = None, seed: int = 0,
                 price: float | None = None, machine: Machine | None = None, launcher: Launcher | None = None,
                 force: bool = False, listener: Listener = ignore) -> None:
        self.workload = resolve(workload)
        self.hash = store.study.workload_hash
        self.store, self.target, self.seed, self.price = store, target or Target(), seed, price
        self.machine = machine or Machine(self.target.device)
        self.launcher, self.tell, self.force = launcher or LocalLauncher(), listener, force
        self._reference: Outcome | None = None
        self._outcomes: dict[str, Outcome] = {}
        """{trial's id: what its job left}: to claim what was screened takes no job, which would load the workload again."""
        self._phase = ""

    def id(self, recipe: Recipe) -> str:
        return trial_id(self.hash, str(recipe), self.seed, self.target.to_json())

    @cache.session()
    def run(self, recipe: Recipe, *, pairs: int = CLAIM_PAIRS, test: bool = False) -> Trial:
        """Run, measure and keep one recipe; what the store already has is not done again.

        Args:
            recipe: that was checked (`check_recipe`) by who asks.
            pairs: process pairs: 1 screens, 5 or more claim.
            test: score on the test split too, which only a final front should be.

        Returns:
            the trial; failed ones too, with their reason.

        Raises:
            RunFailed: the reference fails.
        """
        name = self.id(recipe)
        known = self.store.trial(name)
        if known is not None and known.status == "done" and self._enough(known, pairs, test):
            return known
        self.reference()
        self.tell(RecipeBegan(str(recipe), name))
        self._phase = ""  # of this recipe, none has begun
        try:
            if (outcome := self._outcomes.get(name)) is None or not _there(outcome):
                outcome = self._outcomes[name] = self.launcher.run(self.job(recipe), self.spender(name))
            trial = self.measured(recipe, name, outcome, pairs, test)
        except ThriftyError as error:  # of this recipe alone: the next one may well run
            hint = cures(recipe, self._phase, initial_properties(self.workload), self.target.device)
            trial = self.failed(recipe, name, f"{error}; {hint}" if hint else str(error))
        self.store.put_trial(trial)
        self.tell(TrialEnded(trial))
        return trial

    @cache.session()
    def prepare(self, recipes: Sequence[Recipe]) -> None:
        """Train and lower recipes side by side, each where the launcher has room for it; `run` then only measures them.

        One that fails says so when it is run. Their events are not told: they would be of several at once.
        """
        def one(recipe: Recipe, launcher: Launcher) -> None:
            with contextlib.suppress(ThriftyError):
                name = self.id(recipe)
                self._outcomes[name] = launcher.run(self.job(recipe), self.spender(name, ignore))

        with ThreadPoolExecutor(len(recipes)) as pool:
            for done in [pool.submit(one, *pair) for pair in zip(recipes, self.launcher.beside(len(recipes)), strict=True)]:
                done.result()

    @staticmethod
    def _enough(trial: Trial, pairs: int, test: bool) -> bool:
        return (trial.inference is not None and trial.inference.speedup.pairs >= pairs
                and (trial.test is not None or not test)
                and trial.artifact is not None and Path(trial.artifact.path).is_dir())

    def job(self, recipe: Recipe, lower: bool = True) -> Job:
        return Job(self.workload.source, self.hash, str(recipe), self.seed, self.target, self.machine, lower,
                   self.force)

    def spender(self, trial: str | None, tell: Listener | None = None) -> Listener:
        """Every charge is in the store as soon as it is known; ``tell`` hears the events, or else the listener."""

        def hear(event: Event) -> None:
            if isinstance(event, Charged):
                self.store.charge(trial, event.charge)
            if isinstance(event, PhaseBegan):
                self._phase = event.text
            (tell or self.tell)(event)

        return hear

    def spend(self, trial: str | None, kind: Kind, what: str, began: float, amount: int | None = None) -> None:
        self.store.charge(trial, Charge(kind, what, time.perf_counter() - began, amount=amount))

    # -- the reference ------------------------------------------------------------------------------------------

    @cache.session()
    def reference(self) -> Outcome:
        """The reference recipe's model, with which trials are compared; run once.

        Raises:
            RunFailed: the reference itself fails, so that nothing can be compared with it.
        """
        if self._reference is None:
            recipe = Recipe.parse(self.workload.reference)
            self.tell(RecipeBegan(f"reference: {recipe or 'the model as it comes'}", "reference"))
            try:
                self._reference = self.launcher.run(self.job(recipe, lower=False), self.spender("reference"))
            except RunFailed as error:
                raise RunFailed(f"the reference failed, and all trials are compared with it: {error}") from error
            cache.pin("checkpoints", self._reference.checkpoint)  # every trial is compared with it
            self.store.note("as it is", weighed(self._reference).to_json())
            self._doubt()
        return self._reference

    @functools.cached_property
    def compiled(self) -> tuple[str, Outcome] | None:
        """The compiled fp32 engine of the reference, the second baseline of claims, and the compiler that made it.

        It is the quickest that is installed: what an engine gains over *some* compiler, no search asked for more. None where none
        is installed, or none takes the model.
        """
        recipe = Recipe.parse(self.workload.reference)
        for name, compiler in compilers(self.target.device, self.store.noted("compiled")):
            try:
                found = self.launcher.run(self.job(recipe | compiler), self.spender("reference"))
            except RunFailed as error:
                self.tell(Noted(f"no compiled baseline by {name}: {error}"))
            else:
                self.store.note("compiled", name)
                if found.engine is not None:
                    cache.pin("engines", found.engine)
                return name, found
        return None

    def reference_spent(self) -> Ledger:
        """What the reference cost, and the first scoring of it, which says what scoring a trial takes."""
        scored = self.store.spent(f"reference-{self.seed}").only("scoring").charges
        return Ledger((*self.reference().charges, *scored[:1]))

    def _doubt(self) -> None:
        """Say so where comparisons with the reference say nothing: it guesses, or too few examples judge."""
        quality = self.workload.quality
        with part("quality.constant"):
            constant = quality.constant(quality.sample(self.workload.validation, SCREENING_EXAMPLES))
        if constant is None:
            return
        text = no_better(quality, self.reference_scores("validation", SCREENING_EXAMPLES), constant)
        self.store.note("doubt", text)
        if text is not None:
            self.tell(Noted(text))

    def quality(self, name: str, side: Side, batch: int | None, split: Split, most: int | None = None) -> QualityFigure:
        """An engine's quality against the reference's on the same examples, ``most`` of them; each is scored once."""
        reference = self.reference_scores(split, most)
        return quality_figure(self.workload.quality, reference, self.scores(name, side, batch, split, most), split)

    def reference_scores(self, split: Split, most: int | None = None) -> Scores:
        """The reference's own scores."""
        base = ModuleSide(self.workload.source, str(place("checkpoints", self.reference().checkpoint)))
        return self.scores(f"reference-{self.seed}", base, None, split, most)

    def scores(self, name: str, side: Side, batch: int | None, split: Split, most: int | None = None) -> Scores:
        dataset = getattr(self.workload, split)
        some = dataset if most is None else self.workload.quality.sample(dataset, most)
        what = split if some is dataset else f"{split}[{length(some)}]"
        kept = self.store.scores(name, what, self.workload.quality.statistic)
        if kept is None:
            kept = self.scored(side, batch, some, name, what)
            self.store.put_scores(name, what, kept)
        return kept

    def scored(self, side: Side, batch: int | None, dataset: Dataset[Any], name: str, what: str) -> Scores:
        """Scores of an engine, or of the module, in a worker of its own; the data stay here."""
        began = time.perf_counter()
        self.tell(PhaseBegan(f"scoring on {what}"))
        with Worker(side, threads=cores() if self.target.device == "cpu" else 1, device=self.target.device) as worker:
            worker.load()
            with part("quality"):
                scores = self.workload.quality(predictor(worker, batch), dataset)
        self.spend(name, "scoring", what, began)
        return scores

    # -- measuring ----------------------------------------------------------------------------------------------

    def measured(self, recipe: Recipe, name: str, outcome: Outcome, pairs: int, test: bool) -> Trial:
        """Score and time the artifact; its rounds are kept one by one, so that a killed measurement goes on."""
        assert outcome.engine is not None
        kept = self.store.path / ARTIFACTS / name
        kept.parent.mkdir(exist_ok=True)
        artifact.copy(place("engines", outcome.engine), kept)
        (kept / "charges.json").unlink(missing_ok=True)  # the cache's own note: the trial's ledger has it
        engine = ArtifactSide(str(kept), trust_native_code=True)  # a child of this process has just made it
        manifest = artifact.read(kept)
        batch = largest_batch(manifest, self.workload)
        quality = self.quality(name, engine, batch, "validation", SCREENING_EXAMPLES if pairs < CLAIM_PAIRS else None)
        final = self.quality(name, engine, batch, "test") if test else None
        comparison = self.timed(name, engine, pairs)
        compiled_by = self.compiled[0] if "compiled" in comparison.figures and self.compiled is not None else None
        inference = inference_figure(comparison, manifest.get("precision"), compiled_by)
        cost, base = (Ledger(run.charges, self.price) for run in (outcome, self.reference()))
        eager, served = comparison.figures["eager"], comparison.figures["engine"]
        saved = eager.p50 / eager.batch - served.p50 / served.batch
        trial = dataclasses.replace(
            self.blank(recipe, name),
            status="done",
            quality=quality,
            test=final,
            training=training_figure(cost, training_speedup(base, outcome.charges, outcome.curve, quality)),
            inference=inference,
            artifact=ArtifactFigure(str(kept), artifact.size(kept), bool(manifest["portable"])),
            break_even_requests=break_even(cost.seconds - base.seconds, saved, inference.speedup),
            saved_seconds_per_request=saved,
            effects=outcome.effects,
            ledger=cost,
            raw=comparison.to_json(),
        )
        write_card(kept, trial)
        return trial

    def timed(self, name: str, engine: Side, pairs: int) -> Comparison:
        """The engine against the eager baseline and the compiled one, in ``pairs`` rounds of fresh processes.

        Screening's rounds are no part of a claim's: the trial was promoted for them, so they flatter it.
        """
        what = "screen" if pairs < CLAIM_PAIRS else "claim"
        eager = ModuleSide(self.workload.source, str(place("checkpoints", self.reference().checkpoint)))
        sides: dict[str, Side] = {"eager": eager, "engine": engine}
        if what == "claim" and self.compiled is not None and self.compiled[1].engine is not None:
            sides["compiled"] = ArtifactSide(str(place("engines", self.compiled[1].engine)), trust_native_code=True)
        done = sorted(self.store.rounds(name, what).items())[:pairs]
        kept = [Reading.from_json(value) for _, row in done for value in row["readings"]]
        began = time.perf_counter()
        self.tell(PhaseBegan(f"timing, {pairs} rounds of fresh processes"))

        def keep(index: int, readings: Sequence[Reading]) -> None:
            nonlocal began
            self.store.put_round(name, index, {"readings": [dataclasses.asdict(reading) for reading in readings]}, what)
            self.spend(name, "timing", "rounds of fresh processes", began, 1)
            began = time.perf_counter()

        return measure(
            self.workload.scenario, sides, "eager", self.inputs, threads=self.target.threads, device=self.target.device,
            rounds=pairs, memory=self.target.memory, kept=kept, on_round=keep,
            progress=lambda done, total, text: self.tell(Stepped(done, total, text)),
        )

    def inputs(self, n: int) -> list[np.ndarray]:
        """n requests as arrays."""
        return [x.numpy() for x in self.workload.example(n)]

    def blank(self, recipe: Recipe, name: str) -> Trial:
        """A trial of which nothing is known yet but what was asked for."""
        return Trial(
            id=name, workload=self.workload.name, workload_hash=self.hash, recipe=str(recipe), seed=self.seed,
            target=self.target.to_json(), status="failed", environment=environment(), created=now(),
        )

    def failed(self, recipe: Recipe, name: str, why: str) -> Trial:
        spent = Ledger(self.store.spent(name).charges, self.price)
        return dataclasses.replace(self.blank(recipe, name), error=why, training=training_figure(spent),
                                   ledger=spent)


def _there(outcome: Outcome) -> bool:
    """Whether the cache still has the engine."""
    return outcome.engine is not None and place("engines", outcome.engine).is_dir()


def largest_batch(manifest: Mapping[str, Any], workload: Workload) -> int:
    """Examples that an engine takes in one call."""
    shape = manifest["inputs"][0]["shape"]
    if shape and shape[0] == -1:
        return workload.served_shapes[0][0][1]
    return int(shape[0]) if shape else 1


# -- verbs ------------------------------------------------------------------------------------------------------


def run(workload: str | Workload, recipe: str | Recipe, *, study: str | Path | None = None, target: Target | None = None,
        seed: int = 0, pairs: int = CLAIM_PAIRS, price: float | None = None, force: bool = False, nproc: int = 1,
        max_restarts: int = 0, training_threads: int | None = None, training_device: str | None = None,
        listener: Listener = ignore) -> Trial:
    """Run one recipe and measure it.

    Args:
        workload: a workload, or a reference that `load_workload` takes: "digits", "my.py".
        recipe: text or value.
        study: its directory, made where there is none; study-NAME, after the workload, where None. Asking again resumes.
        target: what it will run on; one thread of the CPU by default.
        seed: seed of all random streams.
        pairs: process pairs: 1 screens, 5 or more claim.
        price: dollars per hour of this machine.
        force: whether to run a precision that is slower here than fp32.
        nproc: processes that train together, where a training names ddp, zero1, zero2 or zero3.
        max_restarts: how often they are started again, from the last kept state, after one of them failed.
        training_threads: threads for every training; one a processor where None.
        training_device: "cpu" or "cuda"; the target's where None.
        listener: hears events while things go on.

    Returns:
        the trial, failed ones too.

    Raises:
        ThriftyError: the workload or the recipe cannot run; nothing was spent.
    """
    definition, parsed, served = resolve(workload), Recipe.of(recipe), target or Target()
    machine = training_machine(served, training_device, nproc, training_threads)
    check_recipe(definition, parsed, served.device, machine.device)
    check_ranks(definition, parsed, nproc)
    with open_study(study, definition, served, machine, listener) as (opened, _):
        runner = Runner(definition, opened, target=served, seed=seed, price=price, force=force, listener=listener,
                        machine=machine, launcher=LocalLauncher(restarts=max_restarts))
        return runner.run(parsed, pairs=pairs)
