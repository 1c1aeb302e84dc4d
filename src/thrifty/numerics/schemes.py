"""Schemes of quantization: how many bits weights and activations have, and over how many weights a scale reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final


@final
@dataclass(frozen=True)
class Scheme:
    """The numbers of one layer.

    Args:
        name: as a recipe writes it: w, bits of a weight, a, bits of an activation.
        bits: of a weight.
        grouped: whether a scale (and a zero) reaches over a group of weights along the inputs; else over a whole row.
        activations: ``int8``: the product is one of integers; ``float8``: of numbers in e4m3; ``float``: weights are
            dequantized where they are used.
    """

    name: str
    bits: int
    grouped: bool
    activations: Literal["int8", "float8", "float"]


INTEGERS: Mapping[str, Scheme] = {scheme.name: scheme for scheme in (
    Scheme("w8a8", 8, False, "int8"),
    Scheme("w4a8", 4, False, "int8"),
    Scheme("w8a16", 8, False, "float"),
    Scheme("w4a16", 4, True, "float"),
    Scheme("w3a16", 3, True, "float"),
)}
"""Those of integer weights. ``a16`` stands for the precision that the model runs in, fp32 or bf16."""

SCHEMES: Mapping[str, Scheme] = {**INTEGERS, "fp8": Scheme("fp8", 8, False, "float8")}
