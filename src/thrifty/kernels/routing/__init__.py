"""Which experts tokens go to, on a GPU: scores, choices, weights and the sorted order in a few launches."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from thrifty.kernels.hardware import runs_triton

MOST = 1024
"""Experts that a program holds the scores of."""


def fits(x: Tensor, experts: int) -> bool:
    """Whether the kernels take such tokens: on a GPU with Triton, not in float64, of not too many experts.

    >>> fits(torch.zeros(1, 16), 8)
    False
    """
    return runs_triton(x.device) and x.dtype != torch.float64 and experts <= MOST


def logits(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight^T in float32, whatever the two are.

    Where x is bfloat16 on a GPU, the product is of bfloat16 parts that add up to the weight, with float32 sums: as exact as a
    product in float32, which takes many times longer.

    Args:
        x: [tokens, width].
        weight: [experts, width].

    >>> logits(torch.ones(2, 3).bfloat16(), torch.ones(4, 3)).dtype
    torch.float32
    """
    if x.is_cuda and x.dtype == torch.bfloat16:
        found: Tensor = _logits(x, weight)
        return found
    return torch.nn.functional.linear(x.float(), weight.float())


def route(logits: Tensor, bias: Tensor, top_k: int, score: str, weighting: str,
          scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The experts that each token goes to; of equal scores, the earlier.

    A custom operator with a gradient of the weights, so that `torch.compile` keeps it whole. Nothing waits for the host.

    Args:
        logits: [tokens, experts] float32, on a GPU.
        bias: [experts], added to scores for the choice alone.
        top_k: experts of a token.
        score, weighting, scale: as `thrifty.architectures.moe.Router` has them.

    Returns:
        (chosen [tokens, top_k] int64, weights [tokens, top_k] float32, order [tokens * top_k] int64: the choices sorted by
        expert, of one expert's the earlier first, counts [experts] int64, ends [experts] int64: where each expert's choices end).
    """
    chosen, weights, order, counts, ends = _route(logits, bias, top_k, score, weighting, scale)
    return chosen, weights, order, counts, ends


# -- scores -----------------------------------------------------------------------------------------------------


def _parts(x: Tensor, count: int) -> list[Tensor]:
    """bfloat16 tensors whose sum is x: each has eight digits more."""
    found = []
    for _ in range(1 if x.dtype == torch.bfloat16 else count):
        found.append(x.bfloat16())
        x = x - found[-1]
    return found


@torch.library.custom_op("thrifty::router_logits", mutates_args=())
def _logits(x: Tensor, weight: Tensor) -> Tensor:
    parts = _parts(weight, 3)
    made = torch.mm(x, torch.cat(parts).T, out_dtype=torch.float32)
    return made if len(parts) == 1 else made.unflatten(1, (len(parts), -1)).sum(1)


@_logits.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32)


@torch.library.custom_op("thrifty::router_logits_backward", mutates_args=())
def _logits_backward(by: Tensor, x: Tensor, weight: Tensor, for_x: bool, for_weight: bool) -> tuple[Tensor, Tensor]:
    high, low = _parts(by, 2)
    parts = _parts(weight, 2)
    by_x = torch.cat([high, low, high][:len(parts) + 1], 1) @ torch.cat([parts[0], *parts]) if for_x else x.new_empty(0)
    if not for_weight:
        return by_x, x.new_empty(0)
    by_weight = torch.mm(torch.cat([high, low], 1).T, x, out_dtype=torch.float32).unflatten(0, (2, -1)).sum(0)
    return by_x, by_weight.to(weight.dtype)


@_logits_backward.register_fake
def _(by: Tensor, x: Tensor, weight: Tensor, for_x: bool, for_weight: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if for_x else (0,)), (
        weight.new_empty(weight.shape) if for_weight else x.new_empty(0))


def _remember_logits(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _logits_gradients(ctx: Any, by: Tensor) -> tuple[Tensor | None, Tensor | None]:
    for_x, for_weight = ctx.needs_input_grad[:2]
    by_x, by_weight = _logits_backward(by, *ctx.saved_tensors, for_x, for_weight)
    return by_x if for_x else None, by_weight if for_weight else None


_logits.register_autograd(_logits_gradients, setup_context=_remember_logits)


@register_flop_formula(torch.ops.thrifty.router_logits)
def _(x: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * x[0] * x[1] * weight[0]  # type: ignore[no-any-return]


@register_flop_formula(torch.ops.thrifty.router_logits_backward)
def _(by: Any, x: Any, weight: Any, for_x: Any, for_weight: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * (for_x + for_weight) * x[0] * x[1] * weight[0]  # type: ignore[no-any-return]


# -- choices ----------------------------------------------------------------------------------------------------


@torch.library.custom_op("thrifty::route", mutates_args=())
def _route(logits: Tensor, bias: Tensor, top_k: int, score: str, weighting: str,
           scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from thrifty.kernels.routing import triton  # Triton comes with torch for CUDA alone

    with torch.cuda.device_of(logits):  # Triton launches on the current device
        return triton.route(logits.contiguous(), bias, top_k, score, weighting, scale)


@_route.register_fake
def _(logits: Tensor, bias: Tensor, top_k: int, score: str, weighting: str,
      scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tokens, experts = logits.shape
    long = functools.partial(logits.new_empty, dtype=torch.int64)
    return long(tokens, top_k), logits.new_empty(tokens, top_k), long(tokens * top_k), long(experts), long(experts)


@torch.library.custom_op("thrifty::route_backward", mutates_args=())
def _route_backward(by_weights: Tensor, logits: Tensor, chosen: Tensor, score: str, weighting: str, scale: float) -> Tensor:
    from thrifty.kernels.routing import triton

    with torch.cuda.device_of(logits):
        return triton.by_logits(logits.contiguous(), chosen, by_weights.contiguous(), score, weighting, scale)


@_route_backward.register_fake
def _(by_weights: Tensor, logits: Tensor, chosen: Tensor, score: str, weighting: str, scale: float) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], output[0])
    ctx.how = inputs[3:]


def _gradients(ctx: Any, by_chosen: Any, by_weights: Tensor | None, *others: Any) -> tuple[Tensor | None, ...]:
    by = None if by_weights is None else _route_backward(by_weights, *ctx.saved_tensors, *ctx.how)
    return by, None, None, None, None, None


_route.register_autograd(_gradients, setup_context=_remember)
