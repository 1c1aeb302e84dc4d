"""Vectors that inputs are divided by, folded into the norms that make these inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.interchange.layers import InterchangeError, Layer
from thrifty.numerics.modules import QuantLinear
from thrifty.numerics.norms import is_norm


def folded(body: nn.Module, layers: Mapping[str, Layer], ids: Tensor) -> dict[str, Tensor]:
    """The tensors of norms once what reads them need not divide any more.

    LayerNorm and RMSNorm end with a product by a weight g (and a sum with a bias b): n = g u + b. Where all that reads n
    is layers that divide it by one and the same s, g / s and b / s in the norm come to the same.

    Args:
        body: a transformers model.
        layers: its quantized linear layers, by name.
        ids: [batch, tokens], on which the model is called once to see what reads what.

    Returns:
        {name: tensor} of the norms that change.

    Raises:
        InterchangeError: a vector has no norm before it, or other layers read the same norm.
    """
    vectors = {name: layer.smooth for name, layer in layers.items()
               if layer.smooth is not None and not bool((layer.smooth == 1).all())}
    if not vectors:
        return {}
    made, readers = _seen(body, ids)
    norms: dict[str, Tensor] = {}
    for norm, names in readers.items():
        reading = [vectors.get(name) for name in names]
        first = next((vector for vector in reading if vector is not None), None)
        if first is not None and all(vector is not None and torch.equal(vector, first) for vector in reading):
            norms[norm] = first
    lost = [name for name in vectors if made.get(name) not in norms]
    if lost:
        way = "rtn" if isinstance(layers[lost[0]], QuantLinear) else "gptq or hqq"
        raise InterchangeError(
            f"layer {lost[0]!r} divides its inputs by a vector that its algorithm found ({len(lost)} layers "
            "do), which the format cannot hold: it can only be folded into a norm whose consumers all divide by it. Quantize "
            f"with algorithm={way}, which has no such vectors")
    state = dict(body.named_parameters())
    return {f"{norm}.{part}": (state[f"{norm}.{part}"].float() / vector).to(state[f"{norm}.{part}"].dtype)
            for norm, vector in norms.items() for part in ("weight", "bias") if f"{norm}.{part}" in state}


def _seen(body: nn.Module, ids: Tensor) -> tuple[dict[str, str], dict[str, list[str]]]:
    """({reader: norm}, {norm: readers}), readers being modules without modules of their own that get its output."""
    outputs: dict[tuple[Any, ...], tuple[Tensor, str]] = {}  # kept, since a freed tensor's place would be given away
    made: dict[str, str] = {}
    readers: dict[str, list[str]] = {}

    def before(name: str, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and _place(inputs[0]) in outputs:
            made[name] = outputs[_place(inputs[0])][1]
            readers.setdefault(made[name], []).append(name)

    def after(name: str, output: Any) -> None:
        outputs[_place(output)] = (output, name)

    leaves = [(name, module) for name, module in body.named_modules() if not list(module.children())]
    handles = [module.register_forward_pre_hook(lambda _, inputs, name=name: before(name, inputs)) for name, module in leaves]
    handles += [module.register_forward_hook(lambda _, inputs, output, name=name: after(name, output))
                for name, module in leaves if is_norm(module)]
    try:
        with torch.no_grad():
            body(input_ids=ids)
    finally:
        for handle in handles:
            handle.remove()
    return made, readers


def _place(x: Tensor) -> tuple[Any, ...]:
    """Equal for a tensor and for a view of all of it."""
    return x.data_ptr(), x.shape, x.stride(), x.dtype
