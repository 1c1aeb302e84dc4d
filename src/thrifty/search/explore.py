"""Explore: the frontier under a budget. The reference, each method alone, the best together, then what Optuna proposes.

Every decision is a function of what the store holds: an exploration that was killed goes on from there.
"""

from __future__ import annotations

import contextlib
import signal
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, final

from thrifty.errors import ThriftyError
from thrifty.measure.statistics import paired_drop
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.phases import Phase, Train
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.training_method import TrainingMethod
from thrifty.recipes.transform import Transform
from thrifty.runs.launcher import Launcher
from thrifty.runs.precision import REFUSED, slower
from thrifty.runs.preflight import resolve
from thrifty.runs.runner import CLAIM_PAIRS, Runner, open_study
from thrifty.search.alone import alone, candidates, composed
from thrifty.search.costs import Costs
from thrifty.search.estimate import reference_seconds
from thrifty.search.propose import STARTUP, propose
from thrifty.search.space import Slot, Space
from thrifty.studies.constraints import Bars, Choice, choose
from thrifty.studies.events import BudgetSpent, Listener, Noted, Promoted, Proposed, ignore
from thrifty.studies.findings import objectives
from thrifty.studies.frontier import Frontier, frontier
from thrifty.studies.ledger import Ledger
from thrifty.studies.store import Store
from thrifty.studies.trial import Trial
from thrifty.target import Machine, Target, cores
from thrifty.workloads.workload import Workload

ALONE_SHARE = 0.9
"""Of what the reference leaves of the budget at most, for each method alone: the rest composes them."""
CLAIM_SHARE = 0.25
"""Of the budget at most, kept for measuring the front again."""
BATCH = 3
"""Proposals asked for at once; those whose beginnings are kept run first."""

Ended = Literal["budget", "nothing left", "interrupted", "error"]


class ExploreError(ThriftyError):
    """A budget or bars that nothing can come of; says what they would have to be."""


@final
@dataclass(frozen=True)
class Explored:
    """What an exploration found.

    Args:
        trials: of the study, in the order in which they first ran.
        frontier: over quality, training and what is minimised.
        choice: the recommended trial, or the nearest where none meets the bars.
        ended: by its budget, for want of recipes, by the user, or by an error (of the disk, say).
        error: what it said.
    """

    trials: tuple[Trial, ...]
    frontier: Frontier
    choice: Choice
    ended: Ended
    error: str = ""


def explore(workload: str | Workload, budget: float, *, store: str | Path = "study", bars: Bars = Bars(),
            methods: Sequence[str] = (), target: Target | None = None, seed: int = 0, price: float | None = None,
            promote: int = 4, workers: int = 1, launcher: Launcher | None = None,
            nproc: int = 1, listener: Listener = ignore) -> Explored:
    """Find the frontier of a workload within a budget.

    Recipes are screened with one pair; then the front's that may meet the bars are measured again with five pairs,
    for which a part of the budget is kept, and scored on test. What the store holds is not run again, and what was
    spent on it counts: the same call after an interruption goes on, and after its end changes nothing.

    Args:
        workload: a workload, or a reference that `load_workload` takes.
        budget: seconds that the study may spend in all.
        store: the study's directory.
        bars: what the recommended trial keeps to, and what is made smallest.
        methods: names of the methods to use; all that are installed where none is given.
        target: what the models will run on.
        seed: of every random stream.
        price: dollars an hour of this machine.
        promote: largest number of trials that are measured again.
        workers: recipes without training that are compiled side by side; timing is always alone.
        launcher: where recipes run; in processes of this machine where None.
        nproc: processes that train together in recipes that spread a training; ddp and its kin are proposed where it is above 1.
        listener: hears events while things go on.

    Raises:
        ExploreError: the budget does not reach for the reference, or the reference itself cannot meet a bar.
        ThriftyError: the workload or a method cannot be used; nothing was spent.
    """
    definition, place = resolve(workload), target or Target()
    if not budget > 0:
        raise ExploreError(f"a budget is above 0 seconds, but here is {budget:g}")
    if launcher is None and not 1 <= workers <= cores():
        raise ExploreError(f"workers are 1 to {cores()} on this machine, but here are {workers}")
    space = Space.of(definition, methods, place.device, nproc)
    with open_study(store, definition, place) as opened, _terminable():
        opened.note("bars", bars.to_json())
        runner = Runner(definition, opened, target=place, seed=seed, price=price, listener=listener,
                        machine=Machine(place.device, nproc), launcher=launcher)
        search, why = _Search(runner, space, bars, budget, promote, workers), ""
        ended: Ended
        try:
            search.ready()
            ended = search.run()
        except KeyboardInterrupt:
            ended = "interrupted"
        except (ThriftyError, OSError) as error:
            if not search.started:
                raise
            ended, why = "error", str(error)
        trials = opened.trials()
        return Explored(trials, frontier(trials, objectives(bars)), choose(trials, bars), ended, why)


