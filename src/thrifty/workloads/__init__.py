"""The embedded workloads: listed here without importing them; each is a module that defines ``workload``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Embedded:
    """Where an embedded workload is, and what it is.

    Args:
        place: "module:attribute" of its Workload.
        description: one line for `thrifty workloads`.
        extra: the extra that brings its data or its weights.
    """

    place: str
    description: str
    extra: str = "workloads"


EMBEDDED: dict[str, Embedded] = {
    "digits": Embedded(
        "thrifty.workloads.digits:workload",
        "a residual CNN on 5,000 MNIST digits; accuracy; trains in half a minute",
    ),
    "python-lm": Embedded(
        "thrifty.workloads.python_lm:workload",
        "a transformer language model on Python's standard library; bits per byte; trains in three minutes",
    ),
    "minilm": Embedded(
        "thrifty.workloads.minilm:workload",
        "the pretrained MiniLM encoder; recall@10 of functions by their docstring; no training",
        extra="minilm",
    ),
}
"""Name -> place and description of each embedded workload, the default of `make demo` first."""
