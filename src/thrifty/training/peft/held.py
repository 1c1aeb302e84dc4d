"""Frozen weights held in fewer bits while adapters are trained beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thrifty.errors import MissingExtra


@final
class Held(nn.Module):
    """A linear layer whose frozen weight is held in bfloat16, int8 or nf4.

        y = x D(Q(W))^T + b

    Q rounds once; D gives the numbers back at every use, in the forward pass and again in the backward one, so that
    no copy in full size outlives a product. The product runs in the input's precision: what is merged afterwards
    computes what was trained.

    Args:
        linear: taken over; its weight is emptied until `restore`.
        form: "bf16", "int8" (a scale per row) or "nf4" (a scale for 64 weights, 16 levels at a normal law's quantiles).

    Raises:
        MissingExtra: int8 and nf4 are bitsandbytes'.

    >>> held = Held(nn.Linear(8, 4), "bf16")
    >>> held(torch.ones(2, 8)).shape, held.bytes_per_weight, held.restore().weight.shape
    (torch.Size([2, 4]), 2.0, torch.Size([4, 8]))
    """

    def __init__(self, linear: nn.Linear, form: str) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._linear = (linear,)  # in a tuple: no submodule, or the emptied weight would be part of the model
        self._decode, held = HOLD[form](linear.weight.detach())
        for i, tensor in enumerate(held):  # buffers, so that they go where the model goes; no part of its state
            self.register_buffer(f"held{i}", tensor, persistent=False)
        self._parts = len(held)
        self.bytes_per_weight = sum(t.nbytes for t in self.held) / linear.weight.numel()
        self.bias = linear.bias
        linear.weight.data = linear.weight.data.new_empty(0)

    @property
    def held(self) -> tuple[Tensor, ...]:
        """The weight in few bits."""
        return tuple(self.get_buffer(f"held{i}") for i in range(self._parts))

    @property
    def weight(self) -> Tensor:
        """[out, in], as the products see it."""
        return self._decode(*self.held)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, self._decode, *self.held)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def restore(self) -> nn.Linear:
        """The layer that was taken over, its weight in float again: what the products saw."""
        (linear,) = self._linear
        linear.weight.data = self.weight.to(torch.float32)
        return linear


class _Product(torch.autograd.Function):
    """x W^T with W decoded anew in each direction; W gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, decode: Callable[..., Tensor], *held: Tensor) -> Tensor:
        ctx.decode = decode
        ctx.save_for_backward(*held)
        return F.linear(x, decode(*held).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (gradient,) = gradients
        held = ctx.saved_tensors  # once: checkpointing frees what it unpacks
        return gradient @ ctx.decode(*held).to(gradient.dtype), None, *(None for _ in held)


Holding = tuple[Callable[..., Tensor], tuple[Tensor, ...]]


def _bf16(weight: Tensor) -> Holding:
    return torch.Tensor.float, (weight.to(torch.bfloat16),)


def _int8(weight: Tensor) -> Holding:
    functional = _bitsandbytes()
    rows, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))  # its CUDA kernel takes no other
    return functional.int8_vectorwise_dequant, (rows, scales)


def _nf4(weight: Tensor) -> Holding:
    functional = _bitsandbytes()
    packed, state = functional.quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4")

    def decode(packed: Tensor, scales: Tensor) -> Tensor:
        state.to(packed.device)
        back: Tensor = functional.dequantize_4bit(packed, state)
        return back

    return decode, (packed, state.absmax)


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise MissingExtra("bitsandbytes", "qlora") from error
    return bitsandbytes.functional


HOLD: dict[str, Callable[[Tensor], Holding]] = {"bf16": _bf16, "int8": _int8, "nf4": _nf4}
