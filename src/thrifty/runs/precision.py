"""Whether few bits pay on this processor: one that lacks their instructions emulates them, many times slower."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable

import torch
from torch import nn

from thrifty.errors import ThriftyError
from thrifty.recipes.phases import Phase, Train
from thrifty.recipes.recipe import Recipe
from thrifty.runs.context import Tell, training_setup
from thrifty.runs.making import made, untrained_teachers
from thrifty.studies.events import Noted
from thrifty.target import Machine, Target
from thrifty.workloads.blame import described
from thrifty.workloads.workload import Workload

REFUSED = 2.0
"""Times as long as fp32: from here on a precision is refused, where it was not forced. Emulation takes 3 to 12 times as long."""
TOLD = 1.05
TRIES = 3
LONG = 2.0
"""Seconds after which one step says enough."""


class SlowerHere(ThriftyError):
    """A precision that this machine computes more slowly than fp32."""


class FailsHere(ThriftyError):
    """A precision in which this machine cannot compute the model's operations."""


def require_precision_pays(workload: Workload, recipe: Recipe, target: Target, machine: Machine, tell: Tell) -> None:
    """Time what runs in few bits of floating point, once in them and once in fp32; say by how much they differ.

    Args:
        workload: of the recipe.
        recipe: its trainings by a method of the slot "precision", and transforms that leave bfloat16, are timed.
        target: what is served on; GPUs have the instructions.
        machine: what is trained on.
        tell: hears of a precision that is slower.

    Raises:
        SlowerHere: one takes `REFUSED` times as long as fp32 or more.
        FailsHere: a step in one fails.
    """
    for phase in recipe:
        ratio = slower(workload, phase, target, machine)
        if ratio >= REFUSED:
            raise SlowerHere(f"{phase} takes {ratio:.1f} times as long as in fp32 on this processor, which "
                             "lacks instructions for its precision: remove that, or run it anyway with --force")
        if ratio > TOLD:
            tell(Noted(f"{phase} takes {ratio:.2f} times as long as in fp32 here"))


def slower(workload: Workload, phase: Phase, target: Target, machine: Machine) -> float:
    """Times as long as fp32 that a phase's precision takes here; 1 where it has none, or on a GPU.

    Args:
        workload: whose model and data are timed.
        phase: a training, or a transform.
        target: what is served on.
        machine: what is trained on.

    Raises:
        FailsHere: a training step fails. For example, oneDNN has no bfloat16 LSTM for processors with AVX2 alone.
    """
    if isinstance(phase, Train):
        narrow = machine.device == "cpu" and any(m.card.slot == "precision" for m in phase.methods)
        return training_ratio(workload, phase, machine) if narrow else 1.0
    return serving_ratio(workload) if target.device == "cpu" and "bfloat16" in phase.provides else 1.0


def training_ratio(workload: Workload, phase: Train, machine: Machine) -> float:
    """Seconds of a step by the phase over those without its precision."""
    plain = phase.but(methods=tuple(method for method in phase.methods if method.card.slot != "precision"))
    model = made(workload)
    steps: list[Callable[[], object]] = []
    for each in (phase, plain):
        setup = training_setup(workload, each, 0, machine.device, untrained_teachers(workload))
        session, batch = setup.session(copy.deepcopy(model), steps=2 * TRIES + 2), next(setup.loader.batches())
        steps.append(functools.partial(session.step, batch))
    few, exact = steps

    def tried() -> None:
        try:
            few()
        except RuntimeError as error:
            raise FailsHere(f"{phase} fails in its precision on this processor ({described(error)}): remove it") from error

    return _ratio(tried, exact)


def serving_ratio(workload: Workload) -> float:
    """Seconds of a request through the eager module in bfloat16 over those in fp32."""
    exact, example = made(workload).eval(), workload.example(1)
    halves = copy.deepcopy(exact).to(torch.bfloat16)
    given = tuple(x.to(torch.bfloat16) if x.is_floating_point() else x for x in example)

    def call(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        with torch.no_grad():
            model(*inputs)

    try:
        return _ratio(lambda: call(halves, given), lambda: call(exact, example))
    except RuntimeError:  # of mixed types, which what builds the phase converts
        return 1.0


def _ratio(few: Callable[[], object], exact: Callable[[], object]) -> float:
    """The least processor time of a few calls each, in turns: what else runs here counts little. The first are not counted."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for attempt in range(TRIES + 1):
        for call, found in zip((few, exact), seconds, strict=True):
            began = time.process_time()
            call()
            found.append(time.process_time() - began)
        if attempt and seconds[0][-1] > LONG:
            break
    return min(seconds[0][1:]) / min(seconds[1][1:])
