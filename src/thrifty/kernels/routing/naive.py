"""From the definition: scores of all experts, the highest of each token, and the choices sorted."""

from __future__ import annotations

import torch
from torch import Tensor


def route(logits: Tensor, bias: Tensor, top_k: int, score: str, weighting: str,
          scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(chosen, weights, order, counts), as `thrifty.kernels.routing.route`; the gradient of weights is autograd's."""
    scores = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
    chosen = (scores.detach() + bias).topk(top_k, dim=-1).indices
    weights = scores.gather(1, chosen)
    match weighting:
        case "shares":
            weights = scale * weights / weights.sum(-1, keepdim=True).clamp_min(1e-20)
        case "scores":
            weights = scale * weights
        case "ones":
            weights = 1 + (weights - weights.detach())
    flat = chosen.reshape(-1)
    counts = flat.new_zeros(logits.shape[1]).scatter_add_(0, flat, torch.ones_like(flat))
    return chosen, weights, flat.argsort(stable=True), counts
