"""The most memory that a rank takes in a step, predicted by one process's step, against what the system counted on ranks."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.distributed.ranks import together
from tests.training.distributed.trainings import Sgd
from thrifty import AdamW, CrossEntropy, Train
from thrifty.recipes.ranks import Alone, Ranks
from thrifty.recipes.registry import method_class
from thrifty.training.distributed.parallel import local
from thrifty.training.distributed.replay import Group, grouped, peak, sizes
from thrifty.training.optimizers.optimizer import state_bytes
from thrifty.training.session import TrainingSession
from thrifty.training.trace import Event, Trace, traced

STAGES = ("", "ddp", "zero1", "zero2", "zero3")
SHAPES = ((768, 6, 64), (512, 4, 2048))
"""Width, blocks, examples of a rank: parameters weigh most, activations weigh most."""
CONFIGURATIONS = [(stage, shape, optimizer) for stage in STAGES for shape in SHAPES for optimizer in (0, 1)]


def net(width: int, blocks: int) -> nn.Module:
    torch.manual_seed(0)
    row = [nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
           for _ in range(blocks)]
    return nn.Sequential(nn.Linear(100, width), nn.Sequential(*row), nn.Linear(width, 50))


def session_of(ranks: Ranks, stage: str, shape: tuple[int, int, int], optimizer: int) -> tuple[TrainingSession, Any]:
    methods: list[Any] = [(AdamW(), Sgd())[optimizer]]
    if stage:
        methods.append(method_class(stage)(**({"reshard": "always"} if stage == "zero3" else {})))
    session = TrainingSession(net(*shape[:2]), methods, CrossEntropy(), steps=9, ranks=ranks, settings=Train(clip=None))
    return session, ((torch.randn(shape[2], 100),), torch.arange(shape[2]) % 50)


def highest(call: Any) -> int:
    """Bytes that the process holds at most while something runs, above what it held before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def measured(ranks: Ranks) -> list[float]:
    """The most bytes of each configuration."""
    found = []
    for stage, shape, optimizer in CONFIGURATIONS:
        session, batch = session_of(ranks if stage else Alone(), stage, shape, optimizer)
        for _ in range(2):
            session.step(batch)
        session.optimizer.zero_grad(set_to_none=True)
        lasting = sum(local(p.data).nbytes for p in session.model.parameters())
        lasting += sum(local(x).nbytes for state in session.optimizer.state.values() for x in state.values()
                       if isinstance(x, torch.Tensor))
        if stage == "ddp":
            lasting += sum(p.nbytes for p in session.model.parameters())  # the buckets stay
        found.append(lasting + highest(lambda s=session, b=batch: s.step(b)))
        del session
    return found


def predicted() -> list[float]:
    found = []
    for stage, shape, optimizer in CONFIGURATIONS:
        session, batch = session_of(Alone(), "", shape, optimizer)
        session.step(batch)
        session.optimizer.zero_grad(set_to_none=True)
        groups, modules = grouped(session.model)
        trace = traced(session.model, groups, modules, lambda s=session, b=batch: s.step(b))
        found.append(peak(trace, sizes(groups), stage, 2 if stage else 1, state_bytes(session.optimizer))[1])
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system's high-water mark cannot be reset here")
def test_what_is_predicted_is_what_ranks_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed goes back to the system, and is not counted
    want = together(tmp_path, 2, __name__, "measured", timeout=300).found("measured")
    errors = []
    for configuration, guess, first, second in zip(CONFIGURATIONS, predicted(), *want, strict=True):
        errors.append((guess - max(first, second)) / max(first, second))
        taken = f"{first / 1e6:.1f} and {second / 1e6:.1f} taken"
        print(f"{configuration}: {guess / 1e6:.1f} MB predicted, {taken}, {errors[-1]:+.1%}")
    assert len(errors) >= 20
    assert statistics.median(map(abs, errors)) <= 0.05 and max(map(abs, errors)) <= 0.10


def test_a_step_is_played_again_as_a_stage_has_it() -> None:
    def passing(amount: int, key: int) -> Event:
        return Event("bytes", amount, key=key)

    trace = Trace([Event("enter", 0, 0), Event("enter", 0, 1), passing(1000, 1), Event("enter", 0, 2), passing(2000, 2),
                   passing(40, 3), Event("gradient", 10, 2), passing(-2000, 2), passing(40, 4), Event("gradient", 10, 1),
                   passing(-1000, 1), passing(80, 5), Event("gradient", 20, 0)], {3, 4, 5})
    groups = [Group(20, 0), Group(10, 0), Group(10, 5)]
    has, most = peak(trace, groups, "", 1, 8.0)
    assert most == has.parameters + has.state + 3040 and (has.parameters, has.state) == (180, 320)
    assert peak(trace, groups, "ddp", 2, 8.0)[1] == 180 + 320 + 160 + 3000
    # Everything gathered (180), both activations, and the last block's gradients sent: whole, copied, and this rank's part.
    assert peak(trace, groups, "zero2", 2, 8.0)[1] == 90 + 160 + 180 + 3000 + 40 + 40 + 20
    assert peak(trace, groups, "zero3", 2, 8.0, gathered=2)[1] == 90 + 160 + 90 + 3000 + 40 + 40 + 20


def test_what_autocast_makes_of_weights_is_no_ranks_that_gathers_few_bits() -> None:
    events = [Event("enter", 0, 0), Event("bytes", 50, key=1), Event("bytes", 300, key=2), Event("gradient", 20, 0)]
    step = Trace(events, {2}, {1})
    assert peak(step, [Group(20, 0)], "ddp", 2, 8.0)[1] == 80 + 160 + 80 + 50
    assert peak(step, [Group(20, 0)], "zero2", 2, 8.0)[1] == 40 + 80 + 80 + 50 + 80 + 80 + 40
    assert peak(step, [Group(20, 0)], "zero2", 2, 8.0, gathered=2)[1] == 40 + 80 + 40 + 80 + 80 + 40
    layer, x = nn.Linear(64, 64, bias=False), torch.randn(8, 64)

    def forward() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            layer(x).float().sum().backward()

    trace = traced(layer, [list(layer.parameters())], [layer], forward)
    assert [event.amount for event in trace.events if event.key in trace.casts and event.amount > 0] == [2 * 64 * 64]


def test_a_step_that_is_watched_gives_back_what_it_took() -> None:
    session, batch = session_of(Alone(), "", (16, 3, 4), 0)
    session.step(batch)
    session.optimizer.zero_grad(set_to_none=True)
    groups, modules = grouped(session.model)
    assert [len(group) for group in groups] == [4, 6, 6, 6] and modules[0] is session.model
    trace = traced(session.model, groups, modules, lambda: session.step(batch))
    assert [event.group for event in trace.events if event.kind == "enter"] == [0, 1, 2, 3]
    numbers = sum(event.amount for event in trace.events if event.kind == "gradient")
    assert numbers == sum(p.numel() for p in session.model.parameters())
    left: dict[int, int] = {}
    for event in trace.events:
        if event.kind == "bytes":
            left[event.key] = left.get(event.key, 0) + event.amount
    kept = {key for key, amount in left.items() if amount}
    assert trace.gradients <= kept and len(trace.gradients) == 22
    assert sum(left[key] for key in kept - trace.gradients) < 4096  # the loss, and what the optimizer counts
