"""The choice of one alternative a block, as a mixed-integer program: pure functions of arrays.

    minimize   sum_i loss_i[x_i]
    such that  base_k + sum_i cost_ki[x_i] + max_i peak_ki[x_i] <= most_k   for every bound k

One binary a choice, one equality a block; a peak is one continuous variable more. HiGHS solves it (`scipy.optimize.milp`). What
it holds when its time is over is kept, and so is what a Lagrangian descent finds by itself, which is never far off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from thrifty.errors import MissingExtra, ThriftyError

Choice = tuple[int, ...]
"""The alternative's position, for each block."""

SECONDS = 1.5
"""That one program may take; what is best by then is kept."""
SLACK = 1e-9
"""Share of a bound by which rounding may exceed it."""
BISECTIONS = 60


@final
@dataclass(frozen=True)
class Bound:
    """What a choice may use of one thing.

    Args:
        name: for messages.
        most: that is allowed, above 0.
        costs: [alternatives] a block, what each adds; may be negative.
        base: what is used whatever is chosen.
        peaks: [alternatives] a block, of which the largest alone counts; none where empty.
    """

    name: str
    most: float
    costs: tuple[np.ndarray, ...]
    base: float = 0.0
    peaks: tuple[np.ndarray, ...] = ()

    def used(self, choice: Sequence[int]) -> float:
        """What a choice uses."""
        highest = max((float(p[i]) for p, i in zip(self.peaks, choice, strict=True)), default=0.0) if self.peaks else 0.0
        return self.base + sum(float(c[i]) for c, i in zip(self.costs, choice, strict=True)) + highest

    def over(self, choice: Sequence[int]) -> float:
        """Share of the bound by which a choice exceeds it; 0 or less where it does not."""
        return self.used(choice) / self.most - 1


@final
@dataclass(frozen=True)
class Problem:
    """Blocks with alternatives, and bounds on what a choice may use.

    Args:
        loss: [alternatives] a block; the sum is made small.
        bounds: all of which hold.

    >>> two = (np.array([0.0, 1.0, 5.0]),) * 2
    >>> found = solve(Problem(two, (Bound("latency", 5.0, (np.array([4.0, 2.0, 1.0]),) * 2),)))
    >>> found.choice, found.loss, found.feasible
    ((1, 1), 2.0, True)
    """

    loss: tuple[np.ndarray, ...]
    bounds: tuple[Bound, ...] = ()

    def __post_init__(self) -> None:
        sizes = [len(values) for values in self.loss]
        for bound in self.bounds:
            if bound.most <= 0:
                raise ThriftyError(f"{bound.name} is bounded by {bound.most:g}, but a bound must be above 0")
            if [len(values) for values in bound.costs] != sizes or (bound.peaks and [len(v) for v in bound.peaks] != sizes):
                raise ThriftyError(f"{bound.name} has costs for different blocks or alternatives than the losses")
        if not sizes or min(sizes) < 1:
            raise ThriftyError("there is nothing to choose: give at least one block, each with one alternative or more")

    def total(self, choice: Sequence[int]) -> float:
        """Sum of the losses."""
        return sum(float(values[i]) for values, i in zip(self.loss, choice, strict=True))

    def excess(self, choice: Sequence[int]) -> float:
        """Share by which the bound that is exceeded most is; 0 where all hold."""
        return max([0.0, *(bound.over(choice) for bound in self.bounds)])

    def feasible(self, choice: Sequence[int]) -> bool:
        return self.excess(choice) <= SLACK


@final
@dataclass(frozen=True)
class Solution:
    """What was found.

    Args:
        choice: the alternative of each block.
        loss: their sum.
        feasible: whether every bound holds; where not, this is the choice that exceeds its worst bound least.
        optimal: whether it is proven that no other is better.
    """

    choice: Choice
    loss: float
    feasible: bool
    optimal: bool


