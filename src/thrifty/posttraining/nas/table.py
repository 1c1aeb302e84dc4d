"""The table of a search: what every alternative of every block costs and loses, and what whole models taught beyond it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from thrifty.posttraining.nas.limits import LEAST, Limit
from thrifty.posttraining.nas.solver import Bound, Problem, frontier

RIDGE = 1e-3
"""Of the correction: a kind of alternative on which few models depend is corrected little."""
LEAST_SCALE = 0.1
"""A correction leaves at least this share of what the table says."""
BATCH = 32
"""Requests of one call where throughput is limited."""

Names = tuple[str, ...]
"""The alternative's name, for each block."""


@final
@dataclass(frozen=True)
class Row:
    """An alternative of a block, or a whole model.

    Args:
        name: of the alternative; of a whole model, for whom it stands.
        seconds: of one request.
        bytes: of its tensors.
        peak: bytes of the largest layer's inputs and outputs.
        error: of the model's outputs, relative; see `Outputs.error`.
        drop: of quality on validation; None where it was not scored.
        batch: seconds of `BATCH` requests in one call; None where throughput does not matter.
    """

    name: str
    seconds: float
    bytes: float
    peak: float
    error: float = 0.0
    drop: float | None = 0.0
    batch: float | None = None

    def of(self, what: str) -> float:
        """The figure that a limit is of; throughput as the seconds of a batch."""
        match what:
            case "latency":
                return self.seconds
            case "bytes":
                return self.bytes
            case "memory":
                return self.bytes + self.peak
            case "throughput":
                return self.batch or 0.0
        return self.drop or 0.0

    def shown(self, what: str) -> float:
        """As `of`, throughput in requests per second."""
        return BATCH / self.batch if what == "throughput" and self.batch else self.of(what)


@final
@dataclass(frozen=True)
class Whole:
    """A model that was chosen, built and measured."""

    names: Names
    row: Row


@final
@dataclass(frozen=True)
class Point:
    """A choice on a frontier: the alternative of each block, what it uses and what it loses, as predicted."""

    names: Names
    used: float
    loss: float


