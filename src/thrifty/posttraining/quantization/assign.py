"""Which layer gets which scheme, and which stay as they are."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from thrifty.architectures.moe.stacks import stacks
from thrifty.errors import ThriftyError
from thrifty.numerics import graph as graphs
from thrifty.numerics.experts import PackedExperts
from thrifty.numerics.modules import (
    Float8Linear,
    GroupedEmbedding,
    GroupedLinear,
    QuantConv,
    QuantEmbedding,
    QuantLinear,
)
from thrifty.numerics.packed import PackedConv, PackedRecurrent
from thrifty.numerics.plain import is_one_of
from thrifty.numerics.schemes import SCHEMES, Scheme
from thrifty.posttraining.quantization import rounding
from thrifty.recipes.hyperparameters import HyperparameterError, matches

EMBEDDING_SHARE = 0.02
"""An embedding with at least this share of the model's parameters is held in int8: it decides the bytes."""
FLOAT = "fp32"
GROUPS = (32, 64, 128)
QUANTIZED = (QuantConv, QuantLinear, QuantEmbedding, GroupedLinear, GroupedEmbedding, Float8Linear, PackedConv,
             PackedRecurrent, PackedExperts)


@final
@dataclass(frozen=True)
class Grid:
    """Bits of a weight, and how many weights along the inputs share a scale."""

    bits: int
    group: int


@final
@dataclass(frozen=True)
class Assigned:
    """What becomes of a model's layers, by their names.

    Args:
        convolutions, linears: {name: bits of a weight} of those whose activations become integers too.
        grouped: {name: grid} of linear layers whose weights alone do.
        float8: linear layers of float8 products.
        embeddings: held in int8 rows.
        tied: {embedding: the linear layer of ``grouped`` whose integers it looks up}.
        rounded: convolutions, recurrent layers and experts whose weights alone become integers.
        left: {layer: why it stays float} of the others that have weights, but those that were asked to.
    """

    convolutions: Mapping[str, int]
    linears: Mapping[str, int]
    grouped: Mapping[str, Grid]
    float8: tuple[str, ...]
    embeddings: tuple[str, ...]
    tied: Mapping[str, str]
    rounded: Mapping[str, rounding.Grids]
    left: Mapping[str, str]

    def reduced(self, bits: int) -> Assigned:
        """The same with at most so many bits in the weights of integer products."""
        return dataclasses.replace(self, convolutions={name: min(b, bits) for name, b in self.convolutions.items()},
                                   linears={name: min(b, bits) for name, b in self.linears.items()})

    @property
    def empty(self) -> bool:
        return not (self.convolutions or self.linears or self.grouped or self.float8 or self.rounded)

    def seeing(self, blind: bool) -> set[str]:
        """Layers that are quantized by what calibration shows of them.

        Args:
            blind: whether weights beside float activations are rounded by themselves alone.
        """
        return {*self.convolutions, *self.linears, *(() if blind else self.grouped.keys() - self.tied.values())}


GROWN = "scales would outweigh what is saved"
PROJECTED = "it has projections"
PADDED = "its padding row is not zeros"
WIDE = "integer convolutions are of float32"
FLOAT8 = "float8 is for linear layers"
LIGHT = "a small table"
RENORMED = "its rows are scaled as they are looked up"
RECURRENT = "only the weights of recurrent layers are quantized"
SHARED = "an embedding shares its weight, and float8 would need a second table"


