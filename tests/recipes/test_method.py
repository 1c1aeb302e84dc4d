from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.generated_recipes import methods
from thrifty.errors import NoEffect, ThriftyError
from thrifty.recipes.card import FAMILIES, PROPERTIES, Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import HyperparameterError, Range, choice, number, recipe_text
from thrifty.recipes.method import Method
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.training_method import TrainingMethod
from thrifty.recipes.transform import Plan, Transform


@dataclass(frozen=True)
class Scale(Transform):
    """Multiplies every weight: the smallest transform there is."""

    card: ClassVar[Card] = Card("pruning", "inference time", "none", "none")
    name: ClassVar[str] = "scale"
    mode: str = choice("all", "all", "class", "per-channel")
    by: float = number(2.0, 0, 10, open_low=True)
    times: int = number(1, 0, 5)
    limit: float | None = number(None, 0)
    fused: bool = False
    teacher: str = recipe_text()

    def plan(self, model: nn.Module, context: Context) -> Plan:
        return Plan({"by": self.by**self.times})

    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(plan.values["by"])
        return model

    def claims(self, before: nn.Module, after: nn.Module) -> tuple[Claim, ...]:
        def norm(model: nn.Module) -> float:
            return float(sum(p.detach().abs().sum() for p in model.parameters()))

        return (Claim("sum of weights", norm(before), norm(after), 1e-6, norm),)


# -- hyperparameters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "words"), [
    ({"by": 0}, "by must be in (0, 10]"),
    ({"by": 10.5}, "by must be in (0, 10]"),
    ({"by": math.nan}, "by must be in"),
    ({"by": "2"}, "by must be a number in (0, 10]"),
    ({"by": True}, "by must be a number"),
    ({"by": None}, "by must be a number"),
    ({"times": 1.0}, "times must be a whole number in [0, 5]"),
    ({"times": -1}, "times must be in [0, 5]"),
    ({"limit": math.inf}, "limit must be in [0, inf)"),
    ({"limit": -1}, "limit must be in [0, inf)"),
    ({"mode": "some"}, "mode must be one of all, class, per-channel"),
    ({"mode": 1}, "mode must be one of"),
    ({"fused": 1}, "fused must be True or False"),
    ({"teacher": 3}, "teacher must be a recipe's text"),
])
def test_a_wrong_hyperparameter_says_what_it_was_and_what_is_permitted(values: dict[str, Any], words: str) -> None:
    with pytest.raises(HyperparameterError) as caught:
        Scale(**values)
    assert words in str(caught.value)
    assert f"scale({next(iter(values))}=" in str(caught.value)


@given(st.floats(-100, 100), st.floats(0, 100), st.floats(allow_nan=True, allow_infinity=True), st.booleans(),
       st.booleans())
def test_a_range_holds_what_lies_between_its_ends(low: float, width: float, value: float, open_low: bool,
                                                  open_high: bool) -> None:
    high = low + width
    bounds = Range(low, high, open_low, open_high)
    expected = (low < value or (low == value and not open_low)) and (value < high or (value == high and not open_high))
    assert (value in bounds) == expected
    assert math.inf not in Range(0, math.inf)


@given(methods(Method))
def test_arguments_are_what_differs_from_the_defaults_and_make_the_method_again(method: Method) -> None:
    assert type(method)(**dataclasses.asdict(method)) == method


