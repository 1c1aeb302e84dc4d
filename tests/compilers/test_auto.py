from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar, final

import pytest
import torch
from torch import nn

import thrifty.compilers.auto as module
from tests.compilers.nets import called, conv_net, error, images, lowered, quantized
from thrifty.artifacts import artifact
from thrifty.artifacts.lowered import Lowered
from thrifty.compilers.auto import LAST_RESORT, Auto, candidates
from thrifty.compilers.capture import LoweringError
from thrifty.compilers.onnxruntime import OnnxRuntime
from thrifty.recipes.card import Card
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.registry import method_class, places


def context(*requests, heard=None):
    return Context(example=tuple(x[:1] for x in requests[0]), calibration=lambda: iter(requests),
                   progress=(heard if heard is not None else []).append)


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    """Two compilers race, with time for both on the busiest machine."""
    place, heard, net, x = tmp_path_factory.mktemp("auto"), [], conv_net(), images()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "candidates", lambda *_: ["onnxruntime", "openvino"])
        return Auto(seconds=250.0).lower(net, (x[:1],), place, context((x,), heard=heard)), place, heard, net, x


def test_it_keeps_the_fastest_of_those_that_raced(race):
    record, place, _, net, x = race
    raced = {name.partition(", ")[2]: value for name, value in record.facts.items() if name.startswith("seconds a request")}
    assert len(raced) >= 2 and all(value > 0 for value in raced.values())
    assert raced[record.engine] == min(raced.values())
    assert sorted(path.name for path in place.iterdir()) == sorted(record.files)
    artifact.write(place, record, {}, [x[:1].numpy()], [net(x[:1]).numpy()])
    assert error(artifact.load(place, trust_native_code=True)(x[:1]), net(x[:1])) < 1e-5


def test_what_the_losers_took_is_told(race):
    record, _, heard, _, _ = race
    assert record.spent and all(seconds > 0 for _, seconds in record.spent)
    assert not any(record.engine in what for what, _ in record.spent)
    assert any("ms a request" in what for what, _ in record.spent)
    assert any(line.startswith(f"auto: {record.engine}, out of") for line in heard)


def test_candidates_are_installed_apply_and_end_with_none():
    net = conv_net()
    found = candidates(net)
    assert found[-1] == LAST_RESORT and "auto" not in found and "onnxruntime" in found
    assert all(not method_class(name).missing() for name in found)
    integer = candidates(quantized(net, images()))
    assert "xla" not in integer  # which is for float weights
    assert set(integer) <= set(found)


def test_near_ones_race_three_rounds_however_little_time_is_left(tmp_path, monkeypatch):
    """One round on a busy machine once kept an engine 1.17 times slower than another."""
    raced = []

    def compare(sides, reference, inputs, *, effort, **_):
        raced.append((sorted(sides), effort.rounds))
        return SimpleNamespace(figures={reference: SimpleNamespace(p50=1.0)}, ratios={
            name: SimpleNamespace(value={"near": 1.1, "far": 0.5}[name]) for name in sides if name != reference})

    monkeypatch.setattr(module, "compare", compare)
    places = {name: tmp_path / name for name in ("first", "near", "far")}
    found = Auto(seconds=0.001)._race(places, (torch.ones(1),), context((torch.ones(1),)), time.perf_counter() - 1)
    assert raced == [(["far", "first", "near"], 1), (["first", "near"], 3)]
    assert min(found, key=found.get) == "near"


def test_integers_race_too(tmp_path, monkeypatch):
    net, x = quantized(conv_net(), images()), images()
    monkeypatch.setattr(module, "ORDER", ("onnxruntime", "openvino"))
    record = Auto(seconds=0.001).lower(net, (x[:1],), tmp_path, context((x,)))
    assert (record.engine, record.precision, record.facts["integer_layers"]) == ("onnxruntime", "int8", 5.0)


@final
@dataclass(frozen=True)
class Wrong(Compiler):
    """Lowers another model than it was given."""

    name: ClassVar[str] = "wrong"
    card: ClassVar[Card] = Card(family="compilers", benefit="inference time", trade_off="it is wrong", paper="none",
                                removes=frozenset({"module"}))

    def lower(self, model, example, directory, context) -> Lowered:
        return OnnxRuntime().lower(nn.Sequential(nn.Flatten(), nn.Linear(example[0][0].numel(), 7)), example, directory,
                                   context)

    @classmethod
    def missing(cls):
        return None


@pytest.fixture
def wrong(monkeypatch):
    """A third party's compiler, tried first."""
    monkeypatch.setattr(module, "ORDER", ("wrong", "onnxruntime"))
    names = {**places(), "wrong": f"{__name__}:Wrong"}
    monkeypatch.setattr(module, "names", lambda: list(names))
    monkeypatch.setattr(module, "method_class", lambda name: Wrong if name == "wrong" else method_class(name))


def test_one_that_is_wrong_is_out_however_fast(wrong, tmp_path):
    heard, net, x = [], conv_net(), images()
    record = Auto(seconds=0.001).lower(net, (x[:1],), tmp_path, context((x,), heard=heard))
    assert record.engine == "onnxruntime"
    assert any("auto: wrong is out: the engine's outputs differ" in line for line in heard)
    assert any(what.startswith("auto: wrong, the engine's outputs differ") for what, _ in record.spent)


def test_where_nothing_can_the_error_says_why_of_each(tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            return x * 2 if bool(x.sum() > 0) else x - 1

    with pytest.raises(LoweringError, match=r"no compiler can compile this model: .*onnxruntime: .*export"):
        Auto(seconds=60).lower(Branching(), (torch.ones(1, 4),), tmp_path, context((torch.ones(1, 4),)))


def test_its_text():
    assert str(Recipe.parse("compile(auto, seconds=30)")) == "compile(auto, seconds=30)"
    assert Recipe.parse("compile(auto)").compiler == Auto()


def test_a_race_of_one_needs_no_time(tmp_path):
    net = conv_net()
    record, engine, size = lowered(Auto(seconds=0.001), net, (images(1),), tmp_path)
    assert record.spent == () and record.portable and size > 0
    assert error(called(engine, images(1)), net(images(1))) < 1e-5
