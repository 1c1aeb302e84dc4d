"""Where a study is: the directory named after its workload, the one that is in the current directory."""

from __future__ import annotations

import re
from pathlib import Path

from thrifty.studies.database import FILE, StoreError
from thrifty.workloads import huggingface
from thrifty.workloads.embedded import EMBEDDED


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
    found = [place for place in sorted(path.parent for path in here.glob(f"*/{FILE}")) if place.is_dir()]
    if len(found) == 1:
        return found[0]
    if not found:
        raise StoreError("there is no study in the current directory: name its directory, or make one with thrifty run")
    raise StoreError(f"several studies are in the current directory: name one of {', '.join(map(str, found))}")