def test_methods_are_values() -> None:
    assert Scale(by=3) == Scale(by=3.0)
    assert hash(Scale(by=3)) == hash(Scale(by=3.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Scale().by = 3  # type: ignore[misc]


@pytest.mark.parametrize(("method", "text"), [
    (Scale(), "scale(all)"),
    (Scale(mode="class"), "scale('class')"),
    (Scale(mode="per-channel", by=3.0), "scale('per-channel', by=3)"),
    (Scale(limit=0.5, fused=True, teacher="train"), "scale(all, limit=0.5, fused=True, teacher='train')"),
])
def test_words_stand_bare_where_they_can(method: Scale, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thrifty.recipes.parser.method_class", lambda name: Scale)
    assert str(Recipe.of(method)) == text
    assert Recipe.parse(text) == Recipe.of(method)


# -- cards and claims -------------------------------------------------------------------------------------------


def test_a_card_knows_only_the_families_and_the_properties() -> None:
    for family, phase in FAMILIES.items():
        assert Card(family, "b", "t", "p").phase == phase
    with pytest.raises(ValueError, match="family 'puning' is not one of optimizers"):
        Card("puning", "b", "t", "p")
    with pytest.raises(ValueError, match="'sparkling'"):
        Card("pruning", "b", "t", "p", provides=frozenset({"sparkling"}))
    assert len(FAMILIES) == 13
    assert all(text for text in PROPERTIES.values())


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_a_claim_holds_from_its_minimum_on_in_its_direction_only(before: float, after: float, minimum: float) -> None:
    claim = Claim("x", before, after, minimum)
    assert not claim.holds(before)
    assert claim.holds(after) == (abs(after - before) >= minimum)
    assert not claim.holds(2 * before - after) or after == before
    if claim.holds(after):
        assert claim.checked("m") is claim
    else:
        with pytest.raises(NoEffect, match="m changed nothing: x was"):
            claim.checked("m")


def test_a_claim_that_is_not_a_number_does_not_hold() -> None:
    with pytest.raises(NoEffect):
        Claim("x", 1.0, math.nan, 0.1).checked("m")


# -- alone ------------------------------------------------------------------------------------------------------


def test_a_transform_alone_works_on_a_copy() -> None:
    model = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = Scale(by=3)(model, [torch.zeros(4, 3)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, 3 * before[name]) for name, value in after.state_dict().items())
    assert model.training


def test_a_transform_that_changes_nothing_says_so() -> None:
    with pytest.raises(NoEffect, match="scale changed nothing: sum of weights was"):
        Scale(times=0)(nn.Linear(3, 2), [torch.zeros(4, 3)])
    with pytest.raises(ThriftyError, match="calibration data is empty"):
        Scale()(nn.Linear(3, 2), [])


@pytest.mark.parametrize(("batch", "shapes"), [
    (torch.ones(4, 3), [(4, 3)]),
    ((torch.ones(4, 3),), [(4, 3)]),
    ((torch.ones(4, 3), torch.zeros(4, 2)), [(4, 3), (4, 2)]),
    (((torch.ones(4, 3),), torch.zeros(4)), [(4, 3)]),
    ([[torch.ones(4, 3), torch.zeros(4, 2)], torch.zeros(4)], [(4, 3), (4, 2)]),
])
def test_calibration_takes_a_tensor_inputs_or_inputs_with_a_target(batch: Any, shapes: list[tuple[int, ...]]) -> None:
    context = Context.of([batch, batch])
    assert [[tuple(x.shape) for x in inputs] for inputs in context.calibration()] == [shapes, shapes]
    assert len(list(context.calibration())) == 2, "a second look is as long as the first"
    assert [tuple(x.shape) for x in context.example] == [(1, *shape[1:]) for shape in shapes]


def test_hooks_do_nothing_by_default() -> None:
    @dataclass(frozen=True)
    class Quiet(TrainingMethod):
        card: ClassVar[Card] = Card("optimizers", "training time", "none", "none")
        name: ClassVar[str] = "quiet"

    quiet, session, called = Quiet(), object(), []
    groups: list[dict[str, Any]] = [{"params": []}]
    total, weight = torch.tensor(2.0), torch.tensor(4)
    model = nn.Linear(1, 1)
    assert quiet.parameter_groups(session, groups) is groups  # type: ignore[arg-type]
    assert quiet.optimizer(session, groups) is None  # type: ignore[arg-type]
    assert quiet.forward(session, "batch", lambda batch: batch) == "batch"  # type: ignore[arg-type]
    assert quiet.loss(session, None, None, total, weight) == (total, weight)  # type: ignore[arg-type]
    quiet.backward(session, total, lambda loss: called.append(loss))  # type: ignore[arg-type]
    quiet.update(session, lambda: called.append("stepped"))  # type: ignore[arg-type]
    assert called == [total, "stepped"]
    assert quiet.evaluate(session, model) is quiet.finish(session, model) is model  # type: ignore[arg-type]
    assert quiet.state_dict(session) == {}  # type: ignore[arg-type]
    assert quiet.claims(session) == ()  # type: ignore[arg-type]
