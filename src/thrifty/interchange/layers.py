"""A quantized layer as compressed-tensors stores it: which tensors, and in which bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.numerics.modules import GroupedLinear, QuantLinear
from thrifty.numerics.packing import pack, unpack

Layer = QuantLinear | GroupedLinear
WORD = 32
SMALLEST = 128
"""Rows of that many inputs or fewer, with one scale, count as one group: other layers of the model have several."""


class InterchangeError(ThriftyError):
    """A model that a format cannot hold, or a directory that is not of the format."""


@final
@dataclass(frozen=True)
class Stored:
    """The numbers of one layer.

    Args:
        bits: of a weight, 4 or 8.
        group: weights along the inputs that share a scale; None where a whole row does.
        symmetric: whether the middle of the grid is worth 0 everywhere, so that no zeros are stored.
        activations: ``int8``, with a scale for each token, found as they come; or ``float``.
    """

    bits: int
    group: int | None
    symmetric: bool
    activations: Literal["int8", "float"]

    @property
    def middle(self) -> int:
        return int(2 ** (self.bits - 1))


def stored(layer: Layer) -> Stored:
    """What a layer's numbers are. Those of four bits that are held in int8 are told as eight."""
    if isinstance(layer, QuantLinear):
        return Stored(8, None, True, "int8")
    whole = layer.scale.shape[1] == 1 and (layer.bits == 8 or layer.in_features > SMALLEST)
    middle = bool((layer.zero == 2 ** (layer.bits - 1)).all())
    return Stored(layer.bits, None if whole else layer.group, middle, "float")


# -- bytes --------------------------------------------------------------------------------------------------------


def to_words(q: Tensor, bits: int) -> Tensor:
    """Whole numbers as the bits of int32, little-endian, the first in the lowest; rows end with a whole word.

    Args:
        q: uint8 [rows, n], in 0..2^bits - 1.
        bits: 4 or 8.

    Returns:
        int32 [rows, ceil(n * bits / 32)].

    >>> [hex(word) for word in to_words(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0, 9]]), 4)[0].tolist()]
    ['0x7654321', '0x9']
    """
    padded = nn.functional.pad(q, (0, -q.shape[1] % (WORD // bits)))
    return pack(padded, bits).contiguous().view(torch.int32)


def from_words(words: Tensor, bits: int, n: int) -> Tensor:
    """The first n numbers of each row of `to_words`, uint8 [rows, n]."""
    return unpack(words.contiguous().view(torch.uint8), bits)[:, :n]


# -- tensors ------------------------------------------------------------------------------------------------------


def tensors(layer: Layer) -> dict[str, Tensor]:
    """What is stored of a layer, by the names that follow its own; its bias is a tensor like any other."""
    if isinstance(layer, QuantLinear):
        found = {"weight": layer.weight, "weight_scale": layer.scale[:, None]}
    else:
        found = {"weight_packed": to_words(layer.integers(), layer.bits), "weight_scale": layer.scale,
                 "weight_shape": torch.tensor([layer.out_features, layer.in_features])}
        if not stored(layer).symmetric:
            found["weight_zero_point"] = to_words(layer.zero.T, layer.bits).T
    if layer.bias is not None:
        found["bias"] = layer.bias
    return {name: tensor.contiguous() for name, tensor in found.items()}


def layer_of(name: str, found: Mapping[str, Tensor], numbers: Stored, linear: nn.Linear) -> Layer:
    """The layer that tensors stand for.

    Args:
        name: for messages.
        found: as `tensors` gives them.
        numbers: that config.json states of it.
        linear: in whose place it is; its sizes count, its weight does not.

    Raises:
        InterchangeError: a tensor is missing, too many, of another kind or shape, or not finite.
    """
    out, inputs = linear.out_features, linear.in_features
    if inputs % (numbers.group or inputs):
        raise InterchangeError(f"layer {name!r} has {inputs} inputs, not a multiple of the group size {numbers.group}")
    wanted = _wanted(numbers, out, inputs)
    if linear.bias is not None:
        wanted["bias"] = (None, (out,))
    if missing := sorted(wanted.keys() - found.keys()):
        raise InterchangeError(f"layer {name!r} has no {', '.join(missing)}: the directory is damaged, or config.json "
                               "does not match its weights; copy or write it again")
    if beyond := sorted(found.keys() - wanted.keys()):
        raise InterchangeError(f"layer {name!r} has {', '.join(beyond)} too, which is not supported; quantize it again without "
                               "that")
    for part, (dtype, shape) in wanted.items():
        tensor = found[part]
        fits = tensor.dtype.is_floating_point if dtype is None else tensor.dtype == dtype
        if not fits or tuple(tensor.shape) != shape:
            kind = "of floating point" if dtype is None else str(dtype).removeprefix("torch.")
            raise InterchangeError(f"{name}.{part} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} where "
                                   f"{kind} {list(shape)} is expected: config.json does not match the weights")
        if dtype is None and not torch.isfinite(tensor).all():
            raise InterchangeError(f"{name}.{part} holds NaN or infinity; write the directory again")
    if "weight_shape" in found and found["weight_shape"].tolist() != [out, inputs]:
        raise InterchangeError(f"{name}.weight_shape says {found['weight_shape'].tolist()} for a layer of {[out, inputs]}; write "
                               "the directory again")
    return _READ[numbers.activations](found, numbers, linear)


def _wanted(numbers: Stored, out: int, inputs: int) -> dict[str, tuple[torch.dtype | None, tuple[int, ...]]]:
    """{name: (dtype, shape)}; None for any of floating point."""
    if numbers.activations == "int8":
        return {"weight": (torch.int8, (out, inputs)), "weight_scale": (None, (out, 1))}
    words, groups = WORD // numbers.bits, inputs // (numbers.group or inputs)
    found: dict[str, tuple[torch.dtype | None, tuple[int, ...]]] = {
        "weight_packed": (torch.int32, (out, -(-inputs // words))), "weight_scale": (None, (out, groups)),
        "weight_shape": (torch.int64, (2,))}
    if not numbers.symmetric:
        found["weight_zero_point"] = (torch.int32, (-(-out // words), groups))
    return found


def _integers(found: Mapping[str, Tensor], numbers: Stored, linear: nn.Linear) -> QuantLinear:
    empty = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
    layer = QuantLinear(empty, torch.ones(linear.in_features, device="meta"))
    layer.weight, layer.scale = found["weight"], found["weight_scale"].flatten().float()
    layer.smooth = torch.ones(linear.in_features)
    layer.bias = found["bias"].float() if "bias" in found else None
    return layer


def _grouped(found: Mapping[str, Tensor], numbers: Stored, linear: nn.Linear) -> GroupedLinear:
    q = from_words(found["weight_packed"], numbers.bits, linear.in_features)
    scale = found["weight_scale"]
    zero = (torch.full(scale.shape, numbers.middle) if numbers.symmetric else
            from_words(found["weight_zero_point"].T, numbers.bits, linear.out_features).T)
    return GroupedLinear(q, scale, zero.contiguous(), numbers.bits, found.get("bias"))


_READ: Mapping[str, Callable[[Mapping[str, Tensor], Stored, nn.Linear], Layer]] = {"int8": _integers, "float": _grouped}
