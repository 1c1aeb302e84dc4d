"""What tuning found: all values that were tried, what the best attain over seeds, which recipe to use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from rich.table import Column, Table

from thrifty.measure.statistics import Interval
from thrifty.report.console import pairs, show, table
from thrifty.report.terminal import ledger
from thrifty.report.words import NOT_MEASURED, scaled, seconds, significant, times
from thrifty.units import fixed

if TYPE_CHECKING:
    from thrifty.search.attain import Attained
    from thrifty.search.tune import Tuned, Tuning

UNTUNED = "not bracketed, so not tuned"


def print_tuned(found: Tuned, file: TextIO | None = None) -> None:
    """The tables of a tuning, on stdout where no file is given."""
    use = pairs(_conclusion(found), title="Use")
    show(_tried(found), _ends(found), _times(found), use, ledger(found.spent), file=file)


def _tried(found: Tuned) -> Table:
    """Every value in order, the best between its neighbors."""
    numbers = list(dict.fromkeys(name for one in found.optimizers for name in one.tried[0].values))
    rows = [(one.optimizer, *(f"{tried.values[name]:g}" if name in tried.values else "" for name in numbers),
             "diverged" if tried.quality is None else fixed(tried.quality),
             _mark(one) if tried.recipe == one.recipe else "")
            for one in found.optimizers for tried in sorted(one.tried, key=lambda tried: tuple(tried.values.values()))]
    names = [_right(name) for name in (*numbers, found.measure)]
    return table("Tried, with one seed, on validation", ["optimizer", *names, ""], rows)


def _mark(one: Tuning) -> str:
    """What is said of the best value."""
    return f"{', '.join(one.edges)}: {UNTUNED}" if one.edges else "best"


def _ends(found: Tuned) -> Table:
    """Quality at the end over seeds, the reference first."""
    rows = [(name, _interval(final.quality, fixed, "diverged"),
             _interval(final.change, fixed), recipe) for name, final, recipe in _finals(found)]
    title = f"At the end, on validation, seeds {', '.join(map(str, found.baseline.seeds))}"
    return table(title, ["optimizer", _right(f"{found.measure} [low, high]"), _right("better by"), "recipe"], rows)


def _times(found: Tuned) -> Table:
    """How soon the reference's quality is attained."""
    rows = [(name, f"{final.attained} of {len(final.seeds)}", _interval(final.seconds, seconds),
             _interval(final.steps, significant), _interval(final.flops, lambda value: scaled(value, "FLOP")),
             *(("1", "") if final is found.baseline else _speed(final))) for name, final, _ in _finals(found)]
    title = f"Time to the reference's {found.measure} of {fixed(found.target)}, to within {found.every} steps"
    figures = map(_right, ("attained by", "time", "steps", "FLOPs", "speedup [low, high]"))
    return table(title, ["optimizer", *figures, "verdict"], rows)


def _speed(final: Attained) -> tuple[str, str]:
    return _interval(final.speedup, lambda value: f"{times(value)}x"), final.verdict


def _finals(found: Tuned) -> list[tuple[str, Attained, str]]:
    tuned = [(one.optimizer, one.final, one.recipe) for one in found.optimizers if one.final is not None]
    return [("reference", found.baseline, found.reference), *tuned]


def _interval(found: Interval | None, word: Callable[[float], str], absent: str = NOT_MEASURED) -> str:
    if found is None:
        return absent
    if found.low is None or found.high is None:
        return f"{word(found.value)} [no interval]"
    return f"{word(found.value)} [{word(found.low)}, {word(found.high)}]"


def _conclusion(found: Tuned) -> list[tuple[str, object]]:
    if found.use == found.reference:
        return [("recipe", found.use), ("why", "no optimizer reaches the reference's quality significantly faster")]
    why = "it reaches the reference's quality first, significantly faster than the reference"
    return [("recipe", found.use), ("why", why)]


def _right(name: str) -> Column:
    return Column(header=name, justify="right")