def solve(problem: Problem, seconds: float = SECONDS) -> Solution:
    """The choice of least loss within all bounds; where there is none, the nearest to them.

    Args:
        problem: to solve.
        seconds: after which the best so far is kept.

    Raises:
        MissingExtra: scipy is not installed.
        ThriftyError: a figure is not finite.

    Source: "Puzzle: Distillation-Based NAS for Inference-Optimized LLMs", Bercovich et al. 2024, arXiv:2411.19146, section 3.
    """
    for values in (*problem.loss, *(v for bound in problem.bounds for v in (*bound.costs, *bound.peaks))):
        if not np.isfinite(values).all():
            raise ThriftyError("a loss or a cost is NaN or infinite: remove that alternative")
    kept = [_undominated(problem, i) for i in range(len(problem.loss))]
    small = _restricted(problem, kept)
    found = _solved(small, seconds)
    return replace(found, choice=tuple(int(rows[i]) for rows, i in zip(kept, found.choice, strict=True)))


def frontier(problem: Problem, name: str, points: int = 24, seconds: float = SECONDS) -> list[Solution]:
    """The choices of least loss under ever tighter values of one bound, the loosest first; the other bounds hold throughout.

    Args:
        problem: with that bound; how much it allows is ignored.
        name: of the bound.
        points: values that are tried, evenly spaced in their logarithm.
        seconds: for each.
    """
    (bound,) = [each for each in problem.bounds if each.name == name]
    others = tuple(each for each in problem.bounds if each is not bound)
    free = solve(replace(problem, bounds=others), seconds)
    most = bound.used(free.choice)
    cheapest = solve(Problem(bound.costs, others), seconds).choice
    least = min(bound.used(cheapest), most)
    found: list[Solution] = []
    for value in np.geomspace(max(most, 1e-300), max(least, most * 1e-6), points):
        tighter = replace(bound, most=float(value) * (1 + 1e-9))
        one = solve(replace(problem, bounds=(*others, tighter)), seconds)
        if one.feasible and all(one.choice != other.choice for other in found):
            found.append(one)
    return [one for one in found if not any(
        other.loss <= one.loss and bound.used(other.choice) < bound.used(one.choice) for other in found)]


# -- inside -------------------------------------------------------------------------------------------------------


def _undominated(problem: Problem, block: int) -> np.ndarray:
    """Positions of a block's alternatives that no other is at least as good as in everything; of equals the first."""
    columns = [problem.loss[block], *(bound.costs[block] for bound in problem.bounds),
               *(bound.peaks[block] for bound in problem.bounds if bound.peaks)]
    table = np.stack([np.asarray(column, dtype=np.float64) for column in columns], 1)
    keep = [i for i, row in enumerate(table)
            if not any((other <= row).all() and ((other < row).any() or j < i) for j, other in enumerate(table) if j != i)]
    return np.array(keep)


def _restricted(problem: Problem, kept: Sequence[np.ndarray]) -> Problem:
    def of(values: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(v, dtype=np.float64)[rows] for v, rows in zip(values, kept, strict=True)) if values else ()

    return Problem(of(problem.loss), tuple(replace(b, costs=of(b.costs), peaks=of(b.peaks)) for b in problem.bounds))


def _solved(problem: Problem, seconds: float) -> Solution:
    own = _descended(problem)
    if not problem.bounds:
        return Solution(own, problem.total(own), True, True)
    found, proven = _program(problem, seconds)
    candidates = [choice for choice in (own, found) if choice is not None and problem.feasible(choice)]
    if candidates:
        best = min(candidates, key=problem.total)
        return Solution(best, problem.total(best), True, proven)
    # Nothing is within the bounds: by how much must all of them give way, and what is best then?
    nearest, proven = _program(problem, seconds, relaxed=True)
    near = min((choice for choice in (own, nearest) if choice is not None), key=problem.excess)
    if problem.feasible(near):
        return Solution(near, problem.total(near), True, False)
    wider = replace(problem, bounds=tuple(replace(b, most=b.most * (1 + problem.excess(near) + SLACK)) for b in problem.bounds))
    better, _ = _program(wider, seconds)
    if better is not None and wider.feasible(better) and problem.total(better) < problem.total(near):
        near = better
    return Solution(near, problem.total(near), False, proven)


