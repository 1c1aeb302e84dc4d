"""From a table to a model: solve, measure what was chosen, correct the table, solve again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from thrifty.errors import ThriftyError
from thrifty.posttraining.nas.alternatives import AS_IT_IS
from thrifty.posttraining.nas.limits import Limit
from thrifty.posttraining.nas.solver import solve
from thrifty.posttraining.nas.table import Names, Row, Table, Whole

TOLERANCE = 0.03
"""Share by which a measured model may exceed a limit where none keeps to it: what a timing's noise is."""
GAIN = 0.02
"""Share that an alternative must save to count as a gain: less is a timing's noise."""
CONSTANT = 0.9
"""Error of the outputs above which a model is reported as ruined: a model that always answers their mean has an error of 1."""


@final
@dataclass(frozen=True)
class Chosen:
    """What a search ends with.

    Args:
        table: with all models that were measured.
        names: the alternative of each block.
        whole: that model, measured.
        unchanged: why the model stays as it is; "" where it does not.
    """

    table: Table
    names: Names
    whole: Whole
    unchanged: str = ""


class OutOfReach(ThriftyError):
    """No choice keeps to the limits; names the nearest."""


def uniform(table: Table) -> list[Names]:
    """Every alternative in all blocks that have it: the recipes that treat all blocks alike."""
    kinds = dict.fromkeys(row.name for rows in table.blocks.values() for row in rows[1:])
    found = [tuple(kind if kind in {row.name for row in rows} else AS_IT_IS for rows in table.blocks.values()) for kind in kinds]
    return [names for names in dict.fromkeys(found) if any(name != AS_IT_IS for name in names)]


def choose(table: Table, limits: Sequence[Limit], minimize: str, rounds: int, measure: Callable[[Names], Whole | None],
           start: Sequence[Names] = ()) -> Chosen:
    """The best measured model within the limits.

    Each round solves the program with the table corrected by all models measured so far, the limits moved by what the last
    choice missed them by, and measures what is chosen; it ends when nothing new is.

    Args:
        table: of alternatives.
        limits: to keep to.
        minimize: "loss", "latency" or "bytes".
        rounds: at most.
        measure: builds and measures a choice; None where that cannot be served.
        start: choices to measure first.

    Raises:
        OutOfReach: none is within the limits.
    """
    own = Whole(tuple(AS_IT_IS for _ in table.blocks), table.own)
    if not table.blocks or all(len(rows) == 1 for rows in table.blocks.values()):
        why = next((f"{block}: {alternative}: {reason}" for block, found in table.refused.items()
                    for alternative, reason in found.items()), "")
        return Chosen(table, own.names, own, "no block has an alternative" + (f"; {why}" if why else ""))
    if why := _no_gain(table, limits, minimize):
        return Chosen(table, own.names, own, why)
    wholes = {names: whole for names in start if (whole := measure(names)) is not None}
    table = dataclasses.replace(table, wholes=tuple(wholes.values()))
    factors: dict[str, float] = {}
    for _ in range(max(1, rounds)):
        names = table.names(solve(table.problem(limits, minimize, factors)).choice)
        if names == own.names or (names in wholes and factors):
            break
        whole = wholes.get(names) or measure(names)
        if whole is None:  # a backend that takes the blocks one by one may refuse them together: the next choice is another
            factors = {limit.what: factors.get(limit.what, 1.0) * (1 - TOLERANCE) for limit in limits}
            continue
        wholes[names] = whole
        table = dataclasses.replace(table, wholes=tuple(wholes.values()))
        before, factors = factors, {limit.what: _factor(table, whole, limit.what) for limit in limits}
        if factors == before:
            break
    return _best(table, limits, minimize, own)


def _factor(table: Table, whole: Whole, what: str) -> float:
    """How many times its measured value the corrected table gives a model."""
    measured = whole.row.of(what)
    if what in ("bytes", "memory", "drop") or measured <= 0:
        return 1.0
    return min(2.0, max(0.5, table.predicted(whole.names, what, corrected=True) / measured))


def _best(table: Table, limits: Sequence[Limit], minimize: str, own: Whole) -> Chosen:
    everything = (own, *table.wholes)
    best = within(everything, limits, table.own, lambda row: table.figure(row, minimize))
    if best is None:
        raise out_of_reach(everything, limits, table.own, lambda whole: ", ".join(
            f"{block} {name}" for block, name in zip(table.blocks, whole.names, strict=True)))
    why = "" if best is not own else "the model as it is meets the limits, and nothing better does"
    return Chosen(table, best.names, best, why)


