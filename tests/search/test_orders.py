"""Orders of methods: which can be, why others cannot, and that each is measured."""

from __future__ import annotations

import dataclasses
import io

import pytest

from thrifty import testing
from thrifty.errors import ThriftyError
from thrifty.report.orders import print_orders
from thrifty.search.orders import measure_orders, orders

METHODS = ["prune(ratio=0.3)", "distill", "quantize(w8a8)"]


def test_orders_are_those_that_properties_allow() -> None:
    found = orders(testing.workload, METHODS)
    start = testing.workload.reference
    assert {order: str(recipe) for order, recipe in found.recipes.items()} == {
        "prune(ratio=0.3) -> distill -> quantize(w8a8)":
            f"{start} | prune(ratio=0.3) | train(distill, epochs=1) | quantize(w8a8)",
        "distill -> prune(ratio=0.3) -> quantize(w8a8)":
            f"{start} | train(distill, epochs=1) | prune(ratio=0.3) | quantize(w8a8)",
    }
    assert len(found.refused) == 4 and all("float-weights" in why for why in found.refused.values())


def test_a_model_that_comes_trained_has_no_reference_before_it() -> None:
    workload = dataclasses.replace(testing.workload, reference="")
    found = orders(workload, ["low_rank(ratio=0.2)", "prune(ratio=0.3)"], compiler="compile(onnxruntime)")
    assert sorted(map(str, found.recipes.values())) == [
        "low_rank(ratio=0.2) | prune(ratio=0.3) | compile(onnxruntime)",
        "prune(ratio=0.3) | low_rank(ratio=0.2) | compile(onnxruntime)"]


@pytest.mark.parametrize(("methods", "says"), [
    (["prune"], "takes 2 to 5 methods but got 1"), (["prune", "onnxruntime"], "comes last in every order"),
    (["quantize(w8a8)", "quantize(w4a16)"], "no order of"), (["prune", "quantize(w8a8) | prune"], "one method a text"),
    (["prune", "prun"], "did you mean 'prune'"),
])
def test_what_cannot_be_ordered_says_why(methods: list[str], says: str) -> None:
    with pytest.raises(ThriftyError, match=says):
        orders(testing.workload, methods)


@pytest.mark.slow
def test_every_order_is_measured_and_shown(tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = measure_orders("thrifty.testing:workload", ["prune(ratio=0.3)", "distill"], study=tmp_path / "study")
    assert len(found.trials) == 2 and all(trial.status == "done" for trial in found.trials.values())
    values = [trial.quality.value for trial in found.trials.values()]
    assert values == sorted(values, reverse=True)
    text = io.StringIO()
    print_orders(found, text)
    assert "prune(ratio=0.3) -> distill" in text.getvalue()
    assert len(found.to_json()["orders"]) == 2
