"""What orders of methods were worth: a row per order, and why others cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from rich.table import Column

from thrifty.report.console import pairs, show, table
from thrifty.report.words import NOT_MEASURED, drop, ratio, seconds
from thrifty.units import fixed

if TYPE_CHECKING:
    from thrifty.search.orders import Ordered
    from thrifty.studies.trial import Trial


def print_orders(found: Ordered, file: TextIO | None = None) -> None:
    """The orders, the best quality first, on stdout where no file is given."""
    figures = [Column(name, justify="right") for name in ("quality", "drop", "speedup", "training")]
    rows = [(order, *_figures(trial)) for order, trial in found.trials.items()]
    parts = [table("Orders, by quality on validation", ["order", *figures], rows)]
    if found.refused:
        parts.append(pairs(found.refused.items(), title="Orders that are not possible"))
    show(*parts, file=file)


def _figures(trial: Trial) -> tuple[str, str, str, str]:
    if trial.quality is None:
        return (f"failed: {trial.error}", "", "", "")
    return (fixed(trial.quality.value), drop(trial.quality),
            NOT_MEASURED if trial.inference is None else ratio(trial.inference.speedup),
            NOT_MEASURED if trial.training is None else seconds(trial.training.seconds))
