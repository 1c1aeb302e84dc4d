"""How strongly each option of a decision counts: from its logits to weights that sum to one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SOFTEST, HARDEST = 5.0, 0.5
"""Temperatures of Gumbel sampling at the first and at the last step."""
LEAST = 1e-3
"""Of a concentration."""


def concentration(logits: Tensor) -> Tensor:
    """elu(a) + 1, above 0: of the Dirichlet distribution."""
    return F.elu(logits) + 1 + LEAST


def mean(kind: str, logits: Tensor) -> Tensor:
    """[options] weights without chance.

    Args:
        kind: "softmax", "dirichlet", "gumbel" or "path".
        logits: [options].
    """
    if kind == "dirichlet":
        found = concentration(logits)
        return found / found.sum()
    return logits.softmax(0)


def drawn(kind: str, logits: Tensor, progress: float) -> Tensor:
    """[options] weights for one step; they carry gradients to the logits.

    - softmax: p = softmax(a).
    - dirichlet: p ~ Dirichlet(elu(a) + 1), by pathwise gradients ("DrNAS", Chen et al. 2021, arXiv:2006.10355).
    - gumbel: p = softmax((a + g) / t), g Gumbel noise, t falling from 5 to 0.5 ("Searching for a robust neural architecture in
      four GPU hours", Dong and Yang 2019, arXiv:1910.04465).
    - path: the one that is largest in that draw, with weight 1 and the gradient of p.

    Args:
        kind: of those.
        logits: [options].
        progress: share of the search that is done.
    """
    if kind == "softmax":
        return logits.softmax(0)
    if kind == "dirichlet":
        return torch.distributions.Dirichlet(concentration(logits)).rsample()  # type: ignore[no-untyped-call, no-any-return]
    temperature = SOFTEST + (HARDEST - SOFTEST) * progress
    noise = -torch.empty_like(logits).exponential_().clamp_min(1e-20).log()
    soft = ((logits + noise) / temperature).softmax(0)
    if kind == "gumbel":
        return soft
    hard = F.one_hot(soft.argmax(), len(soft)).to(soft)
    return hard - soft.detach() + soft


def anchored(logits: Tensor) -> Tensor:
    """KL(Dirichlet(elu(a) + 1) || Dirichlet(1, ..., 1)): what keeps a Dirichlet search exploring."""
    found = concentration(logits)
    own, flat = torch.distributions.Dirichlet(found), torch.distributions.Dirichlet(torch.ones_like(found))  # type: ignore[no-untyped-call]
    return torch.distributions.kl_divergence(own, flat)


def spread(logits: Tensor) -> Tensor:
    """log sum exp(a): its growth is what lets skips run away ("beta-DARTS", Ye et al. 2022, arXiv:2203.01665)."""
    return torch.logsumexp(logits, 0)
