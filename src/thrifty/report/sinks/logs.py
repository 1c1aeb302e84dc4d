"""The events of a study, told to sinks: a sink that fails says so once, and the study goes on."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import final

from thrifty.errors import MissingExtra, ThriftyError, in_one_line
from thrifty.report.sinks.sink import Sink, figures_of, plain_name, settings_of
from thrifty.studies.events import Event, Listener, PhaseBegan, RecipeBegan, Stepped, TrialEnded
from thrifty.studies.trial import Trial

SINKS = {"mlflow": "MlflowSink", "tensorboard": "TensorboardSink", "trackio": "TrackioSink", "wandb": "WandbSink"}
"""What ``--log`` takes -> the class, in the module of that name."""


@contextlib.contextmanager
def log_to(*places: str, study: str | os.PathLike[str], workload: str,
           say: Callable[[str], None] | None = None) -> Iterator[Listener]:
    """A listener that logs trials and training curves, offline, until the context ends.

    Args:
        places: each "mlflow", "tensorboard", "trackio" or "wandb", with ":DIR" where its files do not belong in the study's
            directory.
        study: the study's directory.
        workload: the workload's name: that of the experiment, or project.
        say: told, once, that a sink failed; stderr where None.

    Raises:
        ThriftyError: there is no such sink, or its library is not installed.

    >>> import tempfile
    >>> with log_to(study=tempfile.mkdtemp(), workload="digits") as listener:
    ...     listener(PhaseBegan("train()"))
    """
    logs = Logs(say or (lambda text: print(f"thrifty: {text}", file=sys.stderr)))
    asked = [_read(place, Path(study)) for place in places]
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for results; libraries greet on it
        for kind, where in asked:
            logs.add(kind, where, plain_name(workload))
    try:
        yield logs.hear
    finally:
        logs.close()


def _read(place: str, study: Path) -> tuple[type[Sink], Path]:
    name, _, where = place.partition(":")
    if name not in SINKS:
        raise ThriftyError(f"there is no sink {name!r} to log to; known: {', '.join(SINKS)}, as in --log tensorboard:runs/")
    if "://" in place:
        raise ThriftyError(f"{place} is a URL, but logs stay on this machine: name a directory, as in "
                           f"--log {name}:runs/")
    try:
        kind = getattr(importlib.import_module(f"thrifty.report.sinks.{name}"), SINKS[name])
        kind.check()
    except ImportError as error:
        raise MissingExtra(error.name or name, name) from error
    return kind, Path(where) if where else study / name


@final
class Logs:
    """Sinks, and which run is under way.

    Args:
        say: told, once a sink, that it failed.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._sinks: list[Sink] = []
        self._run: str | None = None
        self._phase, self._new = 0, True

    def add(self, kind: type[Sink], where: Path, project: str) -> None:
        """Open a sink; one that cannot be opened is told of, and left out."""
        try:
            self._sinks.append(kind(where, project))
        except Exception as error:
            self._say(f"{kind.name} logs nothing: {in_one_line(error)}")

    def hear(self, event: Event) -> None:
        """Follow the events of a run."""
        match event:
            case RecipeBegan(text=recipe, id=run):
                self._end(None)
                self._run, self._phase, self._new = run, 0, True
                self._each(lambda sink: sink.begin(run, recipe))
            case PhaseBegan():
                self._new = True
            case Stepped(step=step, loss=float() as loss, examples_per_second=rate) if self._run is not None:
                self._phase += self._new  # phases that train nothing have no curve
                self._new = False
                figures = {f"phase {self._phase}/loss": loss} | (
                    {} if rate is None else {f"phase {self._phase}/examples per second": rate})
                self._each(lambda sink: sink.step(figures, step))
            case TrialEnded(trial=trial):
                self._end(trial)

    def close(self) -> None:
        """End the run that is under way, and every sink."""
        self._end(None)
        self._each(lambda sink: sink.close())
        self._sinks.clear()

    def _end(self, trial: Trial | None) -> None:
        if self._run is None:
            return
        settings, figures = ({}, {}) if trial is None else (settings_of(trial), figures_of(trial))
        failed = trial is not None and trial.status == "failed"
        self._each(lambda sink: sink.end(settings, figures, failed))
        self._run = None

    def _each(self, call: Callable[[Sink], None]) -> None:
        for sink in tuple(self._sinks):
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    call(sink)
            except Exception as error:
                self._sinks.remove(sink)
                self._say(f"{sink.name} stopped logging: {in_one_line(error)}; the study continues")


def both(*listeners: Listener) -> Listener:
    """One listener of several."""
    def hear(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return hear
