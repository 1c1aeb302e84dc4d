"""The linear layers of a model's own feed-forward code, once for each expert."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from thrifty.architectures.moe.layer import collected, sent, spread
from thrifty.architectures.moe.router import Router, Routing
from thrifty.kernels.exporting import exporting
from thrifty.kernels.grouped_linear import by_group
from thrifty.kernels.grouped_linear.held import matrices


@final
class Meeting:
    """Where the first layer of a feed-forward network leaves the routing that its others need.

    The layers are called by code that is not ours, which hands on tensors alone.
    """

    def __init__(self) -> None:
        self.routing: Routing | None = None


@final
class ExpertUp(nn.Module):
    """In the place of a linear layer that enters a feed-forward network: a token becomes what its experts make of it.

        [..., inputs] -> [..., top_k * hidden]

    Whatever the model's code does to single numbers (an activation, a product with another such layer's outputs) it then does to
    each expert's.

    Args:
        weight: [experts, hidden, inputs].
        bias: [experts, 1, hidden] or None.
        meeting: shared with the other layers of the network.
        router: of the layer that is called first; None in others.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, meeting: Meeting, router: Router | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.meeting, self.router = meeting, router

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        if self.router is not None:
            self.meeting.routing = self.router(tokens)
        routing = self.meeting.routing
        assert routing is not None, "the layer with the router is called first"
        if exporting():
            every = torch.einsum("td,ehd->teh", tokens, matrices(self.weight, tokens.dtype))
            if self.bias is not None:
                every = every + self.bias[:, 0]
            y = every.gather(1, routing.chosen[..., None].expand(-1, -1, every.shape[-1]))
            return y.reshape(*x.shape[:-1], -1)
        rows = sent(tokens, routing)
        y = by_group(rows, self.weight, routing.ends)
        if self.bias is not None:
            y = y + self.bias[routing.chosen.reshape(-1)[routing.order], 0].to(y.dtype)
        return y[routing.back].reshape(*x.shape[:-1], -1)

    def extra_repr(self) -> str:
        experts, hidden, inputs = self.weight.shape
        return f"{inputs}, {hidden}, experts={experts}, bias={self.bias is not None}"


@final
class ExpertDown(nn.Module):
    """In the place of the linear layer that leaves a feed-forward network: the weighted sum of what the experts give.

        [..., top_k * hidden] -> [..., outputs]

    Args:
        weight: [experts, outputs, hidden].
        bias: [outputs], added once, or None.
        meeting: shared with the other layers of the network.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, meeting: Meeting) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.meeting = meeting

    def forward(self, x: Tensor) -> Tensor:
        routing, self.meeting.routing = self.meeting.routing, None
        assert routing is not None, "a layer that enters the network is called first"
        rows = x.reshape(*routing.chosen.shape, -1)
        if exporting():
            every = torch.zeros(len(rows), len(self.weight), rows.shape[-1], dtype=rows.dtype, device=rows.device)
            every = every.scatter(1, routing.chosen[..., None].expand_as(rows), rows)
            shares = spread(routing.chosen, routing.weights, len(self.weight)).to(rows.dtype)
            y = torch.einsum("teh,edh->td", every * shares[..., None], matrices(self.weight, rows.dtype))
        else:
            rows = rows.flatten(0, 1)[routing.order]
            if torch.is_autocast_enabled(rows.device.type):
                rows = rows.to(torch.get_autocast_dtype(rows.device.type))
            y = collected(by_group(rows, self.weight, routing.ends), routing)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.reshape(*x.shape[:-1], -1)

    def extra_repr(self) -> str:
        experts, outputs, hidden = self.weight.shape
        return f"{hidden}, {outputs}, experts={experts}, bias={self.bias is not None}"
