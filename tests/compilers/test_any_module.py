"""The law of any module, for compilers: an engine answers as the module it was made of, whatever the batch, or says why not."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.generated_models import Drawn, draw
from thrifty import Inductor, OnnxRuntime, OpenVino, Tvm, Xla, load, lower
from thrifty.compilers.auto import PROPERTIES
from thrifty.compilers.capture import precision_of
from thrifty.compilers.parity import as_tuple, check_parity
from thrifty.errors import ThriftyError
from thrifty.posttraining.quantize import Quantize
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context

COMPILERS: tuple[Compiler, ...] = (OpenVino(), OnnxRuntime(), Tvm(), Xla(), Inductor())
SCHEMES: Mapping[str, Quantize | None] = {
    "fp32": None, "w8a8": Quantize("w8a8"), "bf16": Quantize("bf16"), "w4a16": Quantize("w4a16", group=32),
}
LARGEST = 16
"""Requests in a call: their number is left free from 1 to it."""
ASKED = (1, 3, LARGEST)


def law(seed: int) -> str:
    """Hold one compiler to the law on the model of a seed, as it is or quantized.

    Compilers go around with the seeds, and schemes once all compilers had their turn, among those that a compiler takes.

    Returns:
        "" or the words of its refusal.
    """
    drawn, compiler = draw(seed), COMPILERS[seed % len(COMPILERS)]
    taken = [name for name, method in SCHEMES.items() if not compiler.card.refuses & _properties(method)]
    scheme = taken[seed // len(COMPILERS) % len(taken)]
    return lowered(seed, drawn, compiler, scheme)


def _properties(method: Quantize | None) -> frozenset[str]:
    return method.provides if method is not None else frozenset()


def lowered(seed: int, drawn: Drawn, compiler: Compiler, scheme: str) -> str:
    if lacks := compiler.missing():
        pytest.skip(lacks)
    torch.manual_seed(seed)
    model, requests = drawn.make().requires_grad_(False), drawn.asked(sum(ASKED), 5)

    def answers(*inputs: Tensor) -> tuple[Tensor, ...]:
        return as_tuple(copy.deepcopy(model)(*inputs))

    with torch.no_grad(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as place:
        warnings.simplefilter("ignore")
        try:
            if (method := SCHEMES[scheme]) is not None:
                data = drawn.inputs(64, 1)
                context = Context(tuple(x[:1] for x in data), lambda: iter([data]))
                model = method.build(copy.deepcopy(model), method.plan(model, context)).eval()
                if compiler.card.refuses & {PROPERTIES[part] for part in precision_of(model).split("+") if part in PROPERTIES}:
                    return "refused by its card"
            shapes = {i: {0: (1, LARGEST)} for i in range(len(requests))}
            record = lower(copy.deepcopy(model), compiler, Path(place) / "model", tuple(x[:1] for x in requests), shapes=shapes)
        except ThriftyError as error:
            assert "\n" not in str(error).strip() and "the lowering is wrong" not in str(error), str(error)
            return str(error)
        with contextlib.closing(load(Path(place) / "model", trust_native_code=True)) as engine:
            check_parity(answers, engine, list(zip(*(x.split(ASKED) for x in requests), strict=True)), record.precision)
    return ""


@pytest.mark.parametrize("seed", [
    0, 13, 26, 65, 78, 91, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (39, 52))])  # Inductor and TVM take long
def test_an_engine_answers_as_its_module_or_the_compiler_says_why_not(seed):
    law(seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("start", range(0, 2000, 100))
def test_the_law_over_many_models(start):
    seeds = [seed for seed in range(start, start + 100) if COMPILERS[seed % len(COMPILERS)].missing() is None]
    refused = sum(bool(law(seed)) for seed in seeds)
    assert refused < len(seeds) / 2  # control flow on numbers, outputs of a class, what a backend cannot express
