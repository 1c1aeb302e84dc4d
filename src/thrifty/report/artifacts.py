"""An artifact's checks and the compilers that are here, as tables. Imports no torch: an artifact may not need it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from rich.text import Text

from thrifty.artifacts.verification import Verification
from thrifty.report.console import cell, lines, show, table
from thrifty.report.words import scaled, seconds

if TYPE_CHECKING:
    from thrifty.compilers.availability import Available

_STYLES = {"ok": "green", "differs": "yellow", "failed": "bold red", "skipped": "dim"}


def print_verification(found: Verification, file: TextIO | None = None) -> None:
    """A row a check, and the verdict."""
    rows = [(check.what, cell(check.status, _STYLES[check.status]), check.detail) for check in found.checks]
    verdict = "It can be served here." if found.sound else "Do not serve it here: see what failed."
    show(table(found.directory, ["check", "result", "what was found"], rows), Text(verdict), file=file)


def print_layers(directory: str, layers: Iterable[Mapping[str, Any]], file: TextIO | None = None) -> None:
    """A row a layer: its scheme, its bytes, the outputs' error when it alone is so, and why it stays float where it does."""
    rows = [(each["layer"], each["scheme"], scaled(each["bytes"], "B"),
             "not measured" if each["error"] is None else f"{each['error']:.2e}", each.get("reason", "")) for each in layers]
    show(table(directory, ["layer", "scheme", "bytes", "output error, alone", "kept in float because"], rows), file=file)


def print_compilers(found: Iterable[Available], file: TextIO | None = None) -> None:
    """A row a compiler: what it needs and where that is, what it serves, whether it works."""
    rows = [(each.name, lines([*_found(each.packages), *_found(each.tools)]), ", ".join(each.precisions),
             ", ".join(each.devices), _works(each)) for each in found]
    show(table("Compilers", ["name", "needs", "precisions", "devices", "works here"], rows), file=file)


def _found(needs: Mapping[str, str | None]) -> list[str]:
    return [f"{name} {here or '(missing)'}" for name, here in needs.items()]


def _works(each: Available) -> Text:
    if each.missing is not None:
        return cell(f"no: {each.missing}", "yellow")
    if each.tried is None:
        return cell("installed; --check tries it")
    if not each.tried.works:
        return cell(f"no: {each.tried.detail}", "bold red")
    return cell(f"yes: a tiny net in {seconds(each.tried.seconds)}; {each.tried.detail}", "green")
