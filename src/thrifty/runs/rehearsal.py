"""A rehearsal: every phase for one step or one calibration batch, before anything long runs."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Subset

from thrifty.compilers.capture import capture
from thrifty.compilers.inprocess import eagerly
from thrifty.errors import ThriftyError, WorkloadError
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.phases import Train
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.transform import Plan, Transform
from thrifty.runs import checkpoint
from thrifty.runs.checkpoint import Checkpoint
from thrifty.runs.context import Tell, calibration, rehearsal_context, training_setup
from thrifty.runs.job import seed_of
from thrifty.runs.making import made, untrained_teachers
from thrifty.studies.events import Noted
from thrifty.target import Machine, Target
from thrifty.workloads.blame import part
from thrifty.workloads.models import answers, differ, unsaved
from thrifty.workloads.quality import length
from thrifty.workloads.workload import Workload

Plans = tuple[tuple[str, Plan], ...]
"""(the transform's text, its plan), in order."""
EXAMPLES = 8
"""That a phase is rehearsed on."""


def rehearse(workload: Workload, recipe: Recipe, target: Target, machine: Machine, tell: Tell) -> None:
    """Take every phase for one step or one calibration batch, on a throw-away model, before anything long runs.

    Args:
        workload: of the recipe.
        recipe: to rehearse.
        target: that serves.
        machine: that trains.
        tell: hears that it begins.

    Raises:
        ThriftyError: what would go wrong later.
    """
    tell(Noted("rehearsal: one step of each phase"))
    model = made(workload)
    plans: Plans = ()
    for i, phase in enumerate(recipe):
        with part(f"{phase}, rehearsed,"):
            if isinstance(phase, Train):
                model, decided = rehearse_training(phase, workload, model, machine)
            elif isinstance(phase, Transform):
                model, decided = rehearse_transform(phase, workload, model, target, seed_of(0, i, "rehearsal"))
            else:
                continue
        plans = (*plans, *decided)
    check_reload(workload, recipe, model, plans)
    for phase in recipe:
        if isinstance(phase, Compiler):
            with part(f"{phase}, rehearsed,"):
                rehearse_compiler(phase, workload, model, target.device)


def rehearse_transform(phase: Transform, workload: Workload, model: nn.Module, target: Target,
                       seed: int) -> tuple[nn.Module, Plans]:
    """Decided on a few examples, built, and its claims probed."""
    before = copy.deepcopy(model)
    with torch.no_grad():
        plan = phase.plan(model, rehearsal_context(workload, target, seed, EXAMPLES))
        after = phase.build(model, plan).eval()
    for claim in phase.claims(before, after):
        claim.checked(phase.name)
    return after, ((str(phase), plan),)


def rehearse_training(phase: Train, workload: Workload, model: nn.Module, machine: Machine) -> tuple[nn.Module, Plans]:
    """One optimizer step on a few examples, with every method's hooks."""
    settings = phase.but(batch_size=phase.batch_size or workload.batch_size)  # for methods that look ahead
    setup = training_setup(workload, settings, 0, machine.device, untrained_teachers(workload))
    setup = dataclasses.replace(setup, most=min(settings.batch_size or 1, EXAMPLES, length(setup.data)))
    if not settings.packing:  # which examples fit with which, all of them say
        setup = dataclasses.replace(setup, data=Subset(setup.data, range(setup.size)))
    session = setup.session(model, steps=1)
    with eagerly():  # one step would pay for no compilation, of an optimizer's update either
        session.step(next(setup.loader.batches()))
    for name, claim in session.claims():
        claim.checked(name)
    return session.finish(), tuple((str(transform), plan) for transform, plan in session.plans)


def check_reload(workload: Workload, recipe: Recipe, model: nn.Module, plans: Plans) -> None:
    """Save the model, load it into a fresh one, and compare their answers.

    Raises:
        WorkloadError: they differ: the model has what no state_dict holds, which is named where it is found.
    """
    state = Checkpoint(workload.source, str(recipe), plans)
    with part("saving the model and loading it again"), tempfile.TemporaryDirectory(prefix="thrifty-reload-") as place:
        checkpoint.save(state, model, Path(place))
        with torch.no_grad():
            other = checkpoint.load(Path(place), made(workload))[1]
        for inputs in (workload.example(1), *calibration(workload, 0, EXAMPLES)):
            if differ(answers(model, inputs), answers(other, inputs)):
                names = unsaved(model, other)
                what = (f"{', '.join(names[:3])} is not in any state_dict and differs in each model: make it a buffer, "
                        "self.register_buffer(name, tensor)" if names else
                        "it holds state that is not in any state_dict: make tensors parameters or buffers")
                raise WorkloadError("a checkpoint of the model, saved and loaded, gives different outputs than the model did; "
                                    f"{what}")


def rehearse_compiler(compiler: Compiler, workload: Workload, model: nn.Module, device: str) -> None:
    """A compiler is rehearsed by what it needs and by the graph that every compiler starts from."""
    missing = type(compiler).missing()
    if missing is not None:
        raise ThriftyError(missing)
    compiler.admit(model, device)
    capture(model.eval(), workload.example(1), {} if compiler.pads else workload.served_shapes)
