"""Activation checkpointing: a block's activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from thrifty.compilers.inprocess import blocks
from thrifty.errors import ThriftyError

Kind = Literal["none", "blocks", "selective"]

_aten = torch.ops.aten
DEAR = frozenset({
    _aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.convolution.default,
    _aten._scaled_dot_product_flash_attention.default, _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default, _aten._scaled_dot_product_flash_attention_for_cpu.default,
})
"""Operators whose results a selective checkpoint keeps: all that costs much arithmetic."""


def recompute(model: nn.Module, kind: str) -> nn.Module:
    """Have every block of the model's rows of equal blocks computed twice, or ("none") once again.

    Gradients are the same bit for bit: random numbers are drawn as they were, and running statistics are updated once.

    Args:
        model: changed in place; names of parameters stay.
        kind: "none"; "blocks" keeps a block's inputs alone; "selective" keeps the results of its products and
            attentions too, and computes what is cheap again.

    Raises:
        ThriftyError: the model has no row of equal blocks.

    Source: "Training Deep Nets with Sublinear Memory Cost", Chen et al. 2016, arXiv:1604.06174; "Reducing Activation
    Recomputation in Large Transformer Models", Korthikanti et al. 2022, arXiv:2205.05198 (selective).

    >>> net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    >>> recompute(net, "blocks")(torch.ones(1, 4, requires_grad=True)).sum().backward()
    """
    row = list(blocks(model))
    if kind != "none" and not row:
        raise ThriftyError(f"checkpointing={kind} recomputes sequences of equal blocks, but {type(model).__name__} has none of "
                           "at least three: remove it, or keep the blocks in an nn.ModuleList or nn.Sequential")
    for block in row:
        vars(block).pop("forward", None)
        if kind != "none":
            block.forward = functools.partial(_twice, block.forward, block, kind)  # type: ignore[method-assign]
    return model


def _twice(forward: Callable[..., Any], block: nn.Module, kind: str, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    contexts: Callable[[], tuple[Any, Any]] | None = functools.partial(_eager, block, kind)
    if torch.compiler.is_compiling():  # the compiler keeps what a block writes out of what is computed again
        contexts = _selective if kind == "selective" else None
    options: dict[str, Any] = {"context_fn": contexts} if contexts else {}
    return checkpoint(forward, *args, use_reentrant=False, **options, **kwargs)


def _eager(block: nn.Module, kind: str) -> tuple[Any, Any]:
    first, again = _selective() if kind == "selective" else (contextlib.nullcontext(), contextlib.nullcontext())
    return first, _within(_still(block), again)


def _selective() -> tuple[Any, Any]:
    contexts: tuple[Any, Any] = create_selective_checkpoint_contexts(_policy)
    return contexts


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in DEAR else CheckpointPolicy.PREFER_RECOMPUTE


@contextlib.contextmanager
def _within(outer: Any, inner: Any) -> Iterator[None]:
    with outer, inner:
        yield


@contextlib.contextmanager
def _still(block: nn.Module) -> Iterator[None]:
    """Running statistics that the second pass updates are thrown away: the first has updated them."""
    kept = [(module, name, buffer) for module in block.modules() for name, buffer in module._buffers.items()
            if buffer is not None]
    for module, name, buffer in kept:
        module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in kept:
            module._buffers[name] = buffer