def within(everything: Sequence[Whole], limits: Sequence[Limit], own: Row, figure: Callable[[Row], float]) -> Whole | None:
    """The measured model with the least figure that keeps to the limits, the quickest where several are equal.

    Models within `TOLERANCE` of the limits are taken where none keeps to them; None where there is none of these either.
    """
    for tolerance in (0.0, TOLERANCE):
        if kept := [whole for whole in everything if keeps(whole.row, limits, own, tolerance)]:
            return min(kept, key=lambda whole: (figure(whole.row), whole.row.seconds))
    return None


def out_of_reach(everything: Sequence[Whole], limits: Sequence[Limit], own: Row, told: Callable[[Whole], str]) -> OutOfReach:
    """The error that names the model nearest to the limits.

    Args:
        everything: that was measured.
        limits: that none keeps to.
        own: the model as it is.
        told: a model in words.
    """
    nearest = min(everything, key=lambda whole: max(over(whole.row, limit, own) for limit in limits))
    says = ", ".join(f"{limit.what} {shown(limit.what, nearest.row.shown(limit.what))} (asked: "
                     f"{shown(limit.what, limit.absolute(own.shown(limit.what)))}, as it is: "
                     f"{shown(limit.what, own.shown(limit.what))})" for limit in limits)
    return OutOfReach(f"no choice among the alternatives meets the limits; the nearest has {says}: {told(nearest)}; ask for "
                      "less, or give more alternatives")


def keeps(row: Row, limits: Sequence[Limit], own: Row, tolerance: float = 0.0) -> bool:
    return all(limit.met(row.shown(limit.what), own.shown(limit.what), tolerance) for limit in limits)


def over(row: Row, limit: Limit, own: Row) -> float:
    """Share by which a limit is missed; 0 or less where it is met."""
    used, most = row.shown(limit.what), max(limit.absolute(own.shown(limit.what)), 1e-12)
    return most / max(used, 1e-12) - 1 if limit.what == "throughput" else used / most - 1


def _no_gain(table: Table, limits: Sequence[Limit], minimize: str) -> str:
    """Why the model stays as it is: no alternative of any block saves any of what is asked for."""
    for what in wanted(table.own, limits, minimize):
        saved = sum(max(0.0, -float(column.min())) for column in table.additive(what))
        if saved <= GAIN * table.base(what):
            return (f"no measured gain: no alternative of any block saves a significant amount of {what} (together "
                    f"{100 * saved / max(table.base(what), 1e-30):.1f}% of {shown(what, table.own.shown(what))})")
    return ""


def wanted(own: Row, limits: Sequence[Limit], minimize: str) -> list[str]:
    """What has to become less for the search to have been worth it: what the model as it is exceeds, and what is minimized."""
    found = [limit.what for limit in limits if not limit.met(own.shown(limit.what), own.shown(limit.what))]
    return [what for what in (*found, *([minimize] if minimize != "loss" else [])) if what != "drop"]


def shown(what: str, value: float) -> str:
    """A figure with its unit."""
    if what == "latency":
        return f"{1e3 * value:.3g} ms"
    if what in ("bytes", "memory"):
        return f"{value / 1e6:.3g} MB"
    return f"{value:.4g}/s" if what == "throughput" else f"{value:.4g}"


def note(chosen: Chosen) -> str:
    """What was chosen and how far the predictor was off, in a few words; said loudly: more than 10%, and a ruined model."""
    table, whole = chosen.table, chosen.whole
    if chosen.unchanged:
        return f"unchanged: {chosen.unchanged}"
    off = abs(table.predicted(whole.names, "latency") / whole.row.seconds - 1) if whole.row.seconds else math.nan
    errors = sorted(table.errors())
    middle = errors[len(errors) // 2] if errors else math.nan
    loud = "; the latency table errs by more than 10% on this result: trust the measured figure" if off > 0.1 else ""
    if whole.row.error >= CONSTANT:
        loud += "; its outputs hardly depend on its inputs: add a limit on quality such as drop<=1pt, or loosen the other limits"
    return (f"chosen: {', '.join(f'{b} {n}' for b, n in zip(table.blocks, whole.names, strict=True))}; "
            f"{shown('latency', whole.row.seconds)} for {shown('latency', table.own.seconds)}; predicted with an error of "
            f"{100 * off:.1f}% (median over {len(errors)} models {100 * middle:.1f}%){loud}")
