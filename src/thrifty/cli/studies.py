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
         place: Annotated[Path | None, typer.Option("--save", help="Write the chosen trial to this new directory.")] = None,
         format: Annotated[SavedAs, typer.Option(
             "--format", help="What to save: the engine (artifact), or the model for transformers (hf) or for vLLM "
                              "(compressed-tensors, quantized models only).")]
         = SavedAs.artifact,
         requests_per_day: TrafficOption = None, as_json: JsonOption = False) -> None:
    """Choose the best trial of a study that meets the constraints, and save its artifact.

    Exit code 3: no trial is significantly better than the unmodified model, so keep that; 1: no trial meets the constraints,
    and the unmodified model is not known to meet them.

    Example: thrifty best study-digits/ --max-drop 0.5pt --save model/
    """
    from thrifty.report.choice import print_choice
    from thrifty.runs.saving import save
    from thrifty.studies.constraints import Bars, choose
    from thrifty.studies.findings import Findings
    from thrifty.studies.places import the_study

    bars = Bars.read(max_drop, max_bytes, max_latency, minimize)
    if place is not None and place.exists():
        raise ThriftyError(f"{place} already exists: name a new directory to save in")
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
         layers: Annotated[bool, typer.Option(
             "--layers", help="Show how each layer was changed: scheme, bytes and error.")] = False,
         requests_per_day: TrafficOption = None, as_json: JsonOption = False) -> None:
    """Show a study's trials, its Pareto frontier, failures, where the time went, and the recommended trial.

    Example: thrifty show study-digits/
    """
    from thrifty.studies.places import the_study

    place = study or the_study()
    if layers:
        emit(layers_json(place)) if as_json else show_layers(place)
    else:
        print_study(place, as_json, requests_per_day)


def report(study: StudyArgument = None,
           out: Annotated[Path | None, typer.Option(
               "--out", help="The file to write; report.html in the study's directory by default.")] = None,
           requests_per_day: TrafficOption = None,
           compare: Annotated[Path | None, typer.Option(
               "--compare", metavar="STUDY", help="Another study's directory, to show beside this one.")] = None,
           as_json: JsonOption = False) -> None:
    """Write a study's report, one HTML file that works offline, and print its path.

    Example: thrifty report study-digits/ --out frontier.html --requests-per-day 100000
    """
    from thrifty.report.page import write_page
    from thrifty.studies.places import the_study

    path = write_page(study or the_study(), out, requests_per_day=requests_per_day, compare=compare)
    emit({"page": str(path)}) if as_json else print(literal(path))


StudyToRemark = Annotated[Path, typer.Argument(metavar="STUDY", help="A study's directory.")]
TrialArgument = Annotated[str, typer.Argument(metavar="TRIAL", help="The trial's id, or an unambiguous prefix.")]


def tag(study: StudyToRemark, trial: TrialArgument,
        tags: Annotated[list[str] | None, typer.Argument(metavar="[TAG]...", help="Tags to add.")] = None,
        remove: Annotated[list[str] | None, typer.Option("--remove", help="A tag to remove; may be repeated.")] = None,
        as_json: JsonOption = False) -> None:
    """Tag a trial, and print its tags; show and report include them.

    Example: thrifty tag study-digits/ 3fa2 shipped --remove candidate
    """
    from thrifty.studies.remarks import remark

    id, said = remark(study, trial, tags=tags or (), remove=remove or ())
    emit({"trial": id, "tags": list(said.tags), "note": said.note}) if as_json else print(
        literal(f"{id}: {', '.join(said.tags) or 'no tags'}"))


def note(study: StudyToRemark, trial: TrialArgument,
         text: Annotated[str, typer.Argument(metavar="TEXT", help='Replaces the existing note; "" removes it.')],
         as_json: JsonOption = False) -> None:
    """Attach a note to a trial; show and report include it.

    Example: thrifty note study-digits/ 3fa2 "Served since May; the customer noticed nothing."
    """
    from thrifty.studies.remarks import remark

    id, said = remark(study, trial, note=text)
    emit({"trial": id, "tags": list(said.tags), "note": said.note}) if as_json else print(
        literal(f"{id}: {said.note or 'no note'}"))
