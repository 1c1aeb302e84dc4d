"""Parameters, gradients and state in the host's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from tests.training.distributed import trainings
from tests.training.distributed.ranks import together
from thrifty import AdamW, CrossEntropy, Train, Zero2, Zero3
from thrifty.errors import ThriftyError
from thrifty.recipes.ranks import Alone, Ranks
from thrifty.search.planner import ways
from thrifty.training.distributed.memory import held
from thrifty.training.distributed.parallel import local
from thrifty.training.distributed.replay import Group, peak
from thrifty.training.distributed.sharding import shard
from thrifty.training.session import TrainingSession
from thrifty.training.trace import Event, Trace


def by_hand(ranks: Ranks) -> list[torch.Tensor]:
    """Losses of a sharded model whose rows are offloaded, and of one whose rows are not: on a CPU both lie in one memory."""
    found, data = [], trainings.text()
    for offload in (True, False):
        model = trainings.Tied()
        shard(model, init_device_mesh("cpu", (ranks.count,)), reshard=True, offload=offload)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.ndim], lr=0.1, foreach=False)
        losses = []
        for step in range(4):
            tokens, target = (x[8 * step:8 * step + 8].tensor_split(ranks.count)[ranks.index] for x in data.tensors)
            loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), target.flatten(), ignore_index=-100)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        found.append(torch.stack(losses))
    return found


def on_gpus(ranks: Ranks) -> dict[str, Any]:
    """A training by each stage, and where what lasts lies after it."""
    found: dict[str, Any] = {}
    for method in (Zero3(offload=True), Zero2(offload=True), Zero3()):
        session = TrainingSession(trainings.Tied(), [AdamW(lr=3e-3), method], CrossEntropy(), steps=4, ranks=ranks,
                                  device="cuda", settings=Train(accumulate=2))
        data = trainings.text()
        losses = []
        for step in range(4):
            tokens, target = (x[12 * step:12 * step + 12].tensor_split(ranks.count)[ranks.index] for x in data.tensors)
            losses.append(session.step(((tokens,), target)).cpu())
        sharded = [p for group in session.optimizer.param_groups for p in group["params"] if p.ndim]
        places = {local(p.data).device.type for p in sharded}
        places |= {local(x).device.type for p in sharded for x in session.optimizer.state[p].values()}
        for name, claim in session.claims():
            claim.checked(name)
        session.finish()
        found[str(method)] = (torch.stack(losses), places)
    return found


def test_an_offloaded_model_trains_what_another_does(tmp_path: Path) -> None:
    for offloaded, other in together(tmp_path, 2, __name__, "by_hand").found("by_hand"):
        assert torch.equal(offloaded, other) and offloaded[-1] < offloaded[0]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two ranks need two GPUs")
def test_two_gpus_train_alike_where_parameters_are_offloaded(tmp_path: Path) -> None:
    found = together(tmp_path, 2, __name__, "on_gpus", gpus=True).found("on_gpus")[0]
    want, places = found["zero3"]
    assert places == {"cuda"}
    for name in ("zero3(offload=True)", "zero2(offload=True)"):
        torch.testing.assert_close(found[name][0], want, rtol=1e-5, atol=0)
        assert found[name][1] == {"cpu"}


def test_there_is_nothing_to_offload_on_a_cpu_or_with_one_rank() -> None:
    with pytest.raises(ThriftyError, match=r"zero3\(offload=True\) runs on cuda but this is cpu"):
        TrainingSession(trainings.Tied(), [AdamW(), Zero3(offload=True)], CrossEntropy(), steps=1, ranks=Alone())
    with pytest.raises(ThriftyError, match=r"zero2\(offload=True\) moves what ranks shard.*remove offload"):
        Zero2(offload=True).require_ranks(1)
    Zero2(offload=True).require_ranks(2)


def test_what_lasts_is_the_hosts() -> None:
    plain, offloaded = (held("zero3", 1000, 4, group=100, offload=offload) for offload in (False, True))
    assert offloaded.lasting == 0 and offloaded.host == plain.lasting and offloaded.passing == plain.passing
    assert held("zero3", 1000, 1, offload=True) == held("", 1000, 1)
    trace = Trace([Event("enter", 0, 0), Event("bytes", 1000, key=1), Event("gradient", 20, 0)], set())
    most = {offload: peak(trace, [Group(20, 0)], "zero3", 2, 8.0, offload=offload)[1] for offload in (False, True)}
    assert most[False] - most[True] == 20 * (4 + 8) / 2
    assert ways(2, "cpu") == [("", False), ("ddp", False), ("zero1", False), ("zero2", False), ("zero3", False)]
    assert ways(2, "cuda")[5:] == [("zero1", True), ("zero2", True), ("zero3", True)]
