"""What a training will take on each rank, before it runs: bytes by kind, the most at once, a step's seconds. The verb `plan`."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any, final

import torch

from thrifty.errors import ThriftyError
from thrifty.recipes.phases import Train
from thrifty.recipes.recipe import Recipe
from thrifty.runs.context import training_setup
from thrifty.runs.job import spread
from thrifty.runs.making import made
from thrifty.runs.preflight import check_ranks, check_recipe, resolve
from thrifty.training.distributed.memory import Held, free
from thrifty.training.distributed.replay import grouped, peak, sizes
from thrifty.training.optimizers.optimizer import state_bytes
from thrifty.training.trace import traced
from thrifty.workloads.workload import Workload

STAGES = ("ddp", "zero1", "zero2", "zero3")
ROOM = 0.95
"""Share of a device's memory that may be planned for: allocators waste some."""


@final
@dataclass(frozen=True)
class Stage:
    """One way to spread a training.

    Args:
        name: "one process", or a method's with what matters here.
        held: bytes of a rank by kind.
        peak: the most bytes that a rank holds at once; activations are what is left beside what lasts.
        fits: whether that is there, and what is offloaded in the host's memory.
    """

    name: str
    held: Held
    peak: float
    fits: bool


@final
@dataclass(frozen=True)
class Planned:
    """What a training will take.

    Args:
        phase: its text.
        ranks: that it is spread over.
        examples: of a batch on each rank.
        seconds: of a step's arithmetic on one rank, without what is sent; measured on this device.
        room: bytes that a rank has.
        stages: every way to spread it.
        chosen: the recipe's own.
    """

    phase: str
    ranks: int
    examples: int
    seconds: float
    room: float
    stages: tuple[Stage, ...]
    chosen: str

    @property
    def advice(self) -> str:
        """Which stage to take: the first that fits sends least."""
        fitting = [stage.name for stage in self.stages if stage.fits and (self.ranks == 1 or stage.name != "one process")]
        if not fitting:
            return "no stage fits: use more ranks, a smaller batch, accumulate=, or checkpointing=blocks"
        return f"{fitting[0]} fits and communicates least" if self.ranks > 1 else "one process is enough"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"advice": self.advice}


def plan(workload: str | Workload, recipe: str | Recipe, nproc: int = 1, device: str = "cpu") -> tuple[Planned, ...]:
    """Predict each training of a recipe, from three steps of one process on one rank's part of a batch.

    Args:
        workload: a workload, or a reference that `load_workload` takes.
        recipe: text or value.
        nproc: ranks.
        device: "cpu" or "cuda".

    Raises:
        ThriftyError: the recipe cannot run, or a batch cannot be divided.
    """
    definition, parsed = resolve(workload), Recipe.of(recipe)
    check_recipe(definition, parsed, device)
    check_ranks(definition, parsed, nproc)
    trainings = [phase for phase in parsed if isinstance(phase, Train)]
    if not trainings:
        raise ThriftyError(f"{parsed} trains nothing: there is no step to plan")
    return tuple(planned(definition, phase, nproc if spread(phase) else 1, device) for phase in trainings)


def planned(workload: Workload, phase: Train, ranks: int, device: str) -> Planned:
    """Predict one training; see `plan`."""
    own = next((method for method in phase.methods if method.card.slot == "parallelism"), None)
    if getattr(own, "tensor", 1) > 1:
        raise ThriftyError(f"{own} splits matrices, which is not predicted yet: plan it without tensor, for as many ranks as "
                           "there are teams: it takes no more than that")
    alone = phase.but(methods=tuple(method for method in phase.methods if method is not own))
    whole = training_setup(workload, alone, 0, device, lambda text: made(workload).eval())
    part = dataclasses.replace(whole, most=-(-whole.size // ranks))
    session = part.session(made(workload), steps=4)
    batches = part.loader.batches()
    session.step(next(batches))  # the optimizer's state is made, and methods look at the first pass
    seconds = []
    for _ in range(2):
        batch, began = next(batches), time.perf_counter()
        session.step(batch)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    batch = next(batches)
    session.optimizer.zero_grad(set_to_none=True)
    groups, modules = grouped(session.model)
    trace = traced(session.model, groups, modules, lambda: session.step(batch))
    room, host = ROOM * free(device) / (ranks if device == "cpu" else 1), ROOM * free("cpu") / ranks
    state, gathered = state_bytes(session.optimizer), session.products.itemsize
    stages = []
    for name, offload in ways(ranks, device):
        has, most = peak(trace, sizes(groups), name, ranks if name else 1, state, gathered=gathered, offload=offload)
        stages.append(Stage(_called(name, offload), has, most, most <= room and has.host <= host))
    chosen = _called(own.name if own is not None else "", bool(getattr(own, "offload", False)))
    return Planned(str(phase), ranks, part.size, min(seconds), room, tuple(stages), chosen)


def ways(ranks: int, device: str) -> list[tuple[str, bool]]:
    """(stage, whether it is offloaded) of each way to spread a training, what sends least first.

    >>> ways(1, "cuda"), [stage for stage, offload in ways(2, "cuda") if offload]
    ([('', False)], ['zero1', 'zero2', 'zero3'])
    """
    spread_out = [(stage, False) for stage in STAGES if ranks > 1]
    return [("", False), *spread_out, *((stage, True) for stage, _ in spread_out[1:] if device == "cuda")]


def _called(stage: str, offload: bool) -> str:
    return f"{stage}(offload=True)" if offload else stage or "one process"
