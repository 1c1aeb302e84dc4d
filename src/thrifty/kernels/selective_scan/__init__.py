"""Mamba-1's selective scan: a state for each channel, whose decay the token decides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from thrifty.errors import ThriftyError
from thrifty.kernels.exporting import exporting
from thrifty.kernels.selective_scan import cpu, naive, parallel


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *,
                   initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The outputs of a sequence and the state behind it.

        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T        y_t = h_t C_t + D x_t

    Args:
        x: [batch, tokens, d].
        dt: [batch, tokens, d], 0 or more, as `thrifty.kernels.ssd.time_steps` gives it.
        A: [d, n], below 0.
        B, C: [batch, tokens, n].
        D: [d], or None for 0.
        initial: the state at the start, [batch, d, n]; zeros where None.

    Returns:
        (y, as x is; the last state [batch, d, n] in dt's precision).

    Raises:
        ThriftyError: sizes that do not fit each other.

    >>> x, dt, A, B = torch.randn(1, 5, 4), torch.rand(1, 5, 4), -torch.rand(4, 8), torch.randn(1, 5, 8)
    >>> y, state = selective_scan(x, dt, A, B, B)
    >>> y.shape, state.shape
    (torch.Size([1, 5, 4]), torch.Size([1, 4, 8]))

    Source: "Mamba", Gu and Dao 2023, arXiv:2312.00752, section 3.
    """
    batch, length, width = x.shape
    size = A.shape[-1]
    wanted = {"dt": (dt, (batch, length, width)), "A": (A, (width, size)), "B": (B, (batch, length, size)),
              "C": (C, (batch, length, size)), "D": (D, (width,)), "initial": (initial, (batch, width, size))}
    for name, (given, shape) in wanted.items():
        if given is not None and given.shape != shape:
            raise ThriftyError(f"x {tuple(x.shape)} and A {tuple(A.shape)} need {name} {shape}, but it is {tuple(given.shape)}")
    dt = dt if dt.dtype == torch.float64 else dt.float()
    if exporting() or torch.jit.is_tracing():
        return parallel.scan(x, dt, A, B, C, D, initial)
    y, state = _scan(x, dt, A, B, C, D, initial)
    return y, state


def selective_step(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
                   D: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One token: (y [batch, d], the state [batch, d, n] after it). Arguments as `selective_scan`, without tokens."""
    y, state = naive.step(state, x.to(state.dtype), dt.to(state.dtype), A.to(state.dtype), B, C,
                          None if D is None else D.to(state.dtype))
    return y.to(x.dtype), state


@torch.library.custom_op("thrifty::selective_scan", mutates_args=())
def _scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
          initial: Tensor | None) -> tuple[Tensor, Tensor]:
    return cpu.forward(x, dt, A, B, C, D, initial)


@_scan.register_fake
def _(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), dt.new_empty(x.shape[0], *A.shape)


@torch.library.custom_op("thrifty::selective_scan_backward", mutates_args=())
def _backward(by_y: Tensor, by_final: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
              initial: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, ddt, dA, dB, dC, dD, dinitial = cpu.backward(by_y, by_final, x, dt, A, B, C, D, initial)
    return dx, ddt, dA, dB, dC, dD, dinitial.clone()


@_backward.register_fake
def _(by_y: Tensor, by_final: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
      initial: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, ddt, dB, dC = (torch.empty_like(v, memory_format=torch.contiguous_format) for v in (x, dt, B, C))
    return dx, ddt, dt.new_empty(A.shape), dB, dC, dt.new_empty(x.shape[2]), dt.new_empty(by_final.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, by_y: Tensor, by_final: Tensor) -> tuple[Tensor | None, ...]:
    x, dt, A, B, C, D, initial = ctx.saved_tensors
    dx, ddt, dA, dB, dC, dD, dinitial = _backward(by_y, by_final, x, dt, A, B, C, D, initial)
    return (dx, ddt, dA.to(A.dtype), dB, dC, None if D is None else dD.to(D.dtype),
            None if initial is None else dinitial.to(initial.dtype))


_scan.register_autograd(_gradients, setup_context=_keep)


@register_flop_formula(torch.ops.thrifty.selective_scan)
def _(x: Any, dt: Any, A: Any, *args: Any, **kwargs: Any) -> int:
    """Two multiply-adds for each number of a state, and one for what adds to it."""
    return 6 * x[0] * x[1] * x[2] * A[1]


@register_flop_formula(torch.ops.thrifty.selective_scan_backward)
def _(by_y: Any, by_final: Any, x: Any, dt: Any, A: Any, *args: Any, **kwargs: Any) -> int:
    return 15 * x[0] * x[1] * x[2] * A[1]
