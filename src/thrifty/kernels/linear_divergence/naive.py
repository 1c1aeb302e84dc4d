"""The math of two linear layers and the divergence of what they give, in torch's own operations: any device, any precision."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["forward_kl", "reverse_kl", "jsd"]


def linear_divergence(hidden: Tensor, weight: Tensor, taught: Tensor, teaching: Tensor, valid: Tensor, kind: Kind,
                      temperature: float, beta: float) -> Tensor:
    """sum over valid i of D(p_i, q_i), p_i = softmax(taught_i teaching^T / T), q_i = softmax(hidden_i weight^T / T).

    Args:
        hidden: [n, h]; weight: [v, h], the student's.
        taught: [n, k]; teaching: [v, k], the teacher's.
        valid: [n] bool.
        kind: D: KL(p || q), KL(q || p), or beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.
        temperature: T.
        beta: of "jsd".

    Returns:
        a scalar, in float32 or better, which torch can differentiate.

    >>> x, w = torch.randn(3, 4), torch.randn(5, 4)
    >>> float(linear_divergence(x, w, x, w, torch.ones(3, dtype=torch.bool), "forward_kl", 1.0, 0.5))
    0.0
    """
    log_q, log_p = (_log_softmax(x @ w.t(), temperature) for x, w in ((hidden, weight), (taught, teaching)))
    match kind:
        case "forward_kl":
            lost = _kl(log_p, log_q)
        case "reverse_kl":
            lost = _kl(log_q, log_p)
        case "jsd":
            log_m = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
            lost = beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)
    return lost.where(valid, 0.0).sum()


def divergences(student: Tensor, teacher: Tensor, valid: Tensor, kind: Kind, temperature: float, beta: float,
                gradient: bool) -> Tensor:
    """Divergences of rows; where asked, the student's logits become the gradient of their sum, in place.

        KL(p || q): (q - p) / T        KL(q || p) = L: q (log q - log p - L) / T
        JSD: (1 - beta) q (log q - log m - KL(q || m)) / T

    Args:
        student, teacher: [n, v] logits.
        valid: [n] bool; rows that are not have no loss and no gradient.

    Returns:
        [n] float32.
    """
    log_q, log_p = _log_softmax(student, temperature), _log_softmax(teacher, temperature)
    q = log_q.exp()
    match kind:
        case "forward_kl":
            lost, slope = _kl(log_p, log_q), q - log_p.exp()
        case "reverse_kl":
            lost = _kl(log_q, log_p)
            slope = torch.where(q > 0, q * (log_q - log_p - lost[:, None]), 0.0)
        case "jsd":
            log_m = (beta * log_p.exp() + (1 - beta) * q).log()
            apart = _kl(log_q, log_m)
            lost = beta * _kl(log_p, log_m) + (1 - beta) * apart
            slope = torch.where(q > 0, (1 - beta) * q * (log_q - log_m - apart[:, None]), 0.0)
    if gradient:
        student.copy_((slope / temperature).where(valid[:, None], 0.0))
    return lost.where(valid, 0.0).float()


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(wide / temperature, -1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
