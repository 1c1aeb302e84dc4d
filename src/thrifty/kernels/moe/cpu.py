"""The layer and its gradients of torch's operations: any device, any precision."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from thrifty.kernels.grouped_linear.cpu import forward as product
from thrifty.kernels.grouped_linear.cpu import outer


def forward(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, order: Tensor, ends: Tensor,
            keep: bool) -> tuple[Tensor, Tensor]:
    """(y, what enters the gates where ``keep``, else an empty tensor)."""
    gates = product(x[order // weights.shape[1]], gate_up, ends)
    gate, up = gates.chunk(2, -1)
    y = product(F.silu(gate) * up, down, ends) * _sorted(weights, order).to(x.dtype)
    return _summed(y, order, weights), gates if keep else x.new_empty(0)


def backward(dy: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, order: Tensor, ends: Tensor, gates: Tensor,
             needs: list[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, gate_up, down and weights; an empty tensor for what is not needed."""
    token, weight = order // weights.shape[1], _sorted(weights, order).to(x.dtype)
    gate, up = gates.chunk(2, -1)
    share, activated = gate.sigmoid(), F.silu(gate) * up
    sent = dy[token]
    by_hidden = product(sent, down.transpose(1, 2), ends)
    by_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    by_weights.view(-1)[order] = (by_hidden * activated).sum(1).to(weights.dtype)
    by_hidden = by_hidden * weight
    by_gates = torch.cat([by_hidden * up * share * (1 + gate * (1 - share)), by_hidden * F.silu(gate)], 1)
    return (_summed(product(by_gates, gate_up.transpose(1, 2), ends), order, weights) if needs[0] else x.new_empty(0),
            outer(by_gates, x[token], ends) if needs[1] else x.new_empty(0),
            outer(sent, activated * weight, ends) if needs[2] else x.new_empty(0), by_weights)


def _sorted(weights: Tensor, order: Tensor) -> Tensor:
    return weights.reshape(-1)[order][:, None]


def _summed(y: Tensor, order: Tensor, weights: Tensor) -> Tensor:
    """A token's rows, added in the order of choice."""
    parts = torch.empty_like(y)
    parts[order] = y
    return parts.unflatten(0, weights.shape).sum(1)
