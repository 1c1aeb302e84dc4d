"""What trainings will take on each rank, as a terminal shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from rich.table import Column, Table

from thrifty.report.console import pairs, show, table
from thrifty.report.words import scaled, seconds

if TYPE_CHECKING:
    from thrifty.search.planner import Planned


def print_plans(found: Sequence[Planned], file: TextIO | None = None) -> None:
    """A table for each training, on stdout where no file is given."""
    for one in found:
        facts = {"ranks": f"{one.ranks}, {one.examples} examples of each batch",
                 "compute per step": f"{seconds(one.seconds)}, communication excluded", "memory per rank": scaled(one.room, "B"),
                 "advice": one.advice}
        show(_stages(one), pairs(list(facts.items()), title="Plan"), file=file)


def _stages(one: Planned) -> Table:
    names = ["parameters", "gradients", "state", "temporarily whole", "peak"]
    values = [[held.parameters, held.gradients, held.state, held.passing, stage.peak]
              for stage in one.stages for held in (stage.held,)]
    if any(stage.held.host for stage in one.stages):
        names.append("in host memory")
        values = [[*row, stage.held.host] for row, stage in zip(values, one.stages, strict=True)]
    rows = [(f"{stage.name} *" if stage.name == one.chosen else stage.name, *(scaled(value, "B") for value in row),
             "fits" if stage.fits else "does not fit") for row, stage in zip(values, one.stages, strict=True)]
    return table(f"{one.phase}, bytes per rank", ["stage", *(Column(name, justify="right") for name in names), ""], rows)
