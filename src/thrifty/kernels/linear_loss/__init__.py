"""A linear layer and its cross entropy without all logits at once: what the head of a language model costs least in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thrifty.errors import ThriftyError
from thrifty.kernels.linear_loss import fused, naive

LOGITS_BYTES = 2**30


def linear_cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor, *, ignore_index: int = -100, float8: bool = False,
                         logits_bytes: int = LOGITS_BYTES) -> Tensor:
    """Sum of the cross entropies of hidden @ weight^T against target, over targets other than ``ignore_index``.

        sum_i log sum_j exp(x_i . w_j) - x_i . w_{y_i}

    The gradient of row i's logits is softmax - onehot, known as soon as the row is: it is written over the logits, and both
    gradients are made in the forward pass, for part of the rows at a time. Products run in autocast's precision where it is
    on, else in hidden's; the loss is float32, and the parts of the weight's gradient are added in the weight's precision.

    Args:
        hidden: x, [..., h].
        weight: w, [v, h].
        target: y, [...] int64.
        float8: the products in 8 bits: h, v and the number of rows in multiples of 16, and a GPU of compute capability 8.9
            or more (a CPU emulates it).
        logits_bytes: most that logits take at once; fewer parts are faster, more take less memory.

    Returns:
        a float32 scalar; `torch.autograd` knows its gradients, once.

    Raises:
        ThriftyError: sizes that do not fit each other, or 8 bits.

    >>> x, w = torch.randn(6, 4, requires_grad=True), torch.randn(10, 4, requires_grad=True)
    >>> y = torch.tensor([0, 1, 2, -100, 9, 5])
    >>> loss = linear_cross_entropy(x, w, y)
    >>> torch.allclose(loss, torch.nn.functional.cross_entropy(x @ w.T, y, reduction="sum"))
    True

    Source: "Cut Your Losses in Large-Vocabulary Language Models", Wijmans et al. 2024, arXiv:2411.09009; "Liger Kernel",
    Hsu et al. 2024, arXiv:2410.10989, section 3.2 (gradients in the forward pass).
    """
    kind = hidden.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    rows, labels = hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1)
    if len(labels) != len(rows) or weight.shape[1] != rows.shape[1]:
        raise ThriftyError(f"hidden {tuple(hidden.shape)} needs targets {tuple(hidden.shape[:-1])} and a weight of "
                           f"{hidden.shape[-1]} columns, but got {tuple(target.shape)} and {tuple(weight.shape)}")
    if float8 and (len(rows) % 16 or rows.shape[1] % 16 or len(weight) % 16):
        raise ThriftyError(f"8-bit matrix multiplications need multiples of 16, but hidden is {tuple(rows.shape)} and weight "
                           f"{tuple(weight.shape)}: pad them, or remove float8")
    if low == torch.float64:
        return naive.linear_cross_entropy(rows, weight, labels, ignore_index)
    part = fused.part_rows(len(rows), len(weight), low.itemsize, logits_bytes)
    graded = torch.is_grad_enabled()
    found: Tensor = _LinearLoss.apply(rows, weight, labels, ignore_index, part, float8, low,
                                      graded and hidden.requires_grad, graded and weight.requires_grad)
    return found


class _LinearLoss(torch.autograd.Function):
    """Gradients are made in the forward pass; all that is left is to multiply them with what comes from above."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, ignore_index: int, part: int, float8: bool,
                low: torch.dtype, for_hidden: bool, for_weight: bool) -> Tensor:
        total, by_hidden, by_weight = fused.linear_loss(hidden.to(low).contiguous(), weight.to(low).contiguous(), target,
                                                        ignore_index, part, float8, for_hidden, for_weight,
                                                        weight.dtype == torch.float32)
        ctx.gradients = by_hidden, by_weight
        ctx.kinds, ctx.for_hidden, ctx.for_weight = (hidden.dtype, weight.dtype), for_hidden, for_weight
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return (*scaled(ctx, upstream[0]), None, None, None, None, None, None, None)


def scaled(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradients that a forward pass left, times what comes from above: in their own place, for they are as large as the
    weight, and handed over, so that they become the parameter's without a copy. A second pass back finds none."""
    if ctx.gradients is None:
        raise ThriftyError("the gradients of this loss were released in the first backward pass: compute the loss again")
    (by_hidden, by_weight), ctx.gradients = ctx.gradients, None
    return (by_hidden.mul_(upstream).to(ctx.kinds[0]) if ctx.for_hidden else None,
            by_weight.mul_(upstream).to(ctx.kinds[1]) if ctx.for_weight else None)
