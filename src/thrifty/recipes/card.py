"""What a method says of itself: family, benefit, cost, and the properties of models that it asks for and leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

PhaseName = Literal["training", "post-training"]
Slot = Literal["optimizer", "precision", "parallelism"]

FAMILIES: Mapping[str, PhaseName] = {
    "optimizers": "training",
    "distributed": "training",
    "peft": "training",
    "architectures": "training",
    "distillation": "training",
    "qat": "training",
    "gradient-nas": "training",
    "mixed-precision": "training",
    "ptq": "post-training",
    "pruning": "post-training",
    "low-rank": "post-training",
    "compilers": "post-training",
    "nas": "post-training",
}
"""The thirteen families and the phase that each belongs to."""

PROPERTIES: Mapping[str, str] = {
    "module": "a torch nn.Module, not yet an engine",
    "float-weights": "weights in floating point",
    "trained": "weights that were trained",
    "quantized": "weights of eight bits or fewer",
    "integer-products": "activations are integers too in matrix multiplications",
    "float8-products": "weights and activations are float8 in matrix multiplications",
    "bfloat16": "computes in bfloat16",
    "mixture": "feed-forward layers are mixtures of experts",
    "undecided": "its choices are decided during training",
    "pruned": "structures were removed",
    "masked": "single weights are zero and stay so",
    "factorized": "weights are products of smaller factors",
    "compiled": "lowered to an engine",
    "packed-rows": "examples share the rows of a batch",
    "adapters": "small weights are trained alongside or in place of frozen ones",
    "rounded-steps": "matrix multiplications are rounded during training",
    "recomputed-activations": "activations are recomputed in the backward pass",
    "compiled-steps": "Inductor compiles the steps of its training",
    "sharded": "each rank holds a part of the weights",
    "split": "each rank multiplies by a part of some matrices",
}
"""What can be said of a model; recipes are checked by carrying these through their phases."""


@final
@dataclass(frozen=True)
class Card:
    """What a method is for, what it costs and what it needs.

    Args:
        family: one of `FAMILIES`; the phase follows from it.
        benefit: "training time", "inference time" or both.
        trade_off: what the user pays.
        paper: title, authors' year and identifier of the source.
        needs: any of "attention" (layers of it that are Thrifty's own), "calibration", "labels", "logits" (which not every loss
            gives), "teacher", "training".
        requires, provides, removes: any of `PROPERTIES`.
        refuses: properties that a model must not have.
        holds: properties that a model has while a training method trains it, and no longer.
        slot: at most one method of a ``train`` phase fills each.
        devices: where it runs.
        capability: least compute capability of a CUDA device that it runs on.
    """

    family: str
    benefit: str
    trade_off: str
    paper: str
    needs: frozenset[str] = frozenset()
    requires: frozenset[str] = frozenset({"module"})
    provides: frozenset[str] = frozenset()
    removes: frozenset[str] = frozenset()
    refuses: frozenset[str] = frozenset()
    holds: frozenset[str] = frozenset()
    slot: Slot | None = None
    devices: frozenset[str] = frozenset({"cpu", "cuda"})
    capability: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family {self.family!r} is not one of {', '.join(FAMILIES)}")
        unknown = (self.requires | self.provides | self.removes | self.refuses | self.holds) - PROPERTIES.keys()
        if unknown:
            raise ValueError(f"{sorted(unknown)} are not properties; known: {', '.join(PROPERTIES)}")

    @property
    def phase(self) -> PhaseName:
        return FAMILIES[self.family]
