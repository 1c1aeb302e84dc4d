"""VeRA: one pair of random projections for all layers, and two learned vectors a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from thrifty.recipes.card import Card
from thrifty.recipes.hyperparameters import number
from thrifty.training.peft.adapter import Adapter, exactly, linear_kinds, load_peft, transposed


@final
@dataclass(frozen=True)
class Vera(Adapter):
    """A low-rank update whose matrices are random, frozen and shared by all layers; only its scales are learned.

        y = W x + diag(b) B diag(d) A dropout(x),   b [out] = 0,  d [rank] = start;   A, B drawn once

    Args:
        targets: "all-linear", every linear layer whose weight no other layer reads; or a regular expression over
            names ("query|value").
        base: how the frozen weights of adapted layers are held in training; merging rounds them for good.
        rank: rank of the projections; only two vectors are learned, so it may be high.
        dropout: dropout of the update's input.
        start: first value of d.
        projection: seed of A and B.

    >>> Vera(rank=64)
    Vera(targets='all-linear', base='fp32', rank=64, dropout=0.0, start=0.1, projection=0)
    """

    rank: int = number(256, 1, log=True)
    dropout: float = number(0.0, 0, 1, open_high=True)
    start: float = number(0.1, 0, open_low=True, log=True)
    projection: int = number(0, 0, 2**31 - 1)

    name: ClassVar[str] = "vera"
    telling: ClassVar[str] = "vera_lambda_b"
    undecayed: ClassVar[str] = "vera_lambda_d"
    card: ClassVar[Card] = Card(
        family="peft",
        benefit="training time",
        trade_off="fewer parameters than LoRA, but not less compute; what it learns lies in a random subspace",
        paper='"VeRA: Vector-based Random Matrix Adaptation", Kopiczko et al. 2023, arXiv:2310.11454',
        needs=frozenset({"labels"}),
        requires=frozenset({"module", "float-weights", "trained"}),
        refuses=frozenset({"adapters", "mixture", "undecided"}),
        holds=frozenset({"adapters"}),
    )

    def kinds(self) -> tuple[type[nn.Module], ...]:
        return linear_kinds()

    def config(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> Any:
        return load_peft().VeraConfig(r=self.rank, target_modules=exactly(layers), vera_dropout=self.dropout,
                                      d_initial=self.start, projection_prng_key=self.projection,
                                      fan_in_fan_out=transposed(layers))
