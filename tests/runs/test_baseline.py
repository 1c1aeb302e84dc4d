"""What trials are compared with, and what may cure a failure."""

import numpy as np
import pytest

from thrifty.recipes.recipe import Recipe
from thrifty.runs import baseline
from thrifty.runs.cures import cures
from thrifty.studies.figures import no_better
from thrifty.workloads.quality import Accuracy, Scores

PROPERTIES = frozenset({"module", "float-weights", "trained"})


def test_the_compiled_baseline_is_the_quickest_that_is_installed(monkeypatch):
    from thrifty.recipes.registry import method_class

    assert [name for name, _ in baseline.compilers("cpu", None)] == list(baseline.QUICKEST)
    assert [name for name, _ in baseline.compilers("cpu", "inductor")] == ["inductor", "onnxruntime", "openvino"]
    monkeypatch.setattr(method_class("onnxruntime"), "missing", classmethod(lambda cls: "pip install it"))
    assert next(baseline.compilers("cpu", None))[0] == "openvino"
    assert "openvino" not in dict(baseline.compilers("cuda", None))


def test_a_failure_names_what_may_cure_it():
    recipe = Recipe.parse("quantize(w8a8) | compile(onnxruntime)")
    hint = cures(recipe, "compile(onnxruntime)", PROPERTIES)
    assert "compile(openvino)" in hint and "compile(onnxruntime)" not in hint
    assert "quantize(bf16)" in hint and "quantize(w8a8)" not in hint
    assert "quantize" not in cures(Recipe.parse("compile(onnxruntime)"), "compile(onnxruntime)", PROPERTIES)


@pytest.mark.parametrize("phase", ["quantize(w8a8)", "", "compile(openvino)"])
def test_what_fails_elsewhere_is_no_engines_fault(phase):
    assert cures(Recipe.parse("quantize(w8a8) | compile(onnxruntime)"), phase, PROPERTIES) == ""


def hits(right: int, of: int) -> Scores:
    ones = np.ones(of)
    return Scores((np.arange(of) < right).astype(float), ones, np.arange(of))


def test_a_reference_that_cannot_be_told_from_a_constant_answer():
    assert "no better than a constant answer" in no_better(Accuracy(), hits(52, 100), 0.5)
    assert "8 validation examples cannot tell a drop of" in no_better(Accuracy(), hits(6, 8), 0.5)
    assert no_better(Accuracy(), hits(90, 100), 0.5) is None
