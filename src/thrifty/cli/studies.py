"""The verbs that take a study: what it says, which trial to use, its page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.options import (
    JsonOption,
    MaxBytesOption,
    MaxDropOption,
    MaxLatencyOption,
    MinimizeOption,
    SavedAs,
    StudyArgument,
    TrafficOption,
    answered,
)
from thrifty.cli.output import emit, print_study
from thrifty.errors import ThriftyError
from thrifty.report.shown import layers_json, show_layers
from thrifty.report.words import literal

SAVED = {SavedAs.artifact: "the artifact, for thrifty serve or thrifty.load",
         SavedAs.hf: "the model, for from_pretrained of transformers",
         SavedAs.compressed_tensors: "the model, for vLLM or transformers"}


def best(study: StudyArgument = None,
         max_drop: MaxDropOption = None, max_bytes: MaxBytesOption = None, max_latency: MaxLatencyOption = None,
         minimize: MinimizeOption = "latency",
         place: Annotated[Path | None, typer.Option("--save", help="Write it into this new directory.")] = None,
         format: Annotated[SavedAs, typer.Option(
             "--format", help="Its engine, its model for transformers, or, of few bits, for vLLM (compressed-tensors).")]
         = SavedAs.artifact,
         requests_per_day: TrafficOption = None, as_json: JsonOption = False) -> None:
    """Choose the best trial of a study that keeps to the constraints, and save its artifact.

    Exit code 3: nothing is significantly better than the model as it is, so keep that; 1: no trial meets the constraints,
    and the model as it is is not known to.

    Example: thrifty best study-digits/ --max-drop 0.5pt --save model/
    """
    from thrifty.report.choice import print_choice
    from thrifty.runs.saving import save
    from thrifty.studies.constraints import Bars, choose
    from thrifty.studies.findings import Findings
    from thrifty.studies.places import the_study

    bars = Bars.read(max_drop, max_bytes, max_latency, minimize)
    if place is not None and place.exists():
        raise ThriftyError(f"{place} is there already: name a new directory to save in")
    found = Findings.read(study or the_study())
    choice = choose(found.trials, bars, found.as_it_is)
    saved = place if place is not None and choice.trial is not None else None
    if saved is not None and choice.trial is not None:
        save(saved, choice.trial, format.value, found.source)
    if as_json:
        emit({"keep": choice.keep, "trial": choice.trial and choice.trial.to_json(),
              "nearest": choice.nearest and choice.nearest.id,
              "misses": [vars(miss) for miss in choice.misses], "bars": bars.to_json(),
              "saved": None if saved is None else str(saved)})
    else:
        print_choice(choice, bars, found.spent, requests_per_day)
        if place is not None:
            print(f"\nSaved in {literal(place)}: {SAVED[format]}" if saved else "\nNothing was saved: no trial is recommended.")
    raise typer.Exit(answered(choice))


def show(study: Annotated[Path | None, typer.Argument(
             metavar="STUDY", help="A study's directory, by default the one study in the current directory; with --layers, or "
                                   "an artifact's.")] = None,
         layers: Annotated[bool, typer.Option("--layers", help="What became of each layer: scheme, bytes and error.")] = False,
         requests_per_day: TrafficOption = None, as_json: JsonOption = False) -> None:
    """Show a study's trials, its frontier, its failures, where the time went, and what it recommends.

    Example: thrifty show study-digits/
    """
    from thrifty.studies.places import the_study

    place = study or the_study()
    if layers:
        emit(layers_json(place)) if as_json else show_layers(place)
    else:
        print_study(place, as_json, requests_per_day)


def report(study: StudyArgument = None,
           out: Annotated[Path | None, typer.Option("--out", help="The file; report.html in the study by default.")] = None,
           requests_per_day: Annotated[float | None, typer.Option(
               "--requests-per-day", help="How many the model will serve: tells break-even in days.")] = None,
           as_json: JsonOption = False) -> None:
    """Write a study's page: one HTML file that works offline, and print its path.

    Example: thrifty report study-digits/ --out frontier.html --requests-per-day 100000
    """
    from thrifty.report.page import write_page
    from thrifty.studies.places import the_study

    path = write_page(study or the_study(), out, requests_per_day=requests_per_day)
    emit({"page": str(path)}) if as_json else print(literal(path))