class _Search:
    """One exploration under way."""

    def __init__(self, runner: Runner, space: Space, bars: Bars, budget: float, promote: int, workers: int) -> None:
        self.runner, self.space, self.bars, self.promote, self.workers = runner, space, bars, promote, workers
        self.store: Store = runner.store
        self.budget, self.started = budget, False
        self.before, self.began = self.store.spent().seconds, time.perf_counter()

    @property
    def spent(self) -> float:
        """Seconds of the budget that are gone: what the study had spent, and the time since."""
        return self.before + time.perf_counter() - self.began

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Of this seed: another seed's are other trials of the same recipes."""
        return tuple(trial for trial in self.store.trials() if trial.seed == self.runner.seed)

    def ready(self) -> None:
        """The reference is there, and the budget and the bars can be met."""
        self.runner.tell(BudgetSpent(self.budget, self.spent))
        self.space = self.paying()
        self.afford_reference()
        self.runner.reference()
        self.check_bars()

    def run(self) -> Ended:
        """Screen while the budget lasts, then measure the front again."""
        self.started = True
        ended: Ended = "budget"
        while (left := self.budget - self.spent - self.reserve()) > 0:
            batch = self.batch()
            if not batch:
                ended = "nothing left"
                break
            costs = self.costs()
            affordable = [recipe for recipe in batch if costs.seconds(recipe) <= left]
            if not affordable:
                break
            self.screen(affordable)
        self.claim()
        return ended

    def paying(self) -> Space:
        """The space without precisions that are slower here than fp32: they cost time and gain none."""
        training = next((phase for phase in self.space.reference if isinstance(phase, Train)), None)
        began, workload, target = time.perf_counter(), self.runner.workload, self.runner.target

        def pays(slot: Slot, part: object) -> bool:
            phase: Phase | None = part if isinstance(part, Transform) else None
            if isinstance(part, TrainingMethod) and part.card.slot == "precision" and training is not None:
                phase = training.but(methods=(*training.methods, part))
            ratio = 1.0 if phase is None else slower(workload, phase, target)
            if ratio >= REFUSED:
                self.runner.tell(Noted(f"{part} is left out: it takes {ratio:.1f} times as long as fp32 on this processor"))
            return ratio < REFUSED

        found = self.space.only(pays)
        self.runner.spend(None, "rehearsal", "precisions", began)
        return found

    # -- before anything is spent -------------------------------------------------------------------------------

    def afford_reference(self) -> None:
        if self.trials:
            return
        needed = reference_seconds(self.runner)
        if self.budget - self.spent < needed:
            raise ExploreError(f"training the reference, with which everything is compared, alone takes about "
                               f"{needed:.0f} s here, and the budget is {self.budget:g} s: give at least "
                               f"--budget {4 * needed:.0f}s, so that there is something left to explore with")

    def check_bars(self) -> None:
        """A bar that the reference itself misses is missed by everything."""
        if self.bars.max_drop is None:
            return
        scores, quality = self.runner.reference_scores("validation"), self.runner.workload.quality
        resolution, allowed = paired_drop(scores, scores, quality.higher_is_better).high, self.bars.max_drop.allows(scores.value)
        if resolution is not None and resolution > allowed:
            raise ExploreError(
                f"the reference itself misses --max-drop {self.bars.max_drop}: on {len(scores.numerator)} validation "
                f"examples no drop below {resolution:.4f} can be told from none (95%), and the bar is {allowed:.4f}; "
                f"raise it to {resolution:.4f} or more, or give more validation examples"
            )

    # -- what next ----------------------------------------------------------------------------------------------

    def batch(self) -> list[Recipe]:
        """Methods alone, for their share of the budget; those that gained, together; then proposals. The cheapest first."""
        costs, trials = self.costs(), self.trials
        waiting = sorted(alone(self.space, trials, self.bars), key=costs.seconds)
        reference = self.store.spent("reference").seconds  # which explores nothing
        share = reference + ALONE_SHARE * (self.budget - self.reserve() - reference)
        few = sum(trial.status == "done" for trial in trials) < STARTUP  # too few to propose anything by
        if waiting and (few or self.spent + costs.seconds(waiting[0]) <= share):
            return waiting[: self.workers]
        if together := composed(self.space, trials, self.bars):
            return sorted(together, key=costs.seconds)
        proposed = propose(self.space, trials, self.bars, max(BATCH, self.workers), self.runner.seed)
        return sorted(proposed, key=costs.seconds)

    def costs(self) -> Costs:
        trials = self.trials
        reference = self.runner.reference().outcome.charges
        return Costs.of(trials, {t.id: self.store.spent(t.id) for t in trials}, Ledger(reference), self.space.reference)

    # -- running ------------------------------------------------------------------------------------------------

    def screen(self, recipes: Sequence[Recipe]) -> None:
        self.runner.tell(Proposed(tuple(map(str, recipes))))
        if self.workers > 1:
            kept = self.costs().kept
            apart = self.runner.launcher.apart
            free = [recipe for recipe in recipes if apart or not _trains(recipe, kept)][: self.workers]
            if len(free) > 1:
                self.runner.prepare(free)
        for recipe in recipes:
            if self.spent + self.reserve() >= self.budget:
                return
            self.runner.run(recipe, pairs=1)
            self.runner.tell(BudgetSpent(self.budget, self.spent))

    # -- measuring again ----------------------------------------------------------------------------------------

    def reserve(self) -> float:
        """Seconds kept for measuring the front again."""
        return min(self.promote * self.claim_seconds(), CLAIM_SHARE * self.budget)

    def claim_seconds(self) -> float:
        """What measuring one trial again takes, by what screening took."""
        spent = [self.store.spent(trial.id) for trial in self.trials if trial.status == "done"]
        rounds = [charge.seconds / charge.amount for ledger in spent for charge in ledger.only("timing").charges if charge.amount]
        scorings = [charge.seconds for ledger in spent for charge in ledger.only("scoring").charges]
        return CLAIM_PAIRS * (statistics.median(rounds) if rounds else 4.0) + (statistics.median(scorings) if scorings else 3.0)

    def claim(self) -> None:
        """Measure the front again, the best first, while time is left; one trial that meets the bars in any case."""
        for done in range(self.promote - sum(claimed(trial) for trial in self.trials)):
            waiting = [trial for trial in candidates(self.trials, self.bars) if not claimed(trial)]
            recommended = choose(self.trials, self.bars).trial
            needed = recommended is None or not claimed(recommended)
            if not waiting or not (needed or self.spent + self.claim_seconds() <= self.budget):
                return
            if not done:
                self.runner.tell(Promoted(min(self.promote, len(waiting)), CLAIM_PAIRS))
            self.runner.run(Recipe.parse(waiting[0].recipe), pairs=CLAIM_PAIRS, test=True)


def claimed(trial: Trial) -> bool:
    """Whether its speed has an interval and its quality was scored on test."""
    return trial.inference is not None and trial.inference.speedup.pairs >= CLAIM_PAIRS and trial.test is not None


def _trains(recipe: Recipe, kept: frozenset[str]) -> bool:
    """Whether a training of the recipe is still to run: its seconds are a figure, so it runs alone."""
    return any(isinstance(phase, Train) and str(Recipe(recipe.phases[: i + 1])) not in kept
               for i, phase in enumerate(recipe.phases) if not isinstance(phase, Compiler))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends an exploration as Ctrl-C does: with the frontier so far."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
