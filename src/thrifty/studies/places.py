"""Where a study is, and what it refers to: by paths from its own directory, so that it can be copied and moved."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thrifty.studies.database import FILE, StoreError
from thrifty.studies.trial import Trial

ARTIFACTS = "artifacts"
"""The folder of a study that holds its trials' artifacts, each named after its trial."""


# -- the directory ----------------------------------------------------------------------------------------------


def default_study(source: str) -> Path:
    """The directory of a workload's study where none is named: ``study-NAME`` in the current directory.

    Args:
        source: of the workload, as `load_workload` takes or sets it. NAME is that of an embedded workload, of its file (with
            that of the variable, where it is not ``workload``), or of its Hugging Face directory.

    >>> str(default_study("digits")), str(default_study("/home/me/rows.py:workload")), str(default_study("rows.py:small"))
    ('study-digits', 'study-rows', 'study-rows-small')
    """
    return Path("study-" + (re.sub(r"[^\w.-]+", "-", _name(source)).strip("-.") or "workload"))


def _name(source: str) -> str:
    from thrifty.workloads import huggingface
    from thrifty.workloads.embedded import EMBEDDED

    for name, entry in EMBEDDED.items():
        if source in (name, entry.place):
            return name
    if huggingface.is_reference(source):
        return huggingface.Reference.parse(source).directory.name
    place, colon, attribute = source.rpartition(":")
    if not colon:
        place, attribute = source, "workload"
    name = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
    return name if attribute == "workload" else f"{name}-{attribute}"


def the_study(here: Path = Path()) -> Path:
    """The study in a directory, where there is one alone: what verbs that read a study take when none is named.

    Raises:
        StoreError: there is none, or there are several; names them.
    """
    if (here / FILE).is_file():
        return here
    found = sorted(path.parent for path in here.glob(f"*/{FILE}"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise StoreError("there is no study in the current directory: name its directory, or make one with thrifty run")
    raise StoreError(f"several studies are in the current directory: name one of {', '.join(map(str, found))}")


# -- what it refers to ------------------------------------------------------------------------------------------


def kept(trial: Trial, study: Path) -> Trial:
    """A trial as its study keeps it: the artifact's path is from the study's directory where it is in there."""
    if trial.artifact is None or not Path(trial.artifact.path).is_relative_to(study):
        return trial
    return _at(trial, Path(trial.artifact.path).relative_to(study))


def reached(trial: Trial, study: Path) -> Trial:
    """A trial as its study is read: the artifact's path leads there from the current directory."""
    if trial.artifact is None or Path(trial.artifact.path).is_absolute():
        return trial
    return _at(trial, study / ARTIFACTS / Path(trial.artifact.path).name)


def _at(trial: Trial, path: Path) -> Trial:
    assert trial.artifact is not None
    return dataclasses.replace(trial, artifact=dataclasses.replace(trial.artifact, path=str(path)))


def noted_source(source: str, study: Path) -> dict[str, str]:
    """What a study notes of where its workload is: its source, and the directory that the study then had."""
    return {"workload": source, "study": str(study.resolve())}


def found_source(noted: Any, study: Path) -> str | None:
    """Where the workload of a study is now: as far from the study as it was, or else where it was.

    Args:
        noted: by `noted_source`; a source alone is taken as it is.
        study: its directory now.
    """
    if not isinstance(noted, dict):
        return None if noted is None else str(noted)
    source, before, now = noted["workload"], noted["study"], study.resolve()
    moved, there = _moved(source, lambda path: Path(os.path.normpath(now / os.path.relpath(path, before))))
    return moved if there else source


def _moved(source: str, move: Callable[[Path], Path]) -> tuple[str, bool]:
    """A source with its paths moved, and whether all of them are there."""
    from thrifty.workloads import huggingface

    place, _, attribute = source.rpartition(":")
    if source.startswith(huggingface.SCHEME):
        reference = huggingface.Reference.parse(source)
        paths = {name: move(value) for name, value in vars(reference).items() if isinstance(value, Path)}
        return str(dataclasses.replace(reference, **paths)), all(path.exists() for path in paths.values())
    if place.endswith(".py"):
        path = move(Path(place))
        return f"{path}:{attribute}", path.is_file()
    return source, True
