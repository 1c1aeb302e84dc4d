"""Opening a study to write into it: its workload and target agree, and its clock runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from thrifty.measure import command
from thrifty.studies.clock import Clock, running
from thrifty.studies.store import Store, Study
from thrifty.target import Target
from thrifty.workloads.fingerprint import fingerprint
from thrifty.workloads.workload import Workload


@contextlib.contextmanager
def open_study(path: str | Path, workload: Workload, target: Target) -> Iterator[tuple[Store, Clock]]:
    """The study of a workload on a target, for writing, and its clock; made where there is none.

    What a writer that was killed had in hand is charged first.

    Raises:
        StoreError: it is another workload's or target's, of another version, or being written by another process.
    """
    began = command.began()
    with Store.open(path, "write", Study(workload.name, fingerprint(workload), target.to_json())) as store:
        store.note("source", workload.source)
        with running(store, began) as clock:
            yield store, clock
