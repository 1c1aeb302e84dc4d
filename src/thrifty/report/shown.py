"""What the command line prints of a study or an artifact: tables, or one JSON object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thrifty.errors import ThriftyError
from thrifty.report.words import shortened

if TYPE_CHECKING:
    from thrifty.studies.findings import Findings


def emit(value: Any) -> None:
    """The one JSON object of a command, on stdout; what was not measured, and what is not finite, is null."""
    from thrifty.report.document import finite

    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False)
    # Letters stay readable; what could steer a terminal is escaped as JSON has it, which changes nothing for who parses.
    print("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text))


def layers_json(place: Path) -> list[dict[str, Any]]:
    """What became of the layers of an artifact, or of every one of a study.

    Raises:
        ThriftyError: none has layers to tell of.
    """
    from thrifty.artifacts.manifest import MANIFEST, read

    directories = ([place] if (place / MANIFEST).exists()
                   else sorted(path.parent for path in place.glob(f"artifacts/*/{MANIFEST}")))
    found = {str(directory): read(directory) for directory in directories}
    found = {directory: manifest for directory, manifest in found.items() if manifest.get("layers")}
    if not found:
        raise ThriftyError(f"{place} has no artifact of a quantized, pruned or factored model: run a "
                           "recipe with quantize(...) first, and show its study or its artifact")
    return [{"artifact": directory, "recipe": manifest.get("recipe"), "layers": manifest["layers"]}
            for directory, manifest in found.items()]


def show_layers(place: Path) -> None:
    """The same in tables."""
    from thrifty.report.artifacts import print_layers

    for each in layers_json(place):
        print_layers(f"{each['artifact']}: {each['recipe'] or ''}", each["layers"])


def show_study(found: Findings, requests_per_day: float | None = None) -> None:
    """What a study says, in tables."""
    from thrifty.report import terminal
    from thrifty.report.answer import answer
    from thrifty.report.choice import print_choice
    from thrifty.report.words import literal

    if found.trials:
        print(f"{literal(answer(found)['sentence'])}\n")
    terminal.print_study(found.trials, found.frontier, found.spent, found.failures, found.remarks)
    if found.doubt is not None:
        print(f"\n{shortened(found.doubt)}")
    if found.ended is not None:
        print(f"\nThe exploration {literal(found.ended['says'])}")
    if found.bars is not None:
        print()
        print_choice(found.choice, found.bars, found.spent, requests_per_day)
