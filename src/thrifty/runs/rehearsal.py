"""A rehearsal: every phase for one step or one calibration batch, before anything long runs."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import nn
from torch.utils.data import Subset

from thrifty.compilers.capture import capture
from thrifty.errors import ThriftyError
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.phases import Train
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.transform import Transform
from thrifty.runs.context import Tell, rehearsal_context, training_setup
from thrifty.runs.job import seed_of
from thrifty.runs.making import made
from thrifty.studies.events import Noted
from thrifty.target import Target
from thrifty.workloads.quality import length
from thrifty.workloads.workload import Workload

EXAMPLES = 8
"""That a phase is rehearsed on."""


def rehearse(workload: Workload, recipe: Recipe, target: Target, tell: Tell) -> None:
    """Take every phase for one step or one calibration batch, on a throw-away model, before anything long runs.

    Raises:
        ThriftyError: what would go wrong later.
    """
    tell(Noted("rehearsal: one step of each phase"))
    model = made(workload)
    for i, phase in enumerate(recipe):
        seed = seed_of(0, i, "rehearsal")
        if isinstance(phase, Train):
            model = rehearse_training(phase, workload, model, target)
        elif isinstance(phase, Transform):
            before = copy.deepcopy(model)
            context = rehearsal_context(workload, target, seed, EXAMPLES)
            with torch.no_grad():
                after = phase.build(model, phase.plan(model, context)).eval()
            for claim in phase.claims(before, after):
                claim.checked(phase.name)
            model = after
        else:
            rehearse_compiler(phase, workload, model)


def rehearse_training(phase: Train, workload: Workload, model: nn.Module, target: Target) -> nn.Module:
    """One optimizer step on a few examples, with every method's hooks."""
    settings = phase.but(batch_size=phase.batch_size or workload.batch_size)  # for methods that look ahead
    setup = training_setup(workload, settings, 0, target.device, lambda text: made(workload).eval())
    setup = dataclasses.replace(setup, most=min(settings.batch_size or 1, EXAMPLES, length(setup.data)))
    if not settings.packing:  # which examples fit with which, all of them say
        setup = dataclasses.replace(setup, data=Subset(setup.data, range(setup.size)))
    session = setup.session(model, steps=1)
    session.step(next(setup.loader.batches()))
    for name, claim in session.claims():
        claim.checked(name)
    return session.finish()


def rehearse_compiler(compiler: Compiler, workload: Workload, model: nn.Module) -> None:
    """A compiler is rehearsed by what it needs and by the graph that every compiler starts from."""
    missing = type(compiler).missing()
    if missing is not None:
        raise ThriftyError(missing)
    compiler.admit(model)
    capture(model.eval(), workload.example(1), {} if compiler.pads else workload.served_shapes)