def _program(problem: Problem, seconds: float, relaxed: bool = False) -> tuple[Choice | None, bool]:
    """What HiGHS finds: the choice, and whether it is proven best. Relaxed: the least share that all bounds give way by."""
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_matrix
    except ImportError as error:
        raise MissingExtra("scipy", "explore") from error
    sizes = [len(values) for values in problem.loss]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    binaries, peaks = int(starts[-1]), [bound for bound in problem.bounds if bound.peaks]
    width = binaries + len(peaks) + int(relaxed)
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    low: list[float] = []
    high: list[float] = []

    def row(entries: Sequence[tuple[int, float]], at_least: float, at_most: float) -> None:
        for column, value in entries:
            rows.append(len(low))
            columns.append(column)
            values.append(value)
        low.append(at_least)
        high.append(at_most)

    for i, size in enumerate(sizes):
        row([(int(starts[i]) + j, 1.0) for j in range(size)], 1.0, 1.0)
    for bound in problem.bounds:
        entries = [(int(starts[i]) + j, float(cost) / bound.most) for i, costs in enumerate(bound.costs)
                   for j, cost in enumerate(costs)]
        if bound.peaks:
            highest = binaries + peaks.index(bound)
            entries.append((highest, 1.0))
            for i, held in enumerate(bound.peaks):
                row([(int(starts[i]) + j, float(value) / bound.most) for j, value in enumerate(held)] + [(highest, -1.0)],
                    -math.inf, 0.0)
        if relaxed:
            entries.append((width - 1, -1.0))
        row(entries, -math.inf, 1.0 - bound.base / bound.most)
    loss = np.zeros(width)
    if relaxed:
        loss[-1] = 1.0
    else:
        flat = np.concatenate(problem.loss)
        loss[:binaries] = flat / (float(np.abs(flat).max()) or 1.0)
    ends = np.full(width, math.inf)
    ends[:binaries] = 1.0
    whole = np.zeros(width)
    whole[:binaries] = 1
    done: Any = milp(loss, integrality=whole, bounds=Bounds(np.zeros(width), ends),
                     constraints=LinearConstraint(csr_matrix((values, (rows, columns)), (len(low), width)), low, high),
                     options={"time_limit": seconds, "mip_rel_gap": 0.0})
    if done.x is None:
        return None, False
    chosen = tuple(int(done.x[starts[i]:starts[i + 1]].argmax()) for i in range(len(sizes)))
    return chosen, done.status == 0


def _descended(problem: Problem) -> Choice:
    """A good choice without a program: all bounds share one price, the lowest that meets them; then single exchanges."""
    def at(price: float) -> Choice:
        return tuple(int(np.argmin(loss + price * sum((b.costs[i] + (b.peaks[i] / len(problem.loss) if b.peaks else 0)) / b.most
                                                      for b in problem.bounds)))
                     for i, loss in enumerate(problem.loss))

    if problem.feasible(cheap := at(0.0)):
        return cheap
    low, high = 0.0, 1e-6 * (max(float(np.abs(loss).max()) for loss in problem.loss) or 1.0)
    while not problem.feasible(at(high)) and high < 1e15:
        low, high = high, 4 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if problem.feasible(at(middle)) else (middle, high)
    return _exchanged(problem, at(high))


def _exchanged(problem: Problem, choice: Choice) -> Choice:
    """Better by exchanging one block at a time, the largest gain first, as long as all bounds hold."""
    now = list(choice)
    if not problem.feasible(now):
        return choice
    moves = sorted(((float(loss[j] - loss[now[i]]), i, j) for i, loss in enumerate(problem.loss) for j in range(len(loss))
                    if loss[j] < loss[now[i]]))
    used = [bound.used(now) for bound in problem.bounds]
    for _, i, j in moves:
        if problem.loss[i][j] >= problem.loss[i][now[i]]:
            continue
        after = [u + float(b.costs[i][j] - b.costs[i][now[i]]) for u, b in zip(used, problem.bounds, strict=True)]
        # Peaks are looked at again only where the plain sums already fit: the sum never grows by less than its costs.
        if all(a <= b.most * (1 + SLACK) for a, b in zip(after, problem.bounds, strict=True) if not b.peaks):
            before, now[i] = now[i], j
            if problem.feasible(now):
                used = [bound.used(now) for bound in problem.bounds] if any(b.peaks for b in problem.bounds) else after
            else:
                now[i] = before
    return tuple(now)
