"""What a sink is: one run a trial, its training curves, and in the end its figures."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from thrifty.studies.trial import Trial

LEFT_OUT = ("effects", "environment", "ledger", "target", "created")
"""Of a trial's JSON: what is no figure of its own."""


class Sink(ABC):
    """One place where trials are logged.

    Its methods are called from one thread, a run at a time, and never while anything is timed. Whatever they raise ends the
    sink, never the study.

    Args:
        where: a directory of the sink's own, made where there is none.
        project: what the runs have in common: the workload's name.
    """

    name: ClassVar[str]
    """As ``--log`` has it."""
    extra: ClassVar[str]
    """That installs its library."""

    def __init__(self, where: Path, project: str) -> None:
        self.where, self.project = where, project
        where.mkdir(parents=True, exist_ok=True)

    @staticmethod
    @abstractmethod
    def check() -> None:
        """Import the library, without talk of it to anyone.

        Raises:
            ImportError: it is not installed.
        """

    @abstractmethod
    def begin(self, run: str, recipe: str) -> None:
        """A run begins, or one of that id goes on."""

    @abstractmethod
    def step(self, figures: Mapping[str, float], step: int) -> None:
        """Figures of the run at a training step."""

    @abstractmethod
    def end(self, settings: Mapping[str, str], figures: Mapping[str, float], failed: bool) -> None:
        """The run ends with its figures; both are empty where no trial came of it."""

    def close(self) -> None:
        """No more runs."""


def figures_of(trial: Trial) -> dict[str, float]:
    """Every number of a trial by its path in the JSON, with the ends of its interval; what was not measured is left out.

    >>> from thrifty.studies.trial import Drop, QualityFigure
    >>> quality = QualityFigure("accuracy", True, 0.97, 0.98, Drop(0.01, 0.0, 0.02))
    >>> figures_of(Trial("x", "w", "h", "", 3, {}, "done", quality=quality))["quality.drop.high"]
    0.02
    """
    found = {path: float(value) for path, value in _leaves(_own(trial))
             if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)}
    return {**found, "cost.seconds": trial.ledger.seconds} | (
        {} if trial.ledger.dollars is None else {"cost.dollars": trial.ledger.dollars})


def settings_of(trial: Trial) -> dict[str, str]:
    """What a trial was and where, as texts by their paths in the JSON.

    >>> settings_of(Trial("x", "w", "h", "train()", 3, {"device": "cpu"}, "failed", "nan"))["error"]
    'nan'
    """
    texts = {path: value for path, value in _leaves(_own(trial)) if isinstance(value, str)}
    machine = {f"{name}.{path}": str(value) for name in ("target", "environment")
               for path, value in _leaves(getattr(trial, name)) if value is not None}
    return texts | machine


def _own(trial: Trial) -> dict[str, Any]:
    return {key: value for key, value in trial.to_json().items() if key not in LEFT_OUT}


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [leaf for key, part in value.items() for leaf in _leaves(part, f"{path}.{key}" if path else str(key))]
    return [] if isinstance(value, list | tuple) else [(path, value)]


def plain_name(text: str) -> str:
    """A name that every library takes.

    >>> plain_name("my model: small")
    'my-model-small'
    """
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "workload"
