"""Opening a study to write into it: its workload and target agree, and its clock runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from thrifty.measure import command
from thrifty.studies.clock import Clock, running
from thrifty.studies.events import Listener, Noted, ignore
from thrifty.studies.places import default_study, noted_source
from thrifty.studies.store import Store, Study
from thrifty.target import Machine, Target
from thrifty.training.workers import crowded
from thrifty.workloads.fingerprint import fingerprint
from thrifty.workloads.workload import Workload


@contextlib.contextmanager
def open_study(path: str | Path | None, workload: Workload, target: Target, machine: Machine | None = None,
               listener: Listener = ignore) -> Iterator[tuple[Store, Clock]]:
    """The study of a workload on a target, for writing, and its clock; made where there is none.

    What a writer that was killed had in hand is charged first.

    Args:
        path: the study's directory; `default_study` where None.
        workload: with a source.
        target: what its models will run on.
        machine: what trains them; it is said where the workload's loader workers and its threads are more than the processors.
        listener: hears that.

    Raises:
        StoreError: it is another workload's or target's, of another version, or being written by another process.
    """
    began = command.began()
    if machine is not None and (said := crowded(workload.loader_workers, machine)):
        listener(Noted(said))
    place = default_study(workload.source) if path is None else path
    with Store.open(place, "write", Study(workload.name, fingerprint(workload), target.to_json())) as store:
        store.note("source", noted_source(workload.source, store.path))
        with running(store, began) as clock:
            yield store, clock
