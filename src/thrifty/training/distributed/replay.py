"""A watched step, played again as each stage would have it: the most bytes that a rank holds at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import nn

from thrifty.training.distributed.memory import Held, held
from thrifty.training.distributed.sharding import apart
from thrifty.training.trace import Trace

KEPT_AT_ONCE = 2
"""Blocks that `zero3` holds gathered at once: the one that runs, and the one that is gathered ahead of it."""


@final
@dataclass(frozen=True)
class Group:
    """Parameters that are gathered together: numbers with a gradient, and without."""

    trained: int
    frozen: int

    @property
    def all(self) -> int:
        return self.trained + self.frozen


def grouped(model: nn.Module) -> tuple[list[list[nn.Parameter]], list[nn.Module]]:
    """The parameters as `shard` gathers them, what stands around the blocks first, and where each group is entered."""
    blocks = apart(model)
    inside = {id(p) for block in blocks for p in block.parameters()}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [rest, *(list(block.parameters()) for block in blocks)], [model, *blocks]


def sizes(groups: Sequence[Sequence[nn.Parameter]]) -> list[Group]:
    return [Group(sum(p.numel() for p in group if p.requires_grad), sum(p.numel() for p in group if not p.requires_grad))
            for group in groups]


def peak(trace: Trace, groups: Sequence[Group], stage: str, ranks: int, state: float, *, gathered: int = 4,
         offload: bool = False) -> tuple[Held, float]:
    """What a rank holds, and the most it holds at once in a step.

    Args:
        trace: of a step of one process on this rank's part of a batch.
        groups: as they are gathered together, what stands around the blocks first.
        stage: "" is one process; "zero3" gives blocks back between the passes.
        ranks: how many.
        state: bytes of the optimizer's state a trained parameter.
        gathered: bytes of a gathered parameter.
        offload: whether what lasts lies in the host's memory.
    """
    trained, frozen = sum(group.trained for group in groups), sum(group.frozen for group in groups)
    has = held(stage, trained, ranks, frozen=frozen, state=state, gathered=gathered, group=max(group.all for group in groups),
               offload=offload)
    sharded = stage not in ("", "ddp") and ranks > 1
    lasting = has.parameters + has.state + (has.gradients if stage == "ddp" and ranks > 1 else 0.0)
    passing, own, whole, most = 0.0, 0.0, [0.0] * len(groups), 0.0
    there: list[int] = []  # groups that are gathered, the oldest first
    left = [group.trained for group in groups]
    elsewhere = set() if stage == "" or ranks == 1 else trace.gradients | (trace.casts if sharded and gathered < 4 else set())
    for event in trace.events:  # gradients stand in buckets or groups, and what is gathered in few bits is cast no more
        if event.kind == "bytes" and event.key not in elsewhere:
            passing += event.amount
        elif event.kind == "enter" and sharded:
            if event.group not in there:
                there.append(event.group)
            if stage == "zero3":
                there = [0] * (0 in there) + [group for group in there if group][-KEPT_AT_ONCE:]
        elif event.kind == "gradient" and sharded:
            if event.group not in there:
                there.append(event.group)
            whole[event.group] += 4.0 * event.amount
            left[event.group] -= event.amount
            if left[event.group] <= 0:
                sent = whole[event.group]  # copied together, added over ranks, and this rank's part is kept
                most = max(most, passing + own + sum(whole) + sent + sent / ranks + _bytes(there, groups, gathered))
                own, whole[event.group] = own + (0.0 if offload else sent / ranks), 0.0
                there = [group for group in there if group != event.group]
        most = max(most, passing + own + sum(whole) + (_bytes(there, groups, gathered) if sharded else 0.0))
    return has, lasting + most


def _bytes(there: Sequence[int], groups: Sequence[Group], gathered: int) -> float:
    return float(sum(groups[index].all for index in there) * gathered)
