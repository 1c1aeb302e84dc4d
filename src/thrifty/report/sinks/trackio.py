"""trackio: one run a trial in its local database, which ``trackio show`` reads with ``TRACKIO_DIR`` set to the directory."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

from thrifty.errors import ThriftyError
from thrifty.report.sinks.sink import Sink


@final
class TrackioSink(Sink):
    """trackio reads where it logs to when it is first imported: a process logs to one directory."""

    name, extra = "trackio", "trackio"

    @staticmethod
    def check() -> None:
        if importlib.util.find_spec("trackio") is None:  # importing it settles where it logs to
            raise ImportError("trackio is not installed", name="trackio")

    _run: Any = None

    def __init__(self, where: Path, project: str) -> None:
        super().__init__(where, project)
        os.environ["TRACKIO_DIR"] = str(where.resolve())
        from trackio import utils

        if Path(utils.TRACKIO_DIR) != where.resolve():
            raise ThriftyError(f"trackio was already imported, and logs to {utils.TRACKIO_DIR} in this process")

    def begin(self, run: str, recipe: str) -> None:
        import trackio

        with _strict():
            self._run = trackio.init(self.project, name=run, config={"recipe": recipe}, resume="allow", embed=False,
                                     auto_log_cpu=False, auto_log_gpu=False)

    def step(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step)

    def end(self, settings: Mapping[str, str], figures: Mapping[str, float], failed: bool) -> None:
        import trackio

        if figures:
            self._run.log({**figures, **settings})
        with _strict():
            trackio.finish()


@contextlib.contextmanager
def _strict() -> Iterator[None]:
    """What trackio only warns of is raised, and what it greets with is not shown: it says that it uploads, which it does not."""
    with warnings.catch_warnings(record=True) as said, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        yield
    lost = [str(each.message) for each in said if "trackio" in str(each.message)]
    if lost:
        raise ThriftyError(lost[0])
