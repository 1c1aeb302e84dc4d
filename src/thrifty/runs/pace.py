"""What a training will take, from a few of its steps."""

from __future__ import annotations

import itertools
import statistics
import time

from thrifty.recipes.phases import Train
from thrifty.recipes.recipe import Recipe
from thrifty.runs.context import training_setup
from thrifty.runs.job import Job
from thrifty.runs.making import made, untrained_teachers
from thrifty.workloads.loading import load_workload
from thrifty.workloads.models import apart

STEPS = 12
FIRST = 2
"""Steps that allocate and choose kernels: they say nothing of those that follow."""
LONGEST = 5.0
"""Seconds after which three steps are enough."""


def pace(job: Job) -> tuple[float, float]:
    """Seconds that the trainings of a job's recipe will take: by the quickest of a few steps, and by the middle one.

    Other work on the machine comes and goes: what cannot be at all is told by the first, what is likely by the second.
    """
    workload, least, about = apart(load_workload(job.workload)), 0.0, 0.0
    model = made(workload)
    for phase in Recipe.parse(job.recipe):
        if not isinstance(phase, Train) or workload.lessons is None:
            continue
        setup = training_setup(workload, phase, 0, job.machine.device, untrained_teachers(workload))
        session, seconds = setup.session(model, steps=STEPS), []
        for batch in itertools.islice(setup.loader.batches(), STEPS):
            at = time.perf_counter()
            session.step(batch)
            seconds.append(time.perf_counter() - at)
            if sum(seconds) > LONGEST and len(seconds) > FIRST:
                break
        steady = seconds[FIRST:] or seconds
        least += setup.steps * min(steady)
        about += setup.steps * statistics.median(steady)
    return least, about
