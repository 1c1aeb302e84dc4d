"""What a router may be asked to pay in training: for an uneven load, and for large logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def auxiliary(logits: Tensor, counts: Tensor, score: str) -> Tensor:
    """E sum_e f_e P_e: 1 where the load is even, at most E.

    f is each expert's share of all choices, which has no gradient; P the mean over tokens of its share of a token's scores.

    Args:
        logits: [tokens, experts].
        counts: [experts], choices that went to each.
        score: "softmax", or "sigmoid", whose scores are divided by their sum first.

    Source: "Switch Transformers", Fedus et al. 2021, arXiv:2101.03961, equation 4; sigmoid: "DeepSeek-V3", 2024,
    arXiv:2412.19437, equations 17 to 20, over a batch instead of a sequence.

    >>> float(auxiliary(torch.zeros(6, 4), torch.tensor([3, 3, 3, 3]), "softmax"))
    1.0
    """
    logits = _wide(logits)
    shares = logits.softmax(-1) if score == "softmax" else F.normalize(logits.sigmoid(), p=1, dim=-1)
    load = counts.to(shares.dtype) / counts.sum().clamp(min=1)
    return len(counts) * (load * shares.mean(0)).sum()


def z(logits: Tensor, score: str) -> Tensor:
    """The mean over tokens of the squared log-partition: (log sum_e exp x_e)^2 of softmax; of sigmoid, where each expert is a
    distribution of its own, the mean over experts of log(1 + exp x_e)^2.

    Source: "ST-MoE", Zoph et al. 2022, arXiv:2202.08906, equation 5.

    >>> round(float(z(torch.zeros(2, 4), "softmax")), 4), round(float(z(torch.zeros(2, 4), "sigmoid")), 4)
    (1.9218, 0.4805)
    """
    logits = _wide(logits)
    return (torch.logsumexp(logits, -1) if score == "softmax" else F.softplus(logits)).square().mean()


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
