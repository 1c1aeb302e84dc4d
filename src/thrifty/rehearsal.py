"""A rehearsal: every phase for one step or one calibration batch, before anything long runs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from thrifty.compilers.capture import capture
from thrifty.context import Tell, make_context
from thrifty.errors import ThriftyError
from thrifty.method import Compiler, Transform
from thrifty.quality import length
from thrifty.recipe import Recipe, Train, seed_of
from thrifty.target import Target
from thrifty.training.loop import Fit
from thrifty.training.packing import make_loader
from thrifty.workload import Workload


def rehearse(workload: Workload, recipe: Recipe, target: Target, tell: Tell) -> None:
    """Take every phase for one step or one calibration batch, on a throw-away model, before anything long runs.

    Raises:
        ThriftyError: what would go wrong later.
    """
    tell({"event": "note", "text": "rehearsal: one step of each phase"})
    model = workload.model()
    for i, phase in enumerate(recipe):
        seed = seed_of(0, i, "rehearsal")
        if isinstance(phase, Train):
            model = rehearse_training(phase, workload, model, target)
        elif isinstance(phase, Transform):
            before = copy.deepcopy(model)
            # Nothing is judged, and nothing of a rehearsal is worth keeping.
            context = dataclasses.replace(make_context(workload, target, seed, [], _silent, examples=8),
                                          score=lambda model: 0.0, recall=lambda key, compute: compute())
            with torch.no_grad():
                after = phase.build(model, phase.plan(model, context)).eval()
            for claim in phase.claims(before, after):
                claim.checked(phase.name)
            model = after
        else:
            rehearse_compiler(phase, workload, model)


def rehearse_training(phase: Train, workload: Workload, model: nn.Module, target: Target) -> nn.Module:
    """One optimizer step on a few examples, with every method's hooks."""
    if workload.train is None or workload.loss is None:
        raise ThriftyError(f"{workload.name} has no training set or no loss, so {phase} cannot train it")
    given = {**vars(phase), "batch_size": phase.batch_size or workload.batch_size}
    settings = Train(*given.pop("methods"), **given)  # of the training itself, for methods that look ahead
    most = min(settings.batch_size or 1, 8, length(workload.train))
    data = workload.train if settings.packing else Subset(workload.train, range(most))  # what fits with what, all say
    loader = make_loader(data, most, 0, workload.collate, settings.packing, workload.loss)
    session = Fit(model, list(phase.methods), workload.loss, steps=1, settings=settings, forward=workload.forward,
                  device=target.device, teachers=lambda text: workload.model().eval(),
                  aside=lambda examples, passed: loader.again(examples, 0).batches(passed))
    loader.check(session)
    session.step(next(loader.batches()))
    for name, claim in session.claims():
        claim.checked(name)
    return session.finish()


def rehearse_compiler(compiler: Compiler, workload: Workload, model: nn.Module) -> None:
    """A compiler is rehearsed by what it needs and by the graph that every compiler starts from."""
    missing = type(compiler).missing()
    if missing is not None:
        raise ThriftyError(missing)
    capture(model.eval(), workload.example(1), {} if compiler.pads else workload.served_shapes)


def _silent(event: Mapping[str, Any]) -> None:
    """Nothing is told of a rehearsal's steps."""
