"""An artifact's checks and the compilers that are here, as tables. Imports no torch: an artifact may not need it."""

from __future__ import annotations

from typing import TextIO

from rich.text import Text

from thrifty.report.console import cell, show, table
from thrifty.verifying import Verification

_STYLES = {"ok": "green", "differs": "yellow", "failed": "bold red", "skipped": "dim"}


def print_verification(found: Verification, file: TextIO | None = None) -> None:
    """A row a check, and the verdict."""
    rows = [(check.what, cell(check.status, _STYLES[check.status]), check.detail) for check in found.checks]
    verdict = "It may serve here." if found.sound else "It may not serve here: see what failed."
    show(table(found.directory, ["check", "result", "what was found"], rows), Text(verdict), file=file)
