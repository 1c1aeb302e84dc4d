"""The experts of a mixture: tokens gathered, multiplied, gated, multiplied and added up, without copies of them in between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from thrifty.errors import ThriftyError
from thrifty.kernels.hardware import runs_triton
from thrifty.kernels.moe import cpu

HALVES = (torch.bfloat16, torch.float16)


def fits(x: Tensor) -> bool:
    """Whether kernels of our own are for such tokens: 16 bits on a GPU.

    >>> fits(torch.zeros(1, 16, dtype=torch.bfloat16))
    False
    """
    return x.is_cuda and x.dtype in HALVES


def moe(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, order: Tensor, ends: Tensor) -> Tensor:
    """Pass each token through its experts.

        y_t = sum over choices k of t of weights_tk W_down,e (silu(W_gate,e x_t) * W_up,e x_t)    for e the expert of tk

    A custom operator with gradients, so that `torch.compile` keeps it whole. Sums are float32 and added in the order of choice,
    the same each time. An expert without rows costs nothing and has a gradient of exactly 0. Where the kernels `fits`, nothing
    waits for the host.

    Args:
        x: [tokens, width].
        gate_up: [experts, 2 hidden, width], gate above up, of x's precision; strides may be any.
        down: [experts, width, hidden], likewise.
        weights: [tokens, top_k].
        order: [tokens * top_k] int64, choices (token * top_k + k) sorted by expert.
        ends: [experts] int64, where each expert's choices end in that order.

    Returns:
        [tokens, width].

    Raises:
        ThriftyError: sizes or precisions that do not fit each other; a gradient of a gradient.

    >>> x, gate_up, down = torch.randn(3, 4), torch.randn(2, 6, 4), torch.randn(2, 4, 3)
    >>> order, ends = torch.tensor([0, 2, 1]), torch.tensor([2, 3])  # tokens 0 and 2 to the first expert
    >>> y = moe(x, gate_up, down, torch.ones(3, 1), order, ends)
    >>> gate, up = (gate_up[1] @ x[1]).chunk(2)
    >>> torch.allclose(y[1], down[1] @ (torch.nn.functional.silu(gate) * up), atol=1e-5)
    True

    Source: gathers in the loads: "Scattered Mixture-of-Experts Implementation", Tan et al. 2024, arXiv:2403.08245; the weights'
    gradient from that of the hidden units: "SonicMoE", Guo et al. 2025, arXiv:2512.14080.
    """
    experts, twice, width = gate_up.shape
    if (x.ndim != 2 or x.shape[1] != width or down.shape != (experts, width, twice // 2) or ends.shape != (experts,)
            or weights.ndim != 2 or len(weights) != len(x) or order.shape != (weights.numel(),)):
        raise ThriftyError(
            f"x {tuple(x.shape)} [tokens, width], gate_up {tuple(gate_up.shape)} [experts, 2 hidden, width], down "
            f"{tuple(down.shape)} [experts, width, hidden], weights {tuple(weights.shape)} [tokens, top_k], order "
            f"{tuple(order.shape)} [tokens * top_k] and ends {tuple(ends.shape)} [experts] do not fit each other")
    if not x.dtype == gate_up.dtype == down.dtype:
        raise ThriftyError(f"x is {x.dtype}, gate_up {gate_up.dtype} and down {down.dtype}: give all one precision")
    keep = torch.is_grad_enabled() and any(v.requires_grad for v in (x, gate_up, down, weights))
    y: Tensor = _moe(x, gate_up, down, weights, order, ends, keep)[0]
    return y


def _implementation(x: Tensor) -> Any:
    if fits(x) and runs_triton(x.device):
        from thrifty.kernels.moe import launch  # Triton comes with torch for CUDA alone

        return launch
    return cpu


@torch.library.custom_op("thrifty::moe", mutates_args=())
def _moe(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, order: Tensor, ends: Tensor,
         keep: bool) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(x):  # Triton launches on the current device
        y, gates = _implementation(x).forward(x, gate_up, down, weights, order, ends, keep)
    return y, gates


@_moe.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, order: Tensor, ends: Tensor,
      keep: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((order.shape[0], gate_up.shape[1]) if keep else (0,))


@torch.library.custom_op("thrifty::moe_backward", mutates_args=())
def _moe_backward(dy: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, order: Tensor, ends: Tensor,
                  gates: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.cuda.device_of(x):
        dx, dgate_up, ddown, dweights = _implementation(x).backward(dy, x, gate_up, down, weights, order, ends, gates, needs)
    return dx, dgate_up, ddown, dweights


@_moe_backward.register_fake
def _(dy: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, order: Tensor, ends: Tensor, gates: Tensor,
      needs: list[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, dgate_up, ddown = (v.new_empty(v.shape if need else (0,))
                           for v, need in zip((x, gate_up, down), needs, strict=True))
    return dx, dgate_up, ddown, weights.new_empty(weights.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # of `gates`, which nobody else gets
    ctx.save_for_backward(*inputs[:6], output[1])


def _gradients(ctx: Any, dy: Tensor | None, by_gates: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 7
    needs = list(ctx.needs_input_grad)
    *found, by_weights = _moe_backward(dy, *ctx.saved_tensors, needs[:3])
    return (*(v if need else None for v, need in zip((*found, by_weights), needs[:4], strict=True)), None, None, None)


_moe.register_autograd(_gradients, setup_context=_remember)


def _refuse(ctx: Any, *upstream: Tensor) -> None:
    raise ThriftyError("gradients of gradients are not known of the experts' kernels: remove create_graph, or compute in "
                       "float32, where the layer takes operators that know them")


_moe_backward.register_autograd(_refuse)


@register_flop_formula(torch.ops.thrifty.moe)
def _(x: Any, gate_up: Any, down: Any, weights: Any, *args: Any, **kwargs: Any) -> int:
    """2 for each multiply-add of the three products."""
    return 6 * weights[0] * weights[1] * down[1] * down[2]


@register_flop_formula(torch.ops.thrifty.moe_backward)
def _(dy: Any, x: Any, gate_up: Any, down: Any, weights: Any, order: Any, ends: Any, gates: Any, needs: Any, *args: Any,
      **kwargs: Any) -> int:
    """The product for hidden units, and those asked for: of tokens and of both weights."""
    asked = 1 + 2 * needs[0] + 2 * needs[1] + needs[2]
    return 2 * asked * weights[0] * weights[1] * down[1] * down[2]  # type: ignore[no-any-return]
