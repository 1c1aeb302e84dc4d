"""How many channels each group keeps, so that the whole model loses the wanted share."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from thrifty.errors import NoEffect, ThriftyError
from thrifty.posttraining.pruning.dependency import Dependencies, Term

NEAR = 0.005
"""A share of the model: from here on single widths are no longer moved."""


@final
@dataclass(frozen=True)
class Goal:
    """What is to be removed.

    Args:
        ratio: the share.
        of: "parameters" or "macs".
        round_to: every width is a multiple of it; heads leave one by one.
        scope: "layer" where all lose the same share, "model" where the least important of all go first.
        alike: whether layers of one kind keep the same width, which a configuration can then say.
    """

    ratio: float
    of: str
    round_to: int
    scope: str
    alike: bool


def widths(found: Dependencies, usable: Collection[int], scores: Sequence[np.ndarray], goal: Goal) -> dict[int, int]:
    """{group: channels that stay}, of the groups that lose any.

    Widths fall one multiple at a time in the order of the scope; what is removed grows with them, so the step that comes
    nearest to the ratio is found by bisection. Then single widths move while that comes nearer.

    Raises:
        NoEffect: nothing can be removed, or less than the smallest cut is wanted.
        ThriftyError: so much cannot be removed.
    """
    units = alike(found, usable, goal.alike)
    options = {u: _options(found, unit, goal.round_to) for u, unit in units.items()}
    steps = sorted((_order(found, units[u], scores, previous, kept, goal), u, k) for u, choices in options.items()
                   for k, (previous, kept) in enumerate(itertools.pairwise(choices), start=1))
    if not steps:
        raise NoEffect(f"prune finds nothing to remove: no width that can change is above {goal.round_to}")
    terms = found.macs if goal.of == "macs" else found.parameters
    total = _total(terms, {})
    if not total:
        raise ThriftyError(f"prune(of={goal.of}): the model has no multiplications that can be counted; use of=parameters")

    def kept(levels: Mapping[int, int]) -> dict[int, int]:
        return {i: options[u][level] for u, level in levels.items() if level for i in units[u]}

    def removed(levels: Mapping[int, int]) -> float:
        return 1 - _total(terms, {i: found.groups[i].size - n for i, n in kept(levels).items()}) / total

    def after(count: int) -> dict[int, int]:
        levels: dict[int, int] = {}
        for _, u, k in steps[:count]:
            levels[u] = max(k, levels.get(u, 0))
        return levels

    low, high = 0, len(steps)
    most = removed(after(high))
    if most < goal.ratio and round(most, 3) < goal.ratio:
        raise ThriftyError(f"prune(ratio={goal.ratio:g}): at most {most:.3f} of this model's {goal.of} can be "
                           f"removed (the rest belongs to inputs, outputs, embeddings, to what another structure removes, or to "
                           f"widths of {goal.round_to} or less); choose a ratio up to {np.floor(most * 100) / 100:g}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if removed(after(middle)) <= goal.ratio else (low, middle)
    count = min((low, high), key=lambda k: abs(removed(after(k)) - goal.ratio))
    if count == 0:
        raise NoEffect(f"prune(ratio={goal.ratio:g}) removes nothing: with widths in multiples of {goal.round_to} "
                       f"the smallest cut is {removed(after(1)):.3f} of the {goal.of}; raise ratio or lower round_to")
    levels = dict.fromkeys(units, 0) | after(count)
    while abs(off := removed(levels) - goal.ratio) > NEAR:
        moves = [{**levels, u: level + (1 if off < 0 else -1)} for u, level in levels.items()
                 if 0 <= level + (1 if off < 0 else -1) < len(options[u])]
        best = min(moves, key=lambda m: abs(removed(m) - goal.ratio), default=levels)
        if abs(removed(best) - goal.ratio) >= abs(off) or not any(best.values()):
            break
        levels = best
    return kept(levels)


def share(found: Dependencies, kept: Mapping[int, int], of: str) -> float:
    """The share of parameters or multiply-adds that is removed."""
    terms = found.macs if of == "macs" else found.parameters
    return 1 - _total(terms, {i: found.groups[i].size - n for i, n in kept.items()}) / max(_total(terms, {}), 1e-30)


def role(found: Dependencies, i: int) -> str:
    """The first tensor of a group, its numbers left out: the same for layers of one kind."""
    return re.sub(r"\d+", "*", next(iter(found.groups[i].members)).tensor)


def alike(found: Dependencies, usable: Collection[int], tied: bool) -> dict[int, list[int]]:
    """Groups that keep the same width: of one role and size where these are tied, else each by itself."""
    units: dict[object, list[int]] = defaultdict(list)
    for i in sorted(usable):
        units[(role(found, i), found.groups[i].size) if tied else i].append(i)
    return dict(enumerate(units.values()))


def _options(found: Dependencies, unit: Sequence[int], round_to: int) -> list[int]:
    """Widths that a unit may have, the widest first."""
    group = found.groups[unit[0]]
    step = 1 if group.kind == "heads" else round_to
    return [group.size, *range((group.size - 1) // step * step, 0, -step)]


def _order(found: Dependencies, unit: Sequence[int], scores: Sequence[np.ndarray], previous: int, kept: int,
           goal: Goal) -> float:
    """When a step comes: by the share that has left, or by the mean importance of those that leave, a group's mean being 1."""
    size = found.groups[unit[0]].size
    if goal.scope == "layer":
        return 1 - kept / size
    falling = [np.sort(scores[i])[::-1] / max(scores[i].mean(), 1e-30) for i in unit]
    return float(np.mean([one[kept:previous].mean() for one in falling]))


def _total(terms: Sequence[Term], removed: Mapping[int, int]) -> float:
    return sum(term.at(removed) for term in terms)
