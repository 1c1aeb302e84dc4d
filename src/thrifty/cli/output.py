"""How verbs print: results on stdout, all else on stderr."""

from __future__ import annotations

import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from thrifty.report import shown
from thrifty.report.verbosity import Verbosity
from thrifty.report.words import shortened

SETTINGS: ContextVar[dict[str, Any] | None] = ContextVar("settings", default=None)
"""What the verb under way took from files: their names, and {option: value}; None where it took nothing."""


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


def hint(text: str) -> None:
    """Say on stderr what is neither a result nor an error: nothing where quiet is asked for."""
    if Verbosity.asked() is not Verbosity.quiet:
        print(shortened(text), file=sys.stderr)