def assign(model: nn.Module, scheme: str, layers: Mapping[str, str], group: int,
           kept: Mapping[str, str] = {}) -> Assigned:
    """Give every layer its scheme: that of the first pattern which matches it, or else the common one.

    Weights that an embedding and a linear layer share stay shared, in eight bits, a scale per row. Without a pattern of
    their own, embeddings become int8 where they weigh, and recurrent layers stay float where activations are quantized too.
    Beside float8, convolutions, embeddings and what shares an embedding's weight stay float.

    Args:
        model: float.
        scheme, layers, group: as `quantize` has them.
        kept: {layer: why it cannot but stay float}.

    Raises:
        HyperparameterError: a pattern matches nothing, or gives a layer what its kind cannot be.
        ThriftyError: a group does not divide a layer's inputs; names the groups that would.
    """
    # Without duplicates: a module that stands in two places is one module.
    found: dict[str, Any] = dict(model.named_modules())
    already = next((name for name, module in found.items() if isinstance(module, QUANTIZED)), None)
    if already is not None:
        raise ThriftyError(f"layer {already!r} is already quantized: quantize once, from the float model")
    kept = {name: why for name, why in kept.items() if name not in found or not stacks(found[name])}
    free = {name: module for name, module in found.items() if name not in kept}
    kinds = {"convolution": [name for name, m in free.items() if graphs.is_convolution(m)],
             "recurrent": [name for name, m in free.items() if rounding.is_recurrent(m)],
             "experts": [name for name, m in free.items() if stacks(m)],
             "linear": [name for name, m in free.items() if is_one_of(m, (nn.Linear,))],
             "embedding": [name for name, m in free.items() if is_one_of(m, (nn.Embedding,)) and m.max_norm is None]}
    own = _matched([name for names in kinds.values() for name in names], layers, kept)
    total = max(1, sum(p.numel() for p in model.parameters()))
    heavy = [name for name in kinds["embedding"]
             if name in own or found[name].weight.numel() >= EMBEDDING_SHARE * total]
    common = FLOAT if scheme == "fp8" else "w8a8"
    embeddings = [name for name in heavy if _embedding(name, own.get(name, common))]
    tables = {id(found[name].weight): name for name in embeddings}
    looked_up = {id(found[name].weight) for name in kinds["embedding"]}
    convolutions, linears, grouped, float8, tied, rounded = {}, {}, {}, [], {}, {}
    left = {name: reason for name, reason in kept.items() if name in found}
    left |= {name: PADDED for name, m in free.items() if is_one_of(m, graphs.CONVOLUTIONS) and not graphs.is_convolution(m)}
    left |= {name: RENORMED for name, m in free.items() if is_one_of(m, (nn.Embedding,)) and m.max_norm is not None}
    left |= {name: LIGHT for name in kinds["embedding"] if name not in heavy}

    def round_alone(name: str, chosen: Scheme) -> None:
        if rounding.grow(found[name], grids := rounding.grids(found[name], chosen, group)):
            left[name] = GROWN
        else:
            rounded[name] = grids

    for name in kinds["convolution"]:
        chosen = SCHEMES.get(own.get(name, scheme))
        if chosen is not None and chosen.activations == "int8" and found[name].weight.dtype != torch.float32:
            left[name] = WIDE
        elif chosen is not None and chosen.activations == "int8":
            convolutions[name] = chosen.bits
        elif chosen is not None and chosen.activations == "float8" and name in own:
            raise HyperparameterError(f"quantize(layers={{...: {chosen.name}}}) matches {name!r}, a convolution, but float8 is "
                                      f"for linear layers only: give it w8a8, w8a16 or {FLOAT}")
        elif chosen is not None and chosen.activations == "float":
            round_alone(name, chosen)
        elif chosen is not None:
            left[name] = FLOAT8
    for name in kinds["experts"]:
        chosen = SCHEMES.get(own.get(name, scheme))
        if chosen is not None and chosen.activations == "float8":
            left[name] = FLOAT8
        elif chosen is not None:  # beside integer products too the weights alone: they are most of what is held
            round_alone(name, chosen if chosen.activations == "float" else SCHEMES["w8a16"])
    for name in kinds["recurrent"]:
        chosen = SCHEMES.get(own.get(name, scheme))
        if chosen is not None and name in own and (chosen.activations != "float" or found[name].proj_size):
            raise HyperparameterError(f"quantize(layers={{...: {chosen.name}}}) matches {name!r}, a recurrent layer: only its "
                                      f"weights can be quantized, and not with proj_size: give it {FLOAT}"
                                      + ("" if found[name].proj_size else ", w8a16, w4a16 or w3a16"))
        if chosen is None:
            continue
        if found[name].proj_size or chosen.activations != "float":
            left[name] = PROJECTED if found[name].proj_size else RECURRENT
        else:
            round_alone(name, chosen)
    for name in kinds["linear"]:
        chosen = SCHEMES.get(own.get(name, scheme))
        if chosen is None:
            continue
        table = tables.get(id(found[name].weight))
        bits = chosen.bits if table is None else 8
        if chosen.activations == "float8" and id(found[name].weight) in looked_up:
            if name in own:
                raise HyperparameterError(f"quantize(layers={{...: {chosen.name}}}) matches {name!r}, whose weight is shared "
                                          f"with an embedding: float8 would need a second table; give it w8a16 or {FLOAT}")
            left[name] = SHARED
        elif _grows(found[name], chosen, bits, group):
            left[name] = GROWN
        elif chosen.activations == "int8":
            linears[name] = bits
        elif chosen.activations == "float8":
            float8.append(name)
        else:
            grouped[name] = _grid(name, found[name].in_features, bits, group if chosen.grouped and table is None else None)
            if table is not None:
                tied[table] = name
    return Assigned(convolutions, linears, grouped, tuple(float8), tuple(name for name in embeddings if name not in tied), tied,
                    rounded, left)


