"""An exploration under way: what runs next within a budget, by what everything so far took.

Every decision is a function of what the store holds and of the time that is left: a killed exploration resumes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

from thrifty.errors import ThriftyError
from thrifty.measure.statistics import paired_drop
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.phases import Phase, Train
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.training_method import TrainingMethod
from thrifty.recipes.transform import Transform
from thrifty.runs.precision import REFUSED, FailsHere, slower
from thrifty.runs.runner import CLAIM_PAIRS, Runner
from thrifty.search.alone import alone, candidates, claimed, composed, singles
from thrifty.search.costs import Costs
from thrifty.search.ending import Ended, Ending, Waiting
from thrifty.search.estimate import reference_seconds
from thrifty.search.estimates import Estimate, Estimates
from thrifty.search.propose import STARTUP, by_chance, propose
from thrifty.search.space import Slot, Space
from thrifty.studies.constraints import Bars, choose
from thrifty.studies.events import BudgetSpent, Noted, Promoted, Proposed
from thrifty.studies.store import Store
from thrifty.studies.trial import Trial

ALONE_SHARE = 0.9
"""Of what the reference leaves of the budget at most, for each method alone: the rest composes them."""
CLAIM_SHARE = 0.25
"""Of the budget at most, kept for measuring the front again; but always for one trial of it."""
BATCH = 3
"""Proposals asked for at once; those whose beginnings are kept run first."""
CHEAP = 12
"""Proposals looked through for one that still fits."""
GRACE, LEAVING = 0.04, 2.5
"""Of the budget, that what is under way at its end may still take, and seconds of it that telling the result takes."""
LEAVING_SHARE, LEAVING_MOST = 0.5, 0.1
"""Telling the result takes so much of what starting the command took, which says how busy the machine is, and at most so much of
the budget."""
PATIENCE = 10.0
"""Times as long as Gaussian processes take to propose that must be left for them."""
MOST_PAIRS = 20
"""Of the best trial, where time is left that no recipe fits into."""
ROUND, SCORING = 4.0, 3.0
"""Seconds of a round of timing and of a scoring while nothing was measured."""
SIDES = 1.5
"""A round of a claim, which times the compiled baseline too, in rounds of screening."""
FIRST_CLAIM = 2.0
"""While nothing that meets the constraints is claimed and less is left than so many claims take, the best so far is claimed: an
answer is worth more than a better one that nobody has measured."""


class ExploreError(ThriftyError):
    """A budget or bars that nothing can come of; says what they would have to be."""


class Exploration:
    """One exploration.

    Args:
        runner: of the study.
        space: of recipes.
        bars: what the recommended trial keeps to, and what is made smallest.
        budget: seconds that the study may spend in all.
        promote: largest number of trials that are measured again.
        workers: recipes without training that are compiled side by side.
        spent: () -> seconds that the study has spent in all.
    """

    def __init__(self, runner: Runner, space: Space, bars: Bars, budget: float, promote: int, workers: int,
                 spent: Callable[[], float]) -> None:
        self.runner, self.space, self.bars, self.promote, self.workers = runner, space, bars, promote, workers
        self.store: Store = runner.store
        self.budget, self.started, self._spent = budget, False, spent
        self.starting = spent() - self.store.spent().seconds
        """Seconds that this command took to come here."""
        self.estimates = Estimates([(estimated, took) for estimated, took in self.store.noted("estimates") or []])
        self.waiting: list[Recipe] = []
        self.exhausted = False
        """Whether every recipe of the space has run."""
        self.skipped: dict[str, Waiting] = {}
        self.under_way: tuple[str, Estimate] | None = None
        self.proposing = 30.0
        """Seconds that the last proposals took; so long they take on the whole space with two processors."""
        self.why = ""

    @property
    def left(self) -> float:
        """Seconds of the budget that are not spent."""
        return self.budget - self._spent()

    @property
    def grace(self) -> float:
        """Seconds from now on after which even what is under way is stopped; none to speak of where nothing will be begun."""
        leaving = max(LEAVING, min(LEAVING_SHARE * self.starting, LEAVING_MOST * self.budget))
        return self.left + GRACE * self.budget - min(leaving, self.left / 2) if self.left > 0 else math.inf

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials of this seed: another seed's are other trials of the same recipes."""
        return tuple(trial for trial in self.store.trials() if trial.seed == self.runner.seed)

    def ready(self) -> None:
        """The reference is there, and the budget and the constraints can be met."""
        self.tell_spent()
        self.space = self.paying()
        self.afford_reference()
        self.tell_spent()
        self.runner.reference()
        self.under_way = None
        self.tell_spent()
        self.check_bars()

    def run(self) -> Ended:
        """One thing after the other while it fits into what is left; returns what stopped it."""
        self.started = True
        while (act := self.next()) is not None:
            act()
            self.tell_spent()
        return "nothing left" if self.exhausted else "budget"

    def tell_spent(self) -> None:
        self.runner.tell(BudgetSpent(self.budget, self.budget - self.left))

    # -- how it ends --------------------------------------------------------------------------------------------

    def overrun(self) -> None:
        """The budget and its grace are spent while something runs.

        Raises:
            ExploreError: it is the reference, so that nothing was explored.
        """
        if self.under_way is None:
            self.why = "the budget was spent while the next recipes were chosen"
        else:
            self.why = (f"the budget was spent while {self.under_way[0]} was under way, estimated at {self.under_way[1]} s; what "
                        "it trained and timed is kept, and a larger --budget resumes from there")
        if not self.started:
            raise ExploreError(f"{self.why}: give at least --budget {3 * self.budget:.0f}s")
        if self.under_way is not None:
            self.waiting = [Recipe.parse(self.under_way[0]), *self.waiting]

    def ending(self, ended: Ended, error: str) -> Ending:
        """What stopped it, what was skipped, what would come next."""
        known = {trial.recipe for trial in self.trials}
        waiting: list[Recipe] = []
        if self.started and not self.exhausted:
            waiting = [recipe for recipe in dict.fromkeys(self.waiting) if str(recipe) not in known]
            if not waiting and ended != "error":  # what failed then may fail again
                waiting = alone(self.space, self.trials, self.bars)
        costs = self.costs() if waiting else None
        coming = tuple(Waiting(str(recipe), self.estimates.of(costs.seconds(recipe)).seconds)
                       for recipe in waiting) if costs else ()
        says = {"interrupted": "it was interrupted", "error": error, "nothing left": "every recipe of the space has run"}
        why = says.get(ended) or self.why or "nothing fits in the time left"
        skipped = tuple(one for text, one in self.skipped.items() if text not in known)
        return Ending(ended, why, self.budget, self.budget - self.left, skipped, coming)

    # -- before anything is spent -------------------------------------------------------------------------------

    def paying(self) -> Space:
        """The space without precisions that are slower here than fp32: they cost time and gain none."""
        training = next((phase for phase in self.space.reference if isinstance(phase, Train)), None)
        began, workload, target = time.perf_counter(), self.runner.workload, self.runner.target

        def pays(slot: Slot, part: object) -> bool:
            phase: Phase | None = part if isinstance(part, Transform) else None
            if isinstance(part, TrainingMethod) and part.card.slot == "precision" and training is not None:
                phase = training.but(methods=(*training.methods, part))
            try:
                ratio = 1.0 if phase is None else slower(workload, phase, target, self.runner.machine)
            except FailsHere as error:
                self.runner.tell(Noted(f"{part} is skipped: {error}"))
                return False
            if ratio >= REFUSED:
                self.runner.tell(Noted(f"{part} is skipped: it takes {ratio:.1f} times as long as fp32 on this processor"))
            return ratio < REFUSED

        found = self.space.only(pays)
        self.runner.spend(None, "rehearsal", "precisions", began)
        return found

    def afford_reference(self) -> None:
        """Say how long the reference will take, before it is trained.

        Raises:
            ExploreError: longer than the budget is, at the very least.
        """
        if self.trials:
            return
        least, about = reference_seconds(self.runner)
        if self.left < least:
            raise ExploreError(f"training the reference, which everything is compared with, takes about "
                               f"{about:.0f} s here ({least:.0f} s at the very least), but the budget is {self.budget:g} s: "
                               f"give at least --budget {4 * about:.0f}s, so that there is time left to explore")
        if about >= 1:
            self.runner.tell(Noted(f"the reference is trained first: about {about:.0f} s ({least:.0f} s at the very least)"))
        self.under_way = (self.runner.workload.reference, Estimate(about, 2 * about))

    def check_bars(self) -> None:
        """A bar that the reference itself misses is missed by everything."""
        if self.bars.max_drop is None:
            return
        scores, quality = self.runner.reference_scores("validation"), self.runner.workload.quality
        resolution, allowed = paired_drop(scores, scores, quality.higher_is_better).high, self.bars.max_drop.allows(scores.value)
        if resolution is not None and resolution > allowed:
            raise ExploreError(
                f"the reference itself misses --max-drop {self.bars.max_drop}: on {len(scores.numerator)} validation "
                f"examples no drop below {resolution:.4f} can be told from none (95%), but the constraint is {allowed:.4f}; "
                f"raise it to {resolution:.4f} or more, or give more validation examples"
            )

    # -- what next ----------------------------------------------------------------------------------------------

    def next(self) -> Callable[[], None] | None:
        """What to do next; None where nothing fits, or nothing is left.

        Recipes are screened while they leave time for the claims, then the front is claimed, then whatever recipe still fits is
        screened. What no recipe fits into goes into what may fit, more pairs of the best trial, and rounds of a claim that a
        larger budget will end: what is kept of them is not lost. The first claim comes before the budget runs short.
        """
        left = self.left
        if left <= 0:
            self.why = self.why or "the budget is spent"
            return None
        self.waiting = self.batch()
        self.exhausted = not self.waiting
        begun = any(trial.status == "done" for trial in self.trials)  # before anything is there, a risk is taken
        short = not self.answered() and left < FIRST_CLAIM * self.claim_estimate().high
        for recipes in (self.claims(left, True) if short else [], self.fitting(left - self.reserve(), not begun),
                        self.claims(left, False), self.fitting(left, not begun), self.claims(left, True),
                        [] if self.exhausted else self.fitting(left, True)):
            if recipes:
                return recipes[0]
        if not self.exhausted:
            self.skip(left)
            return self.narrowing(left) or self.beginning(left)
        return None

    def fitting(self, left: float, risk: bool) -> list[Callable[[], None]]:
        """Screening the next recipe that fits into so many seconds, or several that are prepared side by side.

        Args:
            left: seconds.
            risk: whether likely is enough; it fits for sure otherwise, as far as estimates go.
        """
        costs = self.costs()

        def fits(recipe: Recipe) -> bool:
            estimate = self.estimates.of(costs.seconds(recipe))
            return (estimate.seconds if risk else estimate.high) <= left

        found = list(filter(fits, self.waiting)) if left > 0 else []
        if not found and self.waiting and left >= self.estimates.of(costs.overhead).seconds:  # else nothing can fit
            found = list(filter(fits, self.others(costs)))[:1]
        return [lambda: self.screen(found[: self.workers])] if found else []

    def skip(self, left: float) -> None:
        """Keep what the next recipes were estimated at, and say what stops the search."""
        costs = self.costs()
        estimates = {str(recipe): self.estimates.of(costs.seconds(recipe)) for recipe in self.waiting}
        for text, estimate in estimates.items():
            self.skipped.setdefault(text, Waiting(text, estimate.seconds, f"{estimate}, and {left:.0f} s were left"))
        self.why = f"the next recipe takes {min(estimates.values(), key=lambda one: one.seconds)} s, but {left:.0f} s were left"

    def batch(self) -> list[Recipe]:
        """Methods alone, for their share of the budget; those that gained, together; then proposals. The cheapest first."""
        costs, trials = self.costs(), self.trials
        waiting = sorted(alone(self.space, trials, self.bars), key=costs.seconds)
        reference = self.store.spent("reference").seconds  # which explores nothing
        share = reference + ALONE_SHARE * (self.budget - self.reserve() - reference)
        few = sum(trial.status == "done" for trial in trials) < STARTUP  # too few to propose anything by
        if waiting and (few or self.budget - self.left + costs.seconds(waiting[0]) <= share):
            return waiting
        if together := composed(self.space, trials, self.bars):
            return sorted(together, key=costs.seconds)
        return sorted(self.proposals(max(BATCH, self.workers)), key=costs.seconds)

    def proposals(self, count: int) -> list[Recipe]:
        """A proposal of the Gaussian processes, or a random one where these would take too much of what is left."""
        if self.left < PATIENCE * self.proposing:
            return by_chance(self.space, {trial.recipe for trial in self.trials}, count, self.runner.seed)
        began = time.perf_counter()
        found = propose(self.space, self.trials, self.bars, count, self.runner.seed)
        self.proposing = time.perf_counter() - began
        return found

    def others(self, costs: Costs) -> list[Recipe]:
        """Recipes that stand behind those of `batch`: methods alone, though compilers wait; compositions; what chance draws."""
        trials, drawn = self.trials, by_chance(self.space, {trial.recipe for trial in self.trials}, CHEAP, self.runner.seed)
        behind = *alone(self.space, trials, self.bars), *singles(self.space, trials, self.bars)
        return [*behind, *sorted([*composed(self.space, trials, self.bars), *drawn], key=costs.seconds)]

    def costs(self) -> Costs:
        trials = self.trials
        spent = {t.id: self.store.spent(t.id) for t in trials}
        return Costs.of(trials, spent, self.runner.reference_spent(), self.space.reference)

    # -- screening ----------------------------------------------------------------------------------------------

    def screen(self, recipes: Sequence[Recipe]) -> None:
        self.runner.tell(Proposed(tuple(map(str, recipes))))
        costs, began = self.costs(), time.perf_counter()
        apart = self.runner.launcher.apart
        free = [recipe for recipe in recipes if apart or not _trains(recipe, costs.kept)]
        if len(free) > 1:
            self.runner.prepare(free)
        chosen = free if len(free) > 1 else recipes[:1]
        expected = sum(map(costs.seconds, chosen))
        for recipe in chosen:
            self.under_way = (str(recipe), self.estimates.of(costs.seconds(recipe)))
            self.runner.run(recipe, pairs=1)
        self.under_way = None
        self.learn(expected, time.perf_counter() - began)

    def learn(self, estimated: float, took: float) -> None:
        """Mend the next estimates by how long this took."""
        self.estimates = Estimates([*self.estimates.seen, (estimated, took)])
        self.store.note("estimates", self.estimates.seen)

    # -- measuring again ----------------------------------------------------------------------------------------

    def reserve(self) -> float:
        """Seconds kept for measuring the front again: for one trial in any case, for more as far as the budget is large."""
        left = max(self.promote - sum(map(claimed, self.trials)), 0 if self.answered() else 1)
        one = self.claim_estimate().high
        return 0.0 if left <= 0 else max(one, min(left * one, CLAIM_SHARE * self.budget))

    def claim_estimate(self, rounds: int = CLAIM_PAIRS, scorings: int = 2) -> Estimate:
        """What measuring one trial again takes, by what screening took."""
        charges = [charge for trial in self.trials if trial.status == "done" for charge in self.store.spent(trial.id).charges]
        timed = [charge.seconds / charge.amount for charge in charges if charge.kind == "timing" and charge.amount]
        scored = [charge.seconds for charge in charges if charge.kind == "scoring"]
        a_round, a_scoring = (statistics.median(seen[-8:]) if seen else usual
                              for seen, usual in ((timed, ROUND), (scored, SCORING)))
        first = not any(map(claimed, self.trials))
        seconds = rounds * a_round * (SIDES if first else 1.0) + scorings * a_scoring
        if scorings and first:
            seconds += self.costs().cheapest_compiler + scorings * a_scoring  # the compiled baseline's; the reference's
        return Estimate(seconds, seconds * 1.15)

    def claims(self, left: float, risk: bool) -> list[Callable[[], None]]:
        """Measuring the best of the front again whose speed has no interval yet, where that fits."""
        trial, estimate = self.unclaimed(), self.claim_estimate()
        if trial is None or (estimate.seconds if risk else estimate.high) > left:
            return []
        return [lambda: self.claim(trial, CLAIM_PAIRS)]

    def unclaimed(self) -> Trial | None:
        """The best of the front whose speed has no interval yet; after enough claims only while none of them is an answer."""
        best = next(iter(candidates(self.trials, self.bars)), None)
        enough = sum(map(claimed, self.trials)) >= self.promote
        return None if best is None or (enough and (self.answered() or self.bars.misses(best))) else best

    def answered(self) -> bool:
        """Whether something that meets the constraints was measured again."""
        return any(claimed(trial) and not self.bars.misses(trial) for trial in self.trials)

    def narrowing(self, left: float) -> Callable[[], None] | None:
        """One more pair for the best claimed trial, where that fits."""
        best = choose([trial for trial in self.trials if claimed(trial)], self.bars).nearest
        if best is None or best.inference is None or self.claim_estimate(1, 0).seconds > left:
            return None
        pairs = best.inference.speedup.pairs + 1
        return (lambda: self.claim(best, pairs)) if pairs <= MOST_PAIRS else None

    def beginning(self, left: float) -> Callable[[], None] | None:
        """The rounds of a claim for which there is time."""
        trial = self.unclaimed()
        if trial is None or self.claim_estimate(1, 0).seconds > left:
            return None
        self.why = f"measuring {trial.recipe} again takes {self.claim_estimate()} s, but {left:.0f} s were left"
        return lambda: self.claim(trial, CLAIM_PAIRS)

    def claim(self, trial: Trial, pairs: int) -> None:
        if pairs == CLAIM_PAIRS:
            self.runner.tell(Promoted(1, CLAIM_PAIRS))
        self.under_way = (trial.recipe, self.claim_estimate())
        self.runner.run(Recipe.parse(trial.recipe), pairs=pairs, test=True)
        self.under_way = None


def _trains(recipe: Recipe, kept: frozenset[str]) -> bool:
    """Whether a training of the recipe is still to run: its seconds are a figure, so it runs alone."""
    return any(isinstance(phase, Train) and str(Recipe(recipe.phases[: i + 1])) not in kept
               for i, phase in enumerate(recipe.phases) if not isinstance(phase, Compiler))
