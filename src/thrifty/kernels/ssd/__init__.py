"""Mamba-2's state-space dual: one pass over a sequence as products of matrices, and one token with a state of fixed size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from thrifty.errors import ThriftyError
from thrifty.kernels.exporting import exporting
from thrifty.kernels.ssd import chunked, cpu, naive

Limits = tuple[float, float]


def time_steps(dt: Tensor, bias: Tensor | None = None, limits: Limits = (0.0, float("inf")),
               mask: Tensor | None = None) -> Tensor:
    """dt <- clamp(softplus(dt + bias), limits), and 0 where the mask is False, in float32 (float64 where dt is).

    A token of dt = 0 leaves every state as it is, so padding must have it.

    Args:
        dt: [..., heads].
        bias: [heads].
        limits: least and greatest step.
        mask: [...] bool, True where there is a token.

    >>> time_steps(torch.tensor([[0.0, 9.0]]), limits=(0.0, 1.0))
    tensor([[0.6931, 1.0000]])
    """
    dt = dt if dt.dtype == torch.float64 else dt.float()
    dt = F.softplus(dt if bias is None else dt + bias.to(dt.dtype))
    if limits != (0.0, float("inf")):
        dt = dt.clamp(*limits)
    return dt if mask is None else dt * mask[..., None].to(dt.dtype)


def ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *, initial: Tensor | None = None,
        offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The outputs of a sequence and the state behind it.

        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T        y_t = h_t C_t + D x_t

    A custom operator with gradients, so that `torch.compile` keeps it whole; `torch.export` sees it as products of matrices, of
    which an artifact needs no more than torch. Sums are float32, or float64 where dt is.

    Args:
        x: [batch, tokens, heads, p]; any number of tokens, none too.
        dt: [batch, tokens, heads], 0 or more, as `time_steps` gives it.
        A: [heads], below 0.
        B, C: [batch, tokens, groups, n]; heads divide into groups in order.
        D: [heads], or None for 0.
        initial: states at the start, [batch, heads, p, n]; zeros where None. With ``offsets``, one for each sequence.
        offsets: where sequences begin in a batch of one row, and where the last ends: [sequences + 1] int64. None where each row
            is a sequence.

    Returns:
        (y, as x is; the last states [batch or sequences, heads, p, n] in dt's precision).

    Raises:
        ThriftyError: sizes that do not fit each other.

    >>> x, dt, A = torch.randn(1, 5, 4, 8), torch.rand(1, 5, 4), -torch.rand(4)
    >>> B, C = torch.randn(1, 5, 2, 16), torch.randn(1, 5, 2, 16)
    >>> y, state = ssd(x, dt, A, B, C)
    >>> _, before = ssd(x[:, :4], dt[:, :4], A, B[:, :4], C[:, :4])
    >>> last, _ = ssd_step(before, x[:, 4], dt[:, 4], A, B[:, 4], C[:, 4])
    >>> torch.allclose(last, y[:, 4], atol=1e-5)
    True

    Source: "Transformers are SSMs", Dao and Gu 2024, arXiv:2405.21060, section 6 and listing 1.
    """
    _check(x, dt, A, B, C, D, initial, offsets)
    dt = dt if dt.dtype == torch.float64 else dt.float()
    if exporting() or torch.jit.is_tracing():
        if offsets is not None:
            raise ThriftyError("several sequences in a row cannot be exported: give each a row of its own")
        return chunked.ssd(x, dt, A, B, C, D, initial)
    y, final = _ssd(x, dt, A, B, C, D, initial, offsets)
    return y, final