def _matched(names: list[str], layers: Mapping[str, str], kept: Mapping[str, str]) -> dict[str, str]:
    """{layer: scheme} of those that a pattern matches."""
    for pattern, scheme in layers.items():
        if not any(matches(pattern, name) for name in names):
            name = next((name for name in kept if matches(pattern, name)), None)
            if name is not None and scheme == FLOAT:
                continue
            if name is not None:
                raise HyperparameterError(f"quantize(layers={{{pattern!r}: {scheme}}}) matches {name!r}, which stays float: "
                                          f"{kept[name]}; give it {FLOAT}, or remove it")
            ends = {name.rpartition(".")[2]: name for name in reversed(names)}
            near = [ends[end] for word in re.findall(r"\w+", pattern) for end in difflib.get_close_matches(word, ends, n=2)]
            near = near or difflib.get_close_matches(pattern, names, n=3, cutoff=0) or names[:3]
            raise HyperparameterError(
                f"quantize(layers={{{pattern!r}: ...}}) matches no layer that can be quantized"
                + (f"; nearest: {', '.join(dict.fromkeys(near))}" if near else ", and the model has none"))
    return {name: next(word for pattern, word in layers.items() if matches(pattern, name))
            for name in names if any(matches(pattern, name) for pattern in layers)}


def _embedding(name: str, scheme: str) -> bool:
    if scheme not in ("w8a8", "w8a16", FLOAT):
        raise HyperparameterError(f"quantize(layers={{...: {scheme}}}) matches {name!r}, an embedding, which is quantized to "
                                  f"int8 rows or not at all: give it w8a16 or {FLOAT}")
    return scheme != FLOAT


def _grid(name: str, inputs: int, bits: int, group: int | None) -> Grid:
    """The grid of a layer; over whole rows where ``group`` is None."""
    fit = [size for size in GROUPS if inputs % size == 0]
    if group is not None and group not in fit:
        others = (f"groups of {' or '.join(map(str, fit))} would: give group={fit[-1]}, or" if fit
                  else f"nor does any of {', '.join(map(str, GROUPS))}:")
        raise ThriftyError(f"layer {name!r} reads {inputs} inputs, which groups of {group} do not divide; {others} give the "
                           f"layer a scheme without groups, layers={{{re.escape(name)!r}: w8a16}}, or {FLOAT}")
    return Grid(bits, group or inputs)


def _grows(linear: nn.Linear, scheme: Scheme, bits: int, group: int) -> bool:
    """Whether the integers with their scales take as many bytes as the float weight did."""
    out, inputs = linear.weight.shape
    groups = -(-inputs // group) if scheme.grouped else 1
    held = bits if scheme.activations == "float" else 8
    smooth = 0 if scheme.activations == "float8" else 4 * inputs  # of the vector that inputs are divided by
    return out * inputs * held / 8 + out * groups * 5 + smooth >= linear.weight.element_size() * out * inputs
