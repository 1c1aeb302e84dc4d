"""The law of any module: what a method leaves answers as the original within the scheme's error, or the method says why not."""

from __future__ import annotations

import copy
import functools
import itertools
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.generated_models import Drawn, draw
from tests.rounding_noise import ROUNDING, SLACK, noisy
from torch import nn

from thrifty import testing
from thrifty.errors import ThriftyError
from thrifty.numerics.flat import distance
from thrifty.numerics.plain import bake
from thrifty.posttraining.low_rank.factored import product
from thrifty.posttraining.low_rank.low_rank import LowRank
from thrifty.posttraining.pruning.cutting import masked
from thrifty.posttraining.pruning.dependency import Place, dependencies
from thrifty.posttraining.pruning.prune import Prune
from thrifty.posttraining.quantize import Quantize
from thrifty.recipes.context import Context
from thrifty.recipes.transform import Plan, Transform
from thrifty.runs import checkpoint
from thrifty.runs.checkpoint import Checkpoint

METHODS: Mapping[str, Transform] = {
    "w8a8": Quantize("w8a8"), "w4a8": Quantize("w4a8"), "w8a16": Quantize("w8a16"), "w4a16": Quantize("w4a16", group=32),
    "w3a16": Quantize("w3a16", group=32), "fp8": Quantize("fp8"), "bf16": Quantize("bf16"),
    "mixed": Quantize("mixed", group=32, max_drop=0.1), "w8a8, rest=bf16": Quantize("w8a8", rest="bf16"),
    "w4a16, rest=bf16": Quantize("w4a16", group=32, rest="bf16"),
    "prune": Prune(ratio=0.25), "low_rank": LowRank(ratio=0.05, round_to=4),
}
EXACT = 1e-3
"""Of what is the same but for the order of sums: a pruned model and its masked original, a factored one and the product."""
CALIBRATION, REQUESTS, SEED = 64, 24, 5


@functools.lru_cache(maxsize=2)
def models(seed: int) -> tuple[Drawn, nn.Module, nn.Module]:
    """A draw, its model, and the same of other weights."""
    drawn = draw(seed)
    torch.manual_seed(seed)
    model = drawn.make()
    torch.manual_seed(seed + 1)
    return drawn, model, drawn.make()


def law(seed: int, name: str) -> tuple[float, float] | str:
    """Hold one method to the law on one model.

    Returns:
        (the error of its answers, that of noise), or the words of its refusal.
    """
    (drawn, model, other), method = models(seed), METHODS[name]
    data, requests = drawn.inputs(CALIBRATION, 1), drawn.asked(REQUESTS, SEED)

    def score(other: nn.Module) -> float:
        return 1 - distance(copy.deepcopy(other).eval()(*data), copy.deepcopy(model)(*data))

    context = Context(tuple(x[:1] for x in data), lambda: iter([tuple(x[:32] for x in data), tuple(x[32:] for x in data)]),
                      score=score)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = testing.fingerprint(model) if name in ROUNDING else ""
        try:
            plan = method.plan(model, context)
            after = method.build(copy.deepcopy(model), plan).eval()
            for claim in method.claims(model, after):
                claim.checked(method.name)
        except ThriftyError as error:
            assert str(error) and "\n" not in str(error).strip(), f"more than one line: {error}"
            return str(error)
        assert not before or testing.fingerprint(model) == before, "the model that was given is changed"
        got = copy.deepcopy(after)(*requests)
        off = distance(got, copy.deepcopy(_comparable(method, plan, model, context))(*requests))
        _reloads(other, method, plan, after, requests, got)
        noise = noisy(model, ROUNDING[name], requests) if name in ROUNDING else EXACT
    return off, noise


def _comparable(method: Transform, plan: Plan, model: nn.Module, context: Context) -> nn.Module:
    """The model that the result must answer as: with zeros for what was pruned, with the product for what was factored."""
    whole = copy.deepcopy(model)
    if isinstance(method, Prune):
        bake(whole)
        kept = {Place(tensor, dim): indices for tensor, dim, indices in plan.values["slices"]}
        return masked(whole, dependencies(copy.deepcopy(whole), context.example), kept)
    if isinstance(method, LowRank):
        bake(whole)
        thin = method.build(copy.deepcopy(model), plan)
        for place in plan.values["layers"]:
            layer: Any = whole.get_submodule(place)
            layer.weight.copy_(product(thin.get_submodule(place)))
    return whole


def _reloads(other: nn.Module, method: Transform, plan: Plan, after: nn.Module, requests: Any, got: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        checkpoint.save(Checkpoint("", "", ((str(method), plan),)), after, Path(place))
        again = checkpoint.load(Path(place), copy.deepcopy(other))[1].eval()
        assert distance(again(*requests), got) < 1e-5, "a reload answers something else"


def _held(seed: int, names: Iterable[str] = METHODS) -> int:
    """How many of the methods had an effect on the model of that seed, each held to its bound."""
    count = 0
    for name in names:
        found = law(seed, name)
        if not isinstance(found, str):
            off, noise = found
            assert off <= SLACK * noise, f"{name} on {models(seed)[0].words}: off by {off:.3g}, noise by {noise:.3g}"
            count += 1
    return count


@pytest.mark.parametrize("seed", range(100))
def test_what_a_method_leaves_answers_as_the_original_or_says_why_not(seed):
    """Three of the twelve, which go around with the seeds."""
    _held(seed, itertools.islice(itertools.cycle(METHODS), 3 * seed, 3 * seed + 3))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("start", range(0, 2000, 100))
def test_the_law_over_many_models(start):
    held = sum(_held(seed) for seed in range(start, start + 100))
    assert held > 7 * 100  # of twelve methods: a refusal is the exception


def test_models_are_drawn_the_same_and_of_everything():
    assert draw(3).words == draw(3).words
    words = {word for seed in range(600) for word in draw(seed).words}
    assert words >= {"weight_norm", "spectral_norm", "orthogonal", "hook", "pre-hook", "backward hook", "huge", "tiny", "lazy",
                     "doubled", "standardized", "named", "own", "grouped", "depthwise", "transposed", "circular", "same",
                     "norm:vanish", "shared", "tied", "read", "typed", "asks", "counting", "complex", "both ways", "projected",
                     "encoder layer", "encoder", "attention", "bag", "renormed", "aux", "optional", "branching", "many",
                     "dataclass", "masked tokens", "volumes"}