@final
@dataclass(frozen=True)
class Table:
    """Args:
        blocks: {block: its alternatives, the block as it is first}.
        own: the model as it is.
        wholes: other models that were measured whole.
        refused: {block: {alternative: why it cannot be}}.
    """

    blocks: Mapping[str, tuple[Row, ...]]
    own: Row
    wholes: tuple[Whole, ...] = ()
    refused: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    # -- losses ---------------------------------------------------------------------------------------------------

    def scales(self) -> tuple[float, float]:
        """Median error and median drop of the alternatives that have any: what each is counted in."""
        rows = [row for rows in self.blocks.values() for row in rows[1:]]
        errors = [row.error for row in rows if row.error > 0]
        drops = [row.drop for row in rows if row.drop is not None and row.drop > 0]
        return (statistics.median(errors) if errors else 1.0), (statistics.median(drops) if drops else 1.0)

    def loss(self, row: Row) -> float:
        """Both measures, each in its own median: one alone hides collapses that the other shows."""
        error, drop = self.scales()
        return row.error / error + (0.0 if row.drop is None else max(row.drop, 0.0) / drop)

    # -- what a choice is taken to be ---------------------------------------------------------------------------------

    def additive(self, what: str) -> list[np.ndarray]:
        """[alternatives] a block: what each adds to the model as it is; of "loss" and "drop" too."""
        if what == "loss":
            return [np.array([self.loss(row) for row in rows]) for rows in self.blocks.values()]
        if what == "memory":  # the peak is no sum, and is bounded apart
            return self.additive("bytes")
        return [np.array([row.of(what) - rows[0].of(what) for row in rows]) for rows in self.blocks.values()]

    def base(self, what: str) -> float:
        return 0.0 if what in ("loss", "drop") else self.own.of("bytes" if what == "memory" else what)

    def figure(self, row: Row, what: str) -> float:
        return self.loss(row) if what == "loss" else row.of(what)

    def corrected(self, what: str) -> list[np.ndarray]:
        """`additive`, each kind of alternative scaled by one factor so that the whole models come out as they were measured:

            minimize  sum_m (r_m - sum_k s_k d_mk)^2 / scale^2 + ridge sum_k s_k^2

        with r_m what the table missed of model m and d_mk what its alternatives of kind k add.
        """
        found = self.additive(what)
        if not self.wholes or what in ("bytes", "memory"):
            return found
        kinds = list(dict.fromkeys(row.name for rows in self.blocks.values() for row in rows[1:]))
        if not kinds:
            return found
        parts = np.zeros((len(self.wholes), len(kinds)))
        missed = np.zeros(len(self.wholes))
        for m, whole in enumerate(self.wholes):
            for i, choice in enumerate(self.choice(whole.names)):
                if choice:
                    parts[m, kinds.index(whole.names[i])] += found[i][choice]
            missed[m] = self.figure(whole.row, what) - self.base(what) - parts[m].sum()
        scale = self.base(what) or float(np.abs(parts).sum(1).max()) or 1.0
        parts, missed = parts / scale, missed / scale
        factors = 1 + np.linalg.solve(parts.T @ parts + RIDGE * np.eye(len(kinds)), parts.T @ missed)
        factors = np.maximum(factors, LEAST_SCALE)
        return [np.array([0.0, *(values[j] * factors[kinds.index(rows[j].name)] for j in range(1, len(rows)))])
                for values, rows in zip(found, self.blocks.values(), strict=True)]

    def choice(self, names: Names) -> tuple[int, ...]:
        """Positions of the named alternatives."""
        return tuple([row.name for row in rows].index(name) for name, rows in zip(names, self.blocks.values(), strict=True))

    def names(self, choice: Sequence[int]) -> Names:
        return tuple(rows[i].name for i, rows in zip(choice, self.blocks.values(), strict=True))

    def predicted(self, names: Names, what: str, corrected: bool = False) -> float:
        """What the table says of a whole model."""
        values = self.corrected(what) if corrected else self.additive(what)
        return self.base(what) + sum(float(column[i]) for column, i in zip(values, self.choice(names), strict=True))

    def errors(self, what: str = "latency") -> list[float]:
        """|predicted / measured - 1| of every whole model, by the table alone."""
        return [abs(self.predicted(whole.names, what) / measured - 1) for whole in self.wholes
                if (measured := whole.row.of(what)) > 0]

    # -- the program ----------------------------------------------------------------------------------------------

    def problem(self, limits: Sequence[Limit], minimize: str, factors: Mapping[str, float]) -> Problem:
        """The program of a choice.

        Args:
            limits: to keep to.
            minimize: "loss", "latency" or "bytes".
            factors: {what is limited: how many times its limit to allow}, from models that were measured.
        """
        bounds = []
        for limit in limits:
            most = _most(limit, self.own) * factors.get(limit.what, 1.0)
            peaks = tuple(np.array([row.peak for row in rows]) for rows in self.blocks.values()) if limit.what == "memory" else ()
            bounds.append(Bound(limit.what, most, tuple(self.corrected(limit.what)), self.base(limit.what), peaks))
        values = self.corrected(minimize)
        # Of choices that are equal otherwise the quicker one; of those that are quick, the better.
        second = self.additive("latency" if minimize != "latency" else "loss")
        size = 1e-6 * _largest(values) / _largest(second)
        return Problem(tuple(v + size * s for v, s in zip(values, second, strict=True)), tuple(bounds))

    def frontier(self, what: str = "latency", points: int = 12, seconds: float = 0.3) -> list[Point]:
        """The choices of least loss under ever tighter limits on one thing, as the corrected table has them, the loosest first.

        Args:
            what: "latency", "bytes", "memory" or "throughput" (seconds of a batch).
            points: limits that are tried.
            seconds: for each.
        """
        found = frontier(self.problem((Limit(what, 1.0, relative=True),), "loss", {}), what, points, seconds)
        return [Point(names, self.predicted(names, what, corrected=True), self.predicted(names, "loss", corrected=True))
                for names in (self.names(one.choice) for one in found)]

    # -- JSON -----------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        return {"blocks": {name: [dataclasses.asdict(row) for row in rows] for name, rows in self.blocks.items()},
                "own": dataclasses.asdict(self.own), "refused": {name: dict(why) for name, why in self.refused.items()},
                "wholes": [{"names": list(whole.names), **dataclasses.asdict(whole.row)} for whole in self.wholes]}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Table:
        wholes = tuple(Whole(tuple(one["names"]), Row(**{k: v for k, v in one.items() if k != "names"}))
                       for one in values["wholes"])
        return Table({name: tuple(Row(**row) for row in rows) for name, rows in values["blocks"].items()}, Row(**values["own"]),
                     wholes, values["refused"])


def _largest(columns: Sequence[np.ndarray]) -> float:
    return max(1e-30, *(float(np.abs(column).max()) for column in columns))


def _most(limit: Limit, own: Row) -> float:
    """The limit on what `Row.of` gives."""
    if limit.what in LEAST:
        return BATCH / limit.absolute(own.shown(limit.what))
    return max(limit.absolute(own.of(limit.what)), 1e-12)
