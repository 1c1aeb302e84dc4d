"""Convolutions and recurrent layers whose weights alone are integers, dequantized where they are used."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn

from thrifty.numerics.grid import from_group
from thrifty.numerics.grouped import Grouped
from thrifty.numerics.modules import stand_in
from thrifty.numerics.packing import pack, unpack

CONVOLVE: Mapping[int, Any] = {3: nn.functional.conv1d, 4: nn.functional.conv2d}
"""{dimensions of the weight: the function}."""


@final
class PackedWeight(nn.Module):
    """A matrix of few bits: w = s (q - z), one scale s and one zero z for each group of columns.

    Args:
        found: without ``smooth``.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, found: Grouped) -> None:
        super().__init__()
        self.bits, self.numbers = found.bits, found.q.numel()
        self.register_buffer("packed", pack(found.q, found.bits))
        self.register_buffer("scale", found.scale)
        self.register_buffer("zero", found.zero)

    def forward(self) -> Tensor:
        """float32 [rows, columns]."""
        return from_group(unpack(self.packed, self.bits), self.scale, self.zero)


@final
class PackedConv(nn.Module):
    """y = conv(x, s (q - z)) + b: rows of the weight are its output channels.

    ``weight`` has the float weight's shape, type and device and no numbers: models look at them before they call the layer.

    Args:
        conv: Conv1d or Conv2d, padded with zeros.
        weights: {"weight": its integers, [out, in / groups * kernel]}.
    """

    bias: Tensor | None

    def __init__(self, conv: nn.Conv1d | nn.Conv2d, weights: Mapping[str, Grouped]) -> None:
        super().__init__()
        self.held = PackedWeight(weights["weight"])
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().float().clone())
        self.shape = tuple(conv.weight.shape)
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups

    @property
    def weight(self) -> Tensor:
        return stand_in(self.shape, self.held.scale)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.held().reshape(self.shape).to(x.dtype), self.bias
        y: Tensor = CONVOLVE[len(self.shape)](x, weight, None if bias is None else bias.to(x.dtype), self.stride, self.padding,
                                              self.dilation, self.groups)
        return y


@final
class PackedRecurrent(nn.Module):
    """The recurrence of an nn.LSTM or nn.GRU, by torch's own code, on weights s (q - z).

    Args:
        layer: nn.LSTM without projections, or nn.GRU; float.
        weights: {parameter: its integers} of all its matrices.
    """

    def __init__(self, layer: nn.RNNBase, weights: Mapping[str, Grouped]) -> None:
        super().__init__()
        self.held = nn.ModuleDict({name: PackedWeight(found) for name, found in weights.items()})
        self.names: tuple[str, ...] = tuple(name for name, _ in layer.named_parameters())
        for name, parameter in layer.named_parameters():
            if name not in weights:
                self.register_buffer(name, parameter.detach().float().clone())
        code: Any = copy.copy(layer).eval()
        code._parameters, code._flat_weights, code._flat_weights_names, code._flat_weight_refs = {}, [], [], []
        self._code = (code,)  # in a tuple, so that it is no submodule: it holds sizes and no numbers

    def flatten_parameters(self) -> None:
        """Models call it on recurrent layers; here is nothing to put side by side."""

    def forward(self, x: Any, state: Any = None) -> Any:
        dtype = (x if isinstance(x, Tensor) else x.data).dtype
        code: Any = copy.copy(self._code[0])
        code._flat_weights = [(self.held[name]() if name in self.held else getattr(self, name)).to(dtype) for name in self.names]
        return code(x, state)
