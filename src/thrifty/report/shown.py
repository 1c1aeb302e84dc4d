"""What the command line prints of a study or an artifact: tables, or one JSON object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from thrifty.errors import ThriftyError
from thrifty.report.words import shortened


def emit(value: Any) -> None:
    """The one JSON object of a command, on stdout; what was not measured, and what is not finite, is null."""
    from thrifty.report.document import finite

    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False)
    # Letters stay readable; what could steer a terminal is escaped as JSON has it, which changes nothing for who parses.
    print("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text))


def show_layers(place: Path, as_json: bool) -> None:
    """What became of the layers of an artifact, or of every one of a study."""
    from thrifty.artifacts.manifest import MANIFEST, read
    from thrifty.report.artifacts import print_layers

    directories = ([place] if (place / MANIFEST).exists()
                   else sorted(path.parent for path in place.glob(f"artifacts/*/{MANIFEST}")))
    found = {str(directory): read(directory) for directory in directories}
    found = {directory: manifest for directory, manifest in found.items() if manifest.get("layers")}
    if not found:
        raise ThriftyError(f"{place} holds no artifact of a quantized model, nor of a pruned or factored one: run a "
                           "recipe with quantize(...) first, and show its study or its artifact")
    if as_json:
        emit([{"artifact": directory, "recipe": manifest.get("recipe"), "layers": manifest["layers"]}
              for directory, manifest in found.items()])
    else:
        for directory, manifest in found.items():
            print_layers(f"{directory}: {manifest.get('recipe', '')}", manifest["layers"])


def show_study(study: Path, as_json: bool, requests_per_day: float | None = None) -> None:
    from thrifty.report import terminal
    from thrifty.report.answer import answer
    from thrifty.report.choice import print_choice
    from thrifty.report.document import study_json
    from thrifty.report.words import literal
    from thrifty.studies.findings import Findings

    found = Findings.read(study)
    if as_json:
        emit(study_json(found))
        return
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
