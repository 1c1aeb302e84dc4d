"""The embedded workloads: listed here without importing them; each is a module that defines ``workload``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from thrifty.errors import ThriftyError


@final
@dataclass(frozen=True)
class Embedded:
    """Where an embedded workload is, and what it is.

    Args:
        place: "module:attribute" of its Workload.
        description: one line for `thrifty workloads`.
        extra: the extra that brings its data or its weights.
        recipes: that `thrifty sweep` measures where none is given: alone first, then composed.
    """

    place: str
    description: str
    extra: str = "workloads"
    recipes: tuple[str, ...] = ()


_DIGITS = "train(adamw(lr=0.003), epochs=3)"
_TUNED = "train(adamw(lr=0.001), distill, epochs=1)"
_LM = "train(adamw(lr=0.002), steps=600)"


EMBEDDED: dict[str, Embedded] = {
    "digits": Embedded(
        "thrifty.workloads.embedded.digits:workload",
        "a residual CNN on 5,000 MNIST digits; accuracy",
        recipes=(
            _DIGITS,
            f"{_DIGITS} | compile(inductor)",
            f"{_DIGITS} | compile(onnxruntime)",
            f"{_DIGITS} | quantize(w8a8) | compile(onnxruntime)",
            f"{_DIGITS} | quantize(w8a8) | compile(openvino)",
            f"{_DIGITS} | quantize(w8a8) | compile(inductor)",
            f"{_DIGITS} | quantize(bf16) | compile(inductor)",
            "train(adamw(lr=0.003), bf16, epochs=3) | compile(onnxruntime)",
            f"{_DIGITS} | prune(ratio=0.5) | train(adamw(lr=0.001), epochs=1) | compile(onnxruntime)",
            f"{_DIGITS} | prune(ratio=0.5) | {_TUNED} | compile(onnxruntime)",
            f"{_DIGITS} | prune(ratio=0.5) | {_TUNED} | quantize(w8a8) | compile(onnxruntime)",
            f"{_DIGITS} | prune(ratio=0.75) | {_TUNED} | quantize(w8a8) | compile(onnxruntime)",
            "prune(ratio=0.5) | train(adamw(lr=0.003), bf16, epochs=3) | quantize(w8a8) | compile(onnxruntime)",
        ),
    ),
    "python-lm": Embedded(
        "thrifty.workloads.embedded.python_lm:workload",
        "a transformer language model on Python's standard library; bits per byte",
        recipes=(
            _LM,
            f"{_LM} | compile(inductor)",
            f"{_LM} | quantize(bf16) | compile(inductor)",
            f"{_LM} | quantize(w8a8) | compile(inductor)",
            f"{_LM} | quantize(w8a8) | compile(onnxruntime)",
            f"{_LM} | prune(ratio=0.25) | train(adamw(lr=0.001), distill, steps=100) | quantize(w8a8) | compile(onnxruntime)",
        ),
    ),
    "python-lm-mamba2": Embedded(
        "thrifty.workloads.embedded.python_lm_backbones:mamba2_workload",
        "the same text for four layers of Mamba-2; bits per byte",
        recipes=(_LM, f"{_LM} | compile(inductor)"),
    ),
    "python-lm-hybrid": Embedded(
        "thrifty.workloads.embedded.python_lm_backbones:hybrid_workload",
        "the same text for three layers of Mamba-2 and one of attention; bits per byte",
        recipes=(_LM, f"{_LM} | compile(inductor)"),
    ),
    "minilm": Embedded(
        "thrifty.workloads.embedded.minilm:workload",
        "the pretrained MiniLM encoder; recall@10 of functions by their docstring; no training",
        extra="minilm",
        recipes=(
            "compile(inductor)",
            "compile(onnxruntime)",
            "quantize(bf16) | compile(inductor)",
            "quantize(w8a8) | compile(inductor)",
            "quantize(w8a8) | compile(onnxruntime)",
            "quantize(w8a8) | compile(openvino)",
            "quantize(w8a8, rest=bf16) | compile(openvino)",
        ),
    ),
}
"""Name -> place and description of each embedded workload, the default of `make demo` first."""


def suggested(workload: str) -> list[str]:
    """The recipes that `thrifty sweep` measures on an embedded workload.

    Raises:
        ThriftyError: the workload is not an embedded one, so that its recipes must be named.
    """
    if workload not in EMBEDDED:
        raise ThriftyError(f"name the recipes to measure: thrifty sweep {workload} RECIPE RECIPE ...")
    return list(EMBEDDED[workload].recipes)