def ssd_step(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
             D: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One token: (y [batch, heads, p], the state after it), at a cost that does not depend on the tokens before.

    Args:
        state: [batch, heads, p, n].
        x: [batch, heads, p].
        dt: [batch, heads].
        A, D: [heads].
        B, C: [batch, groups, n].

    Source: as `ssd`.
    """
    y, state = naive.step(state, x.to(state.dtype), dt.to(state.dtype), A.to(state.dtype), B, C,
                          None if D is None else D.to(state.dtype))
    return y.to(x.dtype), state


def _check(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, initial: Tensor | None,
           offsets: Tensor | None) -> None:
    batch, length, heads, width = x.shape
    if dt.shape != x.shape[:3] or A.shape != (heads,) or (D is not None and D.shape != (heads,)):
        raise ThriftyError(f"x {tuple(x.shape)} needs dt {tuple(x.shape[:3])} and A and D of {heads} heads, but got dt "
                           f"{tuple(dt.shape)}, A {tuple(A.shape)}, D {None if D is None else tuple(D.shape)}")
    if B.shape != C.shape or B.shape[:2] != (batch, length) or heads % B.shape[2]:
        raise ThriftyError(f"x {tuple(x.shape)} needs B and C [{batch}, {length}, groups, n] with groups that divide its {heads} "
                           f"heads, but got {tuple(B.shape)} and {tuple(C.shape)}")
    if offsets is not None and batch != 1:
        raise ThriftyError(f"offsets mark the sequences of one row, but x has {batch}: join the rows first")
    count = batch if offsets is None else len(offsets) - 1
    if initial is not None and initial.shape != (count, heads, width, B.shape[-1]):
        raise ThriftyError(f"initial states must be {(count, heads, width, B.shape[-1])}, but are {tuple(initial.shape)}")


# -- the operator -----------------------------------------------------------------------------------------------


def _implementation(x: Tensor) -> Any:
    if x.device.type == "cuda" and x.dtype != torch.float64:
        from thrifty.kernels.ssd import triton  # Triton comes with torch for CUDA alone

        return triton
    return cpu  # torch's operations: slow on other devices, and right


@torch.library.custom_op("thrifty::ssd", mutates_args=())
def _ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, initial: Tensor | None,
         offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    y, final = _implementation(x).forward(x, dt, A, B, C, D, initial, offsets)
    return y, final


@_ssd.register_fake
def _(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, initial: Tensor | None,
      offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    count = x.shape[0] if offsets is None else offsets.shape[0] - 1
    return (torch.empty_like(x, memory_format=torch.contiguous_format),
            dt.new_empty(count, x.shape[2], x.shape[3], B.shape[3]))


@torch.library.custom_op("thrifty::ssd_backward", mutates_args=())
def _ssd_backward(by_y: Tensor, by_final: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
                  initial: Tensor | None, offsets: Tensor | None
                  ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, ddt, dA, dB, dC, dD, dinitial = _implementation(x).backward(by_y, by_final, x, dt, A, B, C, D, initial, offsets)
    return dx, ddt, dA, dB, dC, dD, dinitial


@_ssd_backward.register_fake
def _(by_y: Tensor, by_final: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
      initial: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, ddt, dB, dC = (torch.empty_like(v, memory_format=torch.contiguous_format) for v in (x, dt, B, C))
    return dx, ddt, dt.new_empty(A.shape), dB, dC, dt.new_empty(A.shape), dt.new_empty(by_final.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, by_y: Tensor, by_final: Tensor) -> tuple[Tensor | None, ...]:
    x, dt, A, B, C, D, initial, offsets = ctx.saved_tensors
    dx, ddt, dA, dB, dC, dD, dinitial = _ssd_backward(by_y, by_final, x, dt, A, B, C, D, initial, offsets)
    return (dx, ddt, dA.to(A.dtype), dB, dC, None if D is None else dD.to(D.dtype),
            None if initial is None else dinitial.to(initial.dtype), None)


_ssd.register_autograd(_gradients, setup_context=_keep)


def flops(tokens: int, heads: int, groups: int, width: int, size: int, chunk: int = cpu.CHUNK) -> int:
    """FLOPs of one forward pass: C B^T once per group; for each head the product of the scores, and two with the state.

    >>> flops(tokens=64, heads=2, groups=1, width=4, size=8)
    147456
    """
    return 2 * tokens * (groups * chunk * size + heads * (chunk * width + 2 * width * size))


@register_flop_formula(torch.ops.thrifty.ssd)
def _(x: Any, dt: Any, A: Any, B: Any, *args: Any, **kwargs: Any) -> int:
    return flops(x[0] * x[1], x[2], B[2], x[3], B[3])


@register_flop_formula(torch.ops.thrifty.ssd_backward)
def _(by_y: Any, by_final: Any, x: Any, dt: Any, A: Any, B: Any, *args: Any, **kwargs: Any) -> int:
    """Twice the forward pass, and its states once more."""
    return 2 * flops(x[0] * x[1], x[2], B[2], x[3], B[3]) + 2 * x[0] * x[1] * x[2] * x[3] * B[3]
