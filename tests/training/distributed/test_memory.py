"""Bytes that ranks hold, counted on them, against the formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.distributed.ranks import together
from thrifty import AdamW, CrossEntropy, Train
from thrifty.recipes.ranks import Ranks
from thrifty.recipes.registry import method_class
from thrifty.training.distributed.memory import held
from thrifty.training.distributed.parallel import local
from thrifty.training.session import TrainingSession

STAGES = ("ddp", "zero1", "zero2", "zero3")


def net() -> nn.Module:
    """Rows that neither 2 nor 3 ranks divide."""
    blocks = [nn.Sequential(nn.Linear(257, 257), nn.Tanh()) for _ in range(4)]
    return nn.Sequential(nn.Linear(65, 257), nn.Sequential(*blocks), nn.Linear(257, 31))


def counted(ranks: Ranks) -> dict[str, Any]:
    """Bytes by kind after a step, and the most parameters that the model showed at once within it."""
    found = {}
    for stage in STAGES:
        made = method_class(stage)(**({"reshard": "always"} if stage == "zero3" else {}))
        session = TrainingSession(net(), [AdamW(), made], CrossEntropy(), steps=4, ranks=ranks, settings=Train())  # type: ignore[list-item]
        whole: list[int] = []
        for module in session.model.modules():
            if isinstance(module, nn.Tanh):
                module.register_forward_hook(lambda *_, m=session.model, w=whole: w.append(
                    sum(p.nbytes for p in m.parameters() if type(p.data) is Tensor)))
        for _ in range(2):
            session.step(((torch.randn(6, 65),), torch.arange(6)))
        parameters = [p for group in session.optimizer.param_groups for p in group["params"]]
        states = [value for state in session.optimizer.state.values() for value in state.values() if value.numel() > 1]
        found[stage] = {"parameters": sum(local(p.data).nbytes for p in parameters),
                        "gradients": sum(local(p.grad).nbytes for p in parameters),
                        "state": sum(local(x).nbytes for x in states), "whole": max(whole)}
    return found


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_hold_what_the_formulas_say(tmp_path: Path, count: int) -> None:
    trained = sum(p.numel() for p in net().parameters())
    of_ranks = together(tmp_path, count, __name__, "counted").found("counted")
    for stage in STAGES:
        want = held(stage, trained, count)
        for kind in ("parameters", "gradients", "state"):
            most = max(found[stage][kind] for found in of_ranks)  # the rank that holds most is the one that must fit
            assert most == pytest.approx(getattr(want, kind), rel=0.02), (stage, kind)
    block, first = 257 * 257 + 257, 65 * 257 + 257 + 257 * 31 + 31
    whole = {stage: of_ranks[0][stage]["whole"] for stage in STAGES}
    assert whole["ddp"] == whole["zero1"] == whole["zero2"] == 4 * trained
    assert whole["zero3"] == 4 * (block + first)  # one block, and what stands around the blocks


def test_formulas() -> None:
    billions = 7_500_000_000
    assert [round(held(stage, billions, 64).lasting / 1e9, 1) for stage in STAGES] == [120.0, 1.9, 1.9, 1.9]
    assert held("zero1", 100, 4).passing == 800 and held("zero2", 100, 4, group=10).passing == 440
    assert held("zero3", 100, 4, group=10, gathered=2).passing == 60
    assert held("zero3", 100, 1) == held("", 100, 1) == held("ddp", 100, 8)
    assert held("ddp", 10, 2, frozen=90).lasting == 400 + 40 + 80
