"""Two linear layers and the divergence of what they give without all logits at once: distillation over a large vocabulary."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from thrifty.errors import ThriftyError
from thrifty.kernels.linear_divergence import fused, naive
from thrifty.kernels.linear_divergence.naive import Kind
from thrifty.kernels.linear_loss import LOGITS_BYTES, scaled


def linear_divergence(hidden: Tensor, weight: Tensor, taught: Tensor, teaching: Tensor, *, kind: Kind = "forward_kl",
                      temperature: float = 1.0, beta: float = 0.5, valid: Tensor | None = None,
                      logits_bytes: int = LOGITS_BYTES) -> Tensor:
    """Sum of the divergences of a student's distributions, softmax(hidden weight^T / T), from a teacher's.

        forward_kl: KL(p || q)    reverse_kl: KL(q || p)    jsd: beta KL(p || m) + (1 - beta) KL(q || m)

    p is the teacher's, q the student's, m = beta p + (1 - beta) q. The gradient of a row's logits is known as soon as the row
    is: it is written over them, and both gradients are made in the forward pass, for part of the rows at a time.
    Precision as that of `linear_cross_entropy`. To keep the gradient's size at T other than 1, multiply by T^2.

    Args:
        hidden: [..., h], the student's last hidden states.
        weight: [v, h], of its head.
        taught: [..., k], the teacher's at the same places; it gets no gradient.
        teaching: [v, k], of its head; nor does it.
        kind: "forward_kl", "reverse_kl" or "jsd".
        temperature: T > 0.
        beta: for "jsd", in (0, 1).
        valid: [...] bool, the places that count; all where None.
        logits_bytes: most that logits take at once, the student's and the teacher's.

    Returns:
        a float32 scalar; `torch.autograd` knows its gradients, once.

    Raises:
        ThriftyError: sizes that do not fit each other, another kind, T or beta out of range.

    >>> x, w = torch.randn(6, 4, requires_grad=True), torch.randn(10, 4, requires_grad=True)
    >>> t, head = torch.randn(6, 8), torch.randn(10, 8)
    >>> loss = linear_divergence(x, w, t, head)
    >>> kl = torch.nn.functional.kl_div((x @ w.T).log_softmax(-1), (t @ head.T).softmax(-1), reduction="sum")
    >>> torch.allclose(loss, kl)
    True

    Source: "Liger Kernel", Hsu et al. 2024, arXiv:2410.10989, section 3.2; the divergences as in "On-Policy Distillation of
    Language Models", Agarwal et al. 2023, arXiv:2306.13649.
    """
    if kind not in get_args(Kind) or not temperature > 0 or not 0 < beta < 1:
        raise ThriftyError(f"kind={kind!r}, temperature={temperature}, beta={beta}: a divergence is one of "
                           f"{', '.join(get_args(Kind))}, its temperature above 0, its beta in (0, 1)")
    device = hidden.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    rows, lessons = hidden.reshape(-1, hidden.shape[-1]), taught.detach().reshape(-1, taught.shape[-1])
    counts = torch.ones(len(rows), dtype=torch.bool, device=hidden.device) if valid is None else valid.reshape(-1).bool()
    if not len(rows) == len(lessons) == len(counts) or weight.shape[1:] != rows.shape[1:]:
        raise ThriftyError(f"hidden {tuple(hidden.shape)}, taught {tuple(taught.shape)} and valid ({len(counts)} positions) must "
                           f"have the same positions, and weight must have {hidden.shape[-1]} columns but is "
                           f"{tuple(weight.shape)}")
    if len(weight) != len(teaching) or teaching.shape[1:] != lessons.shape[1:]:
        raise ThriftyError(f"the student's head {tuple(weight.shape)} and the teacher's {tuple(teaching.shape)} must share one "
                           f"vocabulary, and the teacher's must have {taught.shape[-1]} columns: cut what only pads the larger "
                           "one")
    if low == torch.float64:
        return naive.linear_divergence(rows, weight, lessons, teaching.detach(), counts, kind, temperature, beta)
    part = fused.rows_at_once(len(rows), len(weight), low.itemsize, logits_bytes)
    graded = torch.is_grad_enabled()
    found: Tensor = _LinearDivergence.apply(rows, weight, lessons, teaching.detach(), counts, kind, temperature, beta, part, low,
                                            graded and hidden.requires_grad, graded and weight.requires_grad)
    return found


class _LinearDivergence(torch.autograd.Function):
    """As that of `linear_cross_entropy`: gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, taught: Tensor, teaching: Tensor, valid: Tensor, kind: Kind,
                temperature: float, beta: float, part: int, low: torch.dtype, for_hidden: bool, for_weight: bool) -> Tensor:
        x, w, t, head = (each.to(low).contiguous() for each in (hidden, weight, taught, teaching))
        total, by_hidden, by_weight = fused.linear_divergence(x, w, t, head, valid, kind, temperature, beta, part, for_hidden,
                                                              for_weight, weight.dtype == torch.float32)
        ctx.gradients = by_hidden, by_weight
        ctx.kinds, ctx.for_hidden, ctx.for_weight = (hidden.dtype, weight.dtype), for_hidden, for_weight
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return (*scaled(ctx, upstream[0]), *[None] * 10)
