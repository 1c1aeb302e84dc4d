"""The budget of ranks: never exceeded, and near the best that trying everything finds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.posttraining.ranks import Choices, allocate


@st.composite
def layers(draw: st.DrawFn) -> list[Choices]:
    """Layers as factorizations are: what is kept rises ever more slowly, the last option is the layer itself."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        size, fall = draw(st.integers(1, 5)), draw(st.floats(0.2, 3))
        energy = np.cumsum(1 / np.arange(1, size + 2) ** fall)
        step = draw(st.integers(1, 50))
        costs = step * np.arange(1, size + 2)
        found.append(Choices(costs, energy / energy[-1]))
    return found


@settings(max_examples=60, deadline=None)
@given(layers(), st.floats(0, 1))
def test_the_choice_is_near_the_best_of_all(given_layers: list[Choices], share: float) -> None:
    least, most = (sum(int(f(c.parameters)) for c in given_layers) for f in (np.min, np.max))
    budget = int(least + share * (most - least))
    chosen = allocate(given_layers, budget)

    def total(options: tuple[int, ...]) -> tuple[int, float]:
        return (sum(int(c.parameters[i]) for c, i in zip(given_layers, options, strict=True)),
                sum(float(c.kept[i]) for c, i in zip(given_layers, options, strict=True)))

    spent, kept = total(tuple(chosen))
    assert spent <= budget
    best = max(k for s, k in map(total, itertools.product(*(range(len(c.kept)) for c in given_layers))) if s <= budget)
    # Greedy falls short of the best by at most one step of one layer.
    assert kept >= best - max(float(np.diff(c.kept).max()) for c in given_layers) - 1e-9
    if budget == most:
        assert kept == pytest.approx(len(given_layers))


def test_where_energy_is_concentrated_ranks_are_low() -> None:
    costs = np.arange(1, 9)
    steep, flat = Choices(costs, np.array([0.99] + [0.991 + 0.001 * i for i in range(7)])), Choices(costs, costs / 8)
    assert allocate([steep, flat], 9) == [0, 7]


def test_an_impossible_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="above 3"):
        allocate([Choices(np.array([4, 8]), np.array([0.5, 1.0]))], 3)
