from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thrifty import testing
from thrifty.errors import NoEffect
from thrifty.numerics.modules import GroupedLinear, QuantConv, QuantLinear
from thrifty.posttraining.quantization.listing import layers
from thrifty.posttraining.quantization.mixed import harshest, mixtures, patterns
from thrifty.posttraining.quantization.sensitivity import Option
from thrifty.posttraining.quantize import Quantize
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import HyperparameterError
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.transform import Plan
from thrifty.runs.context import Measurements, Recall, make_context
from thrifty.runs.journal import Journal
from thrifty.target import Target

TABLE = {
    "a": (Option("fp32", 400, 0.0), Option("w8a8", 100, 0.001), Option("w4a16", 50, 0.002)),
    "b": (Option("fp32", 400, 0.0), Option("w8a8", 100, 0.5), Option("w4a16", 50, 0.9)),
    "c": (Option("fp32", 40, 0.0), Option("w8a8", 10, 0.01)),
}


def totals(mixture: dict[str, str]) -> tuple[int, float]:
    chosen = [next(o for o in TABLE[name] if o.scheme == scheme) for name, scheme in mixture.items()]
    return sum(o.bytes for o in chosen), sum(o.error for o in chosen)


def test_mixtures_go_from_float_to_the_fewest_bytes_and_none_is_beaten():
    found = mixtures(TABLE)
    assert set(found[0].values()) == {"fp32"}
    assert found[-1] == {"a": "w4a16", "b": "w4a16", "c": "w8a8"}
    ours = [totals(mixture) for mixture in found]
    assert ours == sorted(ours, key=lambda pair: (-pair[0], pair[1]))
    every = [totals(dict(zip(TABLE, schemes, strict=True)))
             for schemes in itertools.product(*([o.scheme for o in options] for options in TABLE.values()))]
    for size, error in ours:
        assert not any(other <= size and worse < error - 1e-12 for other, worse in every)


@given(st.integers(-1, 23), st.integers(1, 24))
def test_bisection_finds_the_last_that_is_borne(last, count):
    found = [{"layer": str(i)} for i in range(count)]
    asked: list[int] = []

    def bears(mixture) -> bool:
        asked.append(int(mixture["layer"]))
        return asked[-1] <= last

    assert harshest(found, bears) == min(last, count - 1)
    assert len(asked) <= 5


def test_patterns_match_whole_names_first():
    assert list(patterns({"head": "fp32", "encoder.head": "w8a8"}).items()) == [("encoder\\.head", "w8a8"), ("head", "fp32")]


def context(notes: list[str], measured: Measurements, recall: Recall) -> Context:
    return make_context(testing.workload, Target(), 0, lambda event: notes.append(event.text), measurements=measured,
                        recall=recall, examples=64)


def fresh() -> tuple[list[str], Measurements, Recall]:
    return [], Measurements(testing.workload, Target(), "cpu", 0, Journal()), Recall("the model of the tests")


@pytest.mark.slow
def test_the_fewest_bytes_that_quality_bears(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    net = testing.trained().eval()
    method = Quantize("mixed", max_drop=0.05, group=32)
    found = []
    for again in (False, True):
        notes, measured, recall = fresh()
        with torch.no_grad():
            where = context(notes, measured, recall)
            plan = method.plan(net, where)
            after = method.build(copy.deepcopy(net), Plan(json.loads(json.dumps(dict(plan.values))), plan.tensors))
        assert len(measured.made) >= 3 and bool(recall.seconds) == again  # scorings are charged; the table is computed once
        assert where.score(after) >= where.score(net) - 0.05
        found.append(plan.values["mixed"])
        assert any(note.startswith("mixed: ") for note in notes)
    assert found[0] == found[1] and set(found[0]) == {"stem.0", "inner.0", "inner.3", "head.0", "head.2"}
    rows = layers(after, plan)
    assert {row["layer"]: row["scheme"] for row in rows} == found[0]
    for row in rows:
        kinds = {"w8a8": QuantConv | QuantLinear, "fp32": nn.Conv2d | nn.Linear}
        assert isinstance(after.get_submodule(row["layer"]), kinds.get(row["scheme"], GroupedLinear))
        assert row["bytes"] > 0 and (row["error"] > 0) == (row["scheme"] != "fp32")
    for claim in method.claims(net, after):
        claim.checked("quantize")


def test_what_is_pinned_stays_and_what_quality_does_not_bear_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    net = testing.trained().eval()
    with torch.no_grad():
        plan = Quantize("mixed", max_drop=1.0, group=32, layers={"inner.*": "fp32"}).plan(net, context(*fresh()))
        assert set(plan.values["mixed"]) == {"stem.0", "head.0", "head.2"}
        assert set(plan.values["convolutions"]) <= {"stem.0"}
        strict = context(*fresh())
        scores = iter([1.0])
        object.__setattr__(strict, "score", lambda model: next(scores, 0.0))  # the float model's, then what nothing reaches
        with pytest.raises(NoEffect, match="no layer can be quantized"):
            Quantize("mixed", group=32).plan(net, strict)


def test_nothing_to_choose_for():
    with pytest.raises(NoEffect, match="nothing to choose"), torch.no_grad():
        Quantize("mixed", group=32, layers={".*": "fp32"}).plan(testing.trained(), context(*fresh()))


def test_without_a_workload_it_is_refused():
    with pytest.raises(HyperparameterError, match="workload's quality"):
        Quantize("mixed")(testing.trained(), [torch.randn(8, 1, 12, 12)])
    for settings in ({"algorithm": "gptq"}, {"scheme": "w8a8", "max_drop": 0.5}):
        with pytest.raises(HyperparameterError, match="mixed"):
            Quantize(**{"scheme": "mixed", **settings})(testing.trained(), [torch.randn(8, 1, 12, 12)])


def test_its_text_round_trips():
    recipe = Recipe.parse("quantize(mixed, max_drop=0.02) | compile(openvino)")
    assert str(recipe) == "quantize(mixed, max_drop=0.02) | compile(openvino)"
