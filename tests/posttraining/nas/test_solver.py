"""The program: what enumeration finds, in time, and never worse than a genetic search."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.errors import ThriftyError
from thrifty.posttraining.nas.solver import Bound, Problem, frontier, solve


def drawn(seed: int, blocks: int, alternatives: int, tightness: float = 0.5, bounds: int = 2, peak: bool = True) -> Problem:
    """Blocks as they are measured: what costs less loses more, with exceptions; a few bounds, the last with a peak."""
    draw = np.random.default_rng(seed)
    loss = tuple(np.concatenate([[0.0], draw.exponential(1.0, alternatives - 1)]) for _ in range(blocks))
    found = []
    for k in range(bounds):
        costs = tuple(draw.uniform(0.2, 1.0, alternatives) / (1 + values) + 0.1 * draw.random() for values in loss)
        peaks = tuple(draw.uniform(0, 3, alternatives) for _ in loss) if peak and k == bounds - 1 else ()
        base = float(draw.random())
        least, most = (base + sum(float(f(c)) for c in costs) for f in (np.min, np.max))
        found.append(Bound(f"cost {k}", least + tightness * (most - least) + (1.5 if peaks else 0), costs, base, peaks))
    return Problem(loss, tuple(found))


def enumerated(problem: Problem) -> tuple[float, float]:
    """(least loss within the bounds or infinity, least excess), by trying everything."""
    every = list(itertools.product(*(range(len(values)) for values in problem.loss)))
    return (min((problem.total(c) for c in every if problem.feasible(c)), default=np.inf), min(map(problem.excess, every)))


def genetic(problem: Problem, seconds: float, seed: int) -> float:
    """The least loss within the bounds that a genetic search finds: tournaments, uniform crossover, mutation, a penalty."""
    draw, sizes = np.random.default_rng(seed), np.array([len(values) for values in problem.loss])
    width, layers = int(sizes.max()), np.arange(len(sizes))

    def padded(values: tuple[np.ndarray, ...]) -> np.ndarray:
        return np.stack([np.pad(v, (0, width - len(v)), constant_values=1e9) for v in values])

    loss = padded(problem.loss)
    costs = [(padded(b.costs), padded(b.peaks) if b.peaks else None, b) for b in problem.bounds]

    def judged(people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        over = np.zeros(len(people))
        for table, peaks, bound in costs:
            used = bound.base + table[layers, people].sum(1) + (peaks[layers, people].max(1) if peaks is not None else 0)
            over = np.maximum(over, used / bound.most - 1)
        return loss[layers, people].sum(1), over

    people = draw.integers(0, sizes, (128, len(sizes)))
    people[0] = [int(np.argmin(sum(b.costs[i] / b.most for b in problem.bounds))) for i in layers]
    best, ends = np.inf, time.perf_counter() + seconds
    while time.perf_counter() < ends:
        total, over = judged(people)
        if (over <= 0).any():
            best = min(best, float(total[over <= 0].min()))
        fitness = total + 1e3 * np.maximum(over, 0)
        elite = people[np.argsort(fitness)[:16]]
        pairs = draw.integers(0, len(people), (2, 2, 112))
        parents = [people[np.where(fitness[a] < fitness[b], a, b)] for a, b in pairs]
        children = np.where(draw.random((112, len(sizes))) < 0.5, *parents)
        changed = draw.random(children.shape) < 1.5 / len(sizes)
        people = np.concatenate([elite, np.where(changed, draw.integers(0, sizes, children.shape), children)])
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.floats(-0.2, 1), st.integers(0, 3), st.booleans())
def test_it_finds_what_enumeration_finds(seed, blocks, alternatives, tightness, bounds, peak):
    problem = drawn(seed, blocks, alternatives, tightness, bounds, peak)
    least, excess = enumerated(problem)
    found = solve(problem)
    assert found.feasible == (least < np.inf)
    if found.feasible:
        assert problem.feasible(found.choice)
        assert found.loss == pytest.approx(problem.total(found.choice)) and found.loss == pytest.approx(least, abs=1e-6)
    else:
        assert problem.excess(found.choice) == pytest.approx(excess, abs=1e-6)


def test_200_blocks_of_12_alternatives_take_two_seconds_and_beat_the_descent_alone():
    problem = drawn(3, 200, 12)
    found = solve(problem)
    assert found.feasible and problem.feasible(found.choice)
    assert found.loss <= genetic(problem, 1.0, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("blocks", "alternatives"), [(20, 8), (200, 12)])
def test_it_is_never_worse_than_a_genetic_search_of_ten_times_its_time(seed, blocks, alternatives):
    problem = drawn(seed, blocks, alternatives)
    began = time.perf_counter()
    found = solve(problem)
    took = time.perf_counter() - began
    assert found.loss <= genetic(problem, 10 * took, seed) + 1e-9


def test_a_frontier_falls_and_every_point_is_the_best_under_its_own_cost():
    problem = drawn(5, 4, 4, bounds=1, peak=False)
    (bound,) = problem.bounds
    found = frontier(problem, "cost 0")
    used, lost = [bound.used(one.choice) for one in found], [one.loss for one in found]
    assert len(found) > 3 and used == sorted(used, reverse=True) and lost == sorted(lost)
    every = list(itertools.product(*(range(len(values)) for values in problem.loss)))
    for one in found:
        assert one.loss == pytest.approx(min(problem.total(c) for c in every if bound.used(c) <= bound.used(one.choice) + 1e-9))


def test_what_cannot_be_chosen_among_is_refused():
    with pytest.raises(ThriftyError, match="nothing to choose"):
        Problem(())
    with pytest.raises(ThriftyError, match="latency is bounded by -1"):
        Problem((np.zeros(2),), (Bound("latency", -1.0, (np.zeros(2),)),))
    with pytest.raises(ThriftyError, match="different blocks or alternatives"):
        Problem((np.zeros(2),), (Bound("latency", 1.0, (np.zeros(3),)),))
    with pytest.raises(ThriftyError, match="NaN or infinite"):
        solve(Problem((np.array([0.0, np.nan]),)))
