"""Every registered method keeps every law of the conformance kit."""

from __future__ import annotations

import pytest

from thrifty import testing
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.registry import method_class, names
from thrifty.recipes.transform import Transform

HURRIED = {"auto": {"seconds": 2.0},
           "nas": {"limits": "bytes<=90%", "rounds": 1, "alternatives": ("prune(ratio=0.25)", "low_rank(ratio=0.25)"),
                   "engine": "eager", "steps": 4},
           "subnets": {"limits": "bytes<=90%", "engine": "eager", "width": "0.5", "kernel": False, "trials": 3, "steps": 4}}
"""Hyperparameters under which a method that may take minutes takes seconds, and no limit of time decides whether it can."""
STILL = (testing.text_round_trip, testing.json_round_trip, testing.card_is_whole)
"""Laws under which nothing runs."""
LONG = {"nas": ("replays_from_its_timings",), **dict.fromkeys(
    ("auto", "inductor", "tvm", "xla"), ("input_untouched", "same_seed_same_result"))}
"""{method: laws that take it ten seconds to a minute}, left to `make test-all`."""
NEIGHBORS = ("adamw", "lora", "quantize")
"""Methods next to which every other one is tried in `make test`; `make test-all` tries each next to each."""


def is_long(method, law):
    return law in LONG.get(method.name, ()) or (law == "check_agrees" and method.name not in NEIGHBORS)


CASES = [method_class(name)(**HURRIED.get(name, {})) for name in names()]


@pytest.mark.parametrize(("method", "law"), [
    pytest.param(method, law, id=f"{method.name}-{law.__name__}",
                 marks=[pytest.mark.slow] if is_long(method, law.__name__) else [])
    for method in CASES for law in testing.LAWS])
def test_method_keeps_law(method, law):
    if isinstance(method, Compiler) and (lacks := method.missing()):
        pytest.skip(lacks)
    if "cpu" not in method.card.devices and law not in STILL:
        pytest.skip(f"{method.name} does not run on processors")
    law(method)


def test_the_kit_catches_a_method_that_lies():
    """A kit that accepts anything proves nothing: a transform that does nothing must be caught."""
    prune = method_class("prune")()
    assert isinstance(prune, Transform)
    still = testing.trained()
    with pytest.raises(Exception, match="changed nothing"):
        for claim in prune.claims(testing.trained(), still):
            claim.checked("prune")


def test_the_small_workload_learns():
    model = testing.trained()
    predictions = model(testing.stripes(64, 9).tensors[0]).argmax(-1)
    assert (predictions == testing.stripes(64, 9).tensors[1]).float().mean() > 0.7
