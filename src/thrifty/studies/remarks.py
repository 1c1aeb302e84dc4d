"""What people say of trials: tags and a note on each, kept in the study's store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

from thrifty.errors import ThriftyError
from thrifty.studies.clock import reconciled
from thrifty.studies.store import Store

LONGEST = 4000
"""Characters of a note or a tag: enough to say why, too few to hide a study's figures."""


@final
@dataclass(frozen=True)
class Remarks:
    """Tags and a note on one trial; "" for no note."""

    tags: tuple[str, ...] = ()
    note: str = ""


def read_remarks(store: Store) -> dict[str, Remarks]:
    """What was said, by the trial's id.

    Raises:
        StoreError: it cannot be read.
    """
    return remarks_of(store.noted("remarks"))


def remarks_of(noted: Mapping[str, Any] | None) -> dict[str, Remarks]:
    """From what `remark` keeps.

    >>> remarks_of({"ab12": {"tags": ["good"], "note": ""}})
    {'ab12': Remarks(tags=('good',), note='')}
    """
    return {id: Remarks(tuple(map(str, said.get("tags", ()))), str(said.get("note", ""))) for id, said in (noted or {}).items()}


def remark(path: str | os.PathLike[str], trial: str, *, tags: Iterable[str] = (), remove: Iterable[str] = (),
           note: str | None = None) -> tuple[str, Remarks]:
    """Tag a trial, take tags off it, or replace its note.

    Args:
        path: the study's directory.
        trial: its id, or a beginning that no other trial's id has.
        tags: to add.
        remove: tags to take off.
        note: in the place of the one that it has; "" takes it off, None leaves it.

    Returns:
        the trial's id, and all that is said of it now.

    Raises:
        ThriftyError: there is no study or no such trial, another process writes the study, or a text is empty or too long.
    """
    added, removed = tuple(tags), set(remove)
    for text in (*added, *removed, note or "-"):
        if not text.strip() or len(text) > LONGEST:
            raise ThriftyError(f"a tag or a note has 1 to {LONGEST} characters, but this one has {len(text.strip())}")
    Store.open(path).close()  # to write would make a study where there is none
    with Store.open(path, "write") as store:
        reconciled(store)  # opening takes the sign of life of a writer that was killed
        id = _named(store, trial)
        said = read_remarks(store)
        before = said.get(id, Remarks())
        now = Remarks(tuple(tag for tag in dict.fromkeys((*before.tags, *added)) if tag not in removed),
                      before.note if note is None else note)
        store.note("remarks", {each: {"tags": one.tags, "note": one.note} for each, one in (said | {id: now}).items()
                               if one != Remarks()})
    return id, now


def _named(store: Store, beginning: str) -> str:
    found = [trial.id for trial in store.trials() if trial.id.startswith(beginning)]
    if beginning in found:
        return beginning
    if len(found) != 1 or not beginning:
        several = (f"{len(found)} trials begin with it: {', '.join(found[:5])}" if found and beginning
                   else "thrifty show lists them")
        raise ThriftyError(f"{store.path} has no single trial {beginning!r}; {several}")
    return found[0]
