"""What trials are compared with beside the eager reference: its compiled engine, and what is known of the model as it is."""

from __future__ import annotations

from collections.abc import Iterator

from thrifty.recipes.compiler import Compiler
from thrifty.recipes.registry import method_class
from thrifty.runs.job import Outcome, place
from thrifty.studies.as_it_is import AsItIs
from thrifty.studies.ledger import Ledger

QUICKEST = ("onnxruntime", "openvino", "inductor")
"""Compilers by how soon they have compiled a small net: 1, 2 and 17 s on two processors."""


def compilers(device: str, noted: str | None) -> Iterator[tuple[str, Compiler]]:
    """Compilers that are installed and serve a device, the one that a study has used first, then the quickest.

    Args:
        device: "cpu" or "cuda".
        noted: the name of the one that the study has used; None for none.
    """
    for name in dict.fromkeys((*([noted] if noted else []), *QUICKEST)):
        cls = method_class(name)
        if issubclass(cls, Compiler) and device in cls.card.devices and cls.missing() is None:
            yield name, cls()


def weighed(reference: Outcome) -> AsItIs:
    """What the reference's model weighs, and what its training took."""
    return AsItIs((place("checkpoints", reference.checkpoint) / "model.safetensors").stat().st_size,
                  Ledger(reference.charges).seconds)
