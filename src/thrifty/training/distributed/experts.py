"""Expert parallelism: each rank of a team holds some of a layer's experts, and passes through them the tokens that go there."""

from __future__ import annotations

import dataclasses
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from thrifty.architectures.moe.layer import MoE, collected, gated, lowered, mixed
from thrifty.architectures.moe.router import Routing
from thrifty.kernels.grouped_linear import grouped_linear
from thrifty.kernels.grouped_linear.held import Stack
from thrifty.training.distributed.parallel import local


class _Entering(torch.autograd.Function):
    """The same on every rank; each rank has a part of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        whole = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole, group=ctx.group)
        return whole, None


class _Leaving(torch.autograd.Function):
    """The sum of what the ranks give; its gradient is the same on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        whole = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


@final
@dataclasses.dataclass(frozen=True)
class OwnExperts:
    """What a `MoE` does with its tokens whose experts a team shards.

    Every member has the same tokens and the same routing. It passes through its own experts the tokens that go there; the
    weighted sums are added over the team. No token is dropped, and the result is that of one process.

    Args:
        group: the team.
        index: of this rank in it: it holds the experts from ``index * n`` on, n of them.
    """

    group: Any
    index: int

    def __call__(self, x: Tensor, routing: Routing, gate_up: Stack, down: Stack) -> Tensor:
        """[tokens, width], the same on every member."""
        assert isinstance(gate_up, Tensor) and isinstance(down, Tensor)  # what trains is no integer
        gate_up, down = local(gate_up), local(down)
        x, weights = (_Entering.apply(each, self.group) for each in (lowered(x), routing.weights))
        first, own = self.index * len(gate_up), len(gate_up)
        low, high = (int(routing.ends[i - 1]) if i else 0 for i in (first, first + own))
        if high > low:
            rows = x[routing.order[low:high] // routing.chosen.shape[1]]
            ends = routing.ends[first:first + own] - low
            y = grouped_linear(gated(grouped_linear(rows, gate_up.to(x.dtype), ends)), down.to(x.dtype), ends)
        else:  # a gradient of 0 all the same: all members of all teams have one
            y = x[:0] + 0 * (gate_up.sum() + down.sum()).to(x.dtype)
        around = [y.new_zeros(low, y.shape[1]), y, y.new_zeros(len(routing.order) - high, y.shape[1])]
        return _Leaving.apply(collected(torch.cat(around), dataclasses.replace(routing, weights=weights)), self.group)


def share_out(layer: MoE, mesh: DeviceMesh) -> None:
    """Leave each rank its experts, in place.

    Args:
        layer: the same on all ranks; their number divides its experts.
        mesh: the team, of one dimension.
    """
    for name in ("gate_up", "down"):
        p = getattr(layer, name)
        setattr(layer, name, nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)], src_data_rank=None),
                                          requires_grad=p.requires_grad))
    layer.mix = OwnExperts(mesh.get_group(), mesh.get_local_rank())


def put_back(layer: MoE) -> None:
    """The layer as it was; its parameters are whole again already."""
    layer.mix = mixed
