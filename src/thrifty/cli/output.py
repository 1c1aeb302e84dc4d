"""How verbs print: results on stdout, all else on stderr."""

from __future__ import annotations

import shlex
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from thrifty.cli.options import INTERRUPTED
from thrifty.report import shown
from thrifty.report.verbosity import Verbosity
from thrifty.report.words import shortened

SETTINGS: ContextVar[dict[str, Any] | None] = ContextVar("settings", default=None)
"""What the verb under way took from files: their names, and {option: value}; None where it took nothing."""

RESUMING = frozenset({"run", "sweep", "orders", "explore", "tune"})
"""Verbs that keep what they have measured in a study as they go."""


def emit(value: Any) -> None:
    """The one JSON value of a command; an object says under "settings" what came from a file."""
    settings = SETTINGS.get()
    shown.emit({**value, "settings": settings} if settings and isinstance(value, dict) else value)


def print_study(study: Path, as_json: bool, requests_per_day: float | None = None) -> None:
    """What a study says."""
    from thrifty.report.document import study_json
    from thrifty.studies.findings import Findings

    found = Findings.read(study)
    emit(study_json(found)) if as_json else shown.show_study(found, requests_per_day)


def told_how_to_go_on(verb: str | None) -> int:
    """Say in one line how to go on after Ctrl-C; its exit code."""
    goes_on = "what was measured is kept, and the same command resumes" if verb in RESUMING else "start it again"
    print(f"thrifty: interrupted; {goes_on}: {shortened(shlex.join(['thrifty', *sys.argv[1:]]))}", file=sys.stderr)
    return INTERRUPTED


def hint(text: str) -> None:
    """Say on stderr what is neither a result nor an error: nothing where quiet is asked for."""
    if Verbosity.asked() is not Verbosity.quiet:
        print(shortened(text), file=sys.stderr)
