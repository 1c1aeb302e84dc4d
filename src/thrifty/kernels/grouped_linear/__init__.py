"""A linear layer for each group of rows: what mixtures of experts are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from thrifty.errors import ThriftyError
from thrifty.kernels.grouped_linear import cpu, cuda
from thrifty.kernels.grouped_linear.held import Held, Stack


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply each group of rows by a matrix of its own.

        y_n = W_e x_n    for ends_{e-1} <= n < ends_e

    A custom operator with gradients, so that `torch.compile` keeps it whole. An expert without rows costs nothing and has a
    gradient of exactly 0. On CUDA nothing waits for the host where x is bfloat16.

    Args:
        x: [rows, inputs], a group's rows one after another.
        weight: [groups, outputs, inputs], of x's precision.
        ends: [groups] int64, where each group's rows end; the last is the number of rows.

    Returns:
        [rows, outputs].

    Raises:
        ThriftyError: sizes or precisions that do not match.

    >>> x, weight = torch.randn(5, 3), torch.randn(2, 4, 3)
    >>> y = grouped_linear(x, weight, torch.tensor([2, 5]))
    >>> torch.allclose(y[:2], x[:2] @ weight[0].T) and torch.allclose(y[2:], x[2:] @ weight[1].T, atol=1e-6)
    True
    """
    if x.ndim != 2 or weight.ndim != 3 or x.shape[1] != weight.shape[2] or ends.shape != weight.shape[:1]:
        raise ThriftyError(f"x {tuple(x.shape)} [rows, inputs], weight {tuple(weight.shape)} [groups, outputs, inputs] and ends "
                           f"{tuple(ends.shape)} [groups] do not match")
    if x.dtype != weight.dtype:
        raise ThriftyError(f"x is {x.dtype} and weight {weight.dtype}: give both the same precision")
    return _grouped_linear(x, weight, ends)  # type: ignore[no-any-return]


def by_group(x: Tensor, stack: Stack, ends: Tensor) -> Tensor:
    """`grouped_linear` in x's precision, whatever the matrices are kept as."""
    return stack.product(x, ends) if isinstance(stack, Held) else grouped_linear(x, stack.to(x.dtype), ends)


def _implementation(x: Tensor) -> Any:
    return cuda if x.is_cuda and x.dtype == torch.bfloat16 else cpu


@torch.library.custom_op("thrifty::grouped_linear", mutates_args=())
def _grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return _implementation(x).forward(x, weight, ends)  # type: ignore[no-any-return]


@_grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("thrifty::grouped_outer", mutates_args=())
def _grouped_outer(by_y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """[groups, outputs, inputs]: the sum over each group's rows of dy_n x_n^T."""
    return _implementation(x).outer(by_y, x, ends)  # type: ignore[no-any-return]


@_grouped_outer.register_fake
def _(by_y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.shape[0], by_y.shape[1], x.shape[1])


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, by_y: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, ends = ctx.saved_tensors
    by_y = by_y.contiguous()
    by_x = _grouped_linear(by_y, weight.transpose(1, 2), ends) if ctx.needs_input_grad[0] else None
    by_weight = _grouped_outer(by_y, x, ends) if ctx.needs_input_grad[1] else None
    return by_x, by_weight, None


_grouped_linear.register_autograd(_backward, setup_context=_remember)


def _outer_backward(ctx: Any, by_weight: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    by_y, x, ends = ctx.saved_tensors
    return (_grouped_linear(x, by_weight, ends) if ctx.needs_input_grad[0] else None,
            _grouped_linear(by_y, by_weight.transpose(1, 2), ends) if ctx.needs_input_grad[1] else None, None)


_grouped_outer.register_autograd(_outer_backward, setup_context=_remember)


@register_flop_formula([torch.ops.thrifty.grouped_linear, torch.ops.thrifty.grouped_outer], get_raw=True)
def _flops(a: Tensor, b: Tensor, ends: Tensor, *args: Any, out_val: Tensor, **kwargs: Any) -> int:
    """2 for each multiply-add; of either operator: rows x outputs x inputs."""
    rows = a.shape[0]
    outputs, inputs = out_val.shape[-2:] if out_val.ndim == 3 else (out_val.shape[1], a.shape[1])
    return 2 * rows * outputs * inputs
