"""Intervals proved by simulation: a 95% interval covers the truth in about 95% of the worlds drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from thrifty.measure.statistics import pair_log_ratio, paired_drop, ratio_interval


@dataclass(frozen=True)
class Scored:
    numerator: np.ndarray
    denominator: np.ndarray
    cluster: np.ndarray
    statistic: None = None


def process(rng: np.random.Generator, machine: np.ndarray, offset: float, slow: float) -> np.ndarray:
    """[blocks] seconds of one process: its own lognormal offset, autocorrelated noise, slow spells."""
    noise = np.empty(len(machine))
    state = rng.normal(0, 0.014)
    for i in range(len(machine)):
        state = 0.7 * state + rng.normal(0, 0.01)
        noise[i] = state
    spells = np.where(rng.random(len(machine)) < slow, rng.exponential(0.3, len(machine)), 0.0)
    return np.exp(-6 + machine + rng.normal(0, offset) + noise + spells)


@pytest.mark.parametrize(("offset", "slow"), [(0.02, 0.05), (0.01, 0.0), (0.03, 0.15)])
def test_two_thousand_comparisons_of_a_against_a_cover_one(offset: float, slow: float) -> None:
    rng, covered, comparisons = np.random.default_rng(20261123), 0, 2000
    for _ in range(comparisons):
        ratios = []
        for _ in range(5):
            machine = rng.normal(0, 0.05) + np.linspace(0, rng.normal(0, 0.03), 16)  # its load, and a drift
            order = (
                np.array([[0, 3], [1, 2]])[:, None, :] + 4 * np.arange(4)[None, :, None]
            )  # A B B A, four times
            a, b = (process(rng, machine[places.reshape(-1)], offset, slow) for places in order)
            ratios.append(pair_log_ratio(a.tolist(), b.tolist()))
        interval = ratio_interval(ratios)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 1.0 <= interval.high
    assert 0.93 <= covered / comparisons <= 0.97, f"covered {covered} of {comparisons}"


@pytest.mark.parametrize(
    ("n", "lost", "gained", "least"),
    [(1000, 0.01, 0.005, 0.93), (1000, 0.002, 0.001, 0.93), (1000, 0.008, 0.0, 0.93), (100, 0.1, 0.05, 0.93)],
)
def test_drops_of_hits_are_covered(n: int, lost: float, gained: float, least: float) -> None:
    rng, covered, worlds = np.random.default_rng(7), 0, 1000
    ones, index = np.ones(n), np.arange(n)
    for _ in range(worlds):
        u = rng.random(n)
        both = 0.85
        reference = Scored((u < both + lost).astype(float), ones, index)
        trial = Scored(
            ((u < both) | ((u >= both + lost) & (u < both + lost + gained))).astype(float), ones, index
        )
        drop = paired_drop(reference, trial, True)
        assert drop.low is not None
        assert drop.high is not None
        covered += drop.low <= lost - gained <= drop.high
    assert covered / worlds >= least


@pytest.mark.parametrize(("clusters", "size"), [(50, 10), (20, 10), (10, 20), (200, 3)])
def test_drops_of_clustered_unequal_bits_are_covered(clusters: int, size: int) -> None:
    rng, covered, worlds = np.random.default_rng(11), 0, 1000
    for _ in range(worlds):
        sizes = np.maximum(1, rng.lognormal(np.log(size), 0.8, clusters).astype(int))
        index = np.repeat(np.arange(clusters), sizes)
        length = rng.integers(200, 600, len(index)).astype(float)
        bits = rng.normal(2, 0.3, clusters)[index] + rng.normal(0, 0.2, len(index))
        change = 0.01 + rng.normal(0, 0.01, clusters)[index] + rng.normal(0, 0.01, len(index))
        drop = paired_drop(
            Scored(bits * length, length, index), Scored((bits + change) * length, length, index), False
        )
        assert drop.low is not None
        assert drop.high is not None
        covered += drop.low <= 0.01 <= drop.high
    assert 0.92 <= covered / worlds <= 0.98


def test_drops_of_clustered_hits_are_covered() -> None:
    rng, covered, worlds = np.random.default_rng(13), 0, 500
    for _ in range(worlds):
        index = np.repeat(np.arange(50), rng.integers(10, 40, 50))
        weakness = rng.beta(0.4, 9.6, 50)[index]  # some files lose much more than others: 4% on average
        reference = rng.random(len(index)) < 0.8
        trial = reference & (rng.random(len(index)) >= weakness)
        ones = np.ones(len(index))
        drop = paired_drop(
            Scored(reference.astype(float), ones, index), Scored(trial.astype(float), ones, index), True
        )
        assert drop.low is not None
        assert drop.high is not None
        covered += drop.low <= 0.032 <= drop.high
    assert covered / worlds >= 0.92
