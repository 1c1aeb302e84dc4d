from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from typing import Any

import pytest

from thrifty.errors import ThriftyError
from thrifty.recipes import registry
from thrifty.recipes.card import FAMILIES
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.registry import BUILT_IN, UnknownMethod, method_class, names
from thrifty.recipes.training_method import TrainingMethod
from thrifty.recipes.transform import Transform


@pytest.mark.parametrize("name", names())
def test_every_method_is_a_frozen_value_with_a_card_and_a_docstring(name: str) -> None:
    cls = method_class(name)
    assert issubclass(cls, TrainingMethod | Transform | Compiler)
    assert cls.name == name
    assert name.isidentifier(), "a recipe names it bare"
    assert cls.card.family in FAMILIES
    assert cls.card.benefit and cls.card.trade_off and cls.card.paper
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), "dataclass's own docstring is none"
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert cls.version >= 1


@pytest.mark.parametrize("name", names())
def test_every_hyperparameter_has_a_default_and_says_what_it_may_be(name: str) -> None:
    cls = method_class(name)
    method = cls()
    for spec in dataclasses.fields(method):
        assert spec.default is not dataclasses.MISSING, f"{name}.{spec.name} has no default"
        assert spec.metadata or spec.type == "bool", f"{name}.{spec.name}: number, choice, recipe_text or a bool"
        assert re.search(rf"\b{spec.name}(, \w+)*: ", cls.__doc__ or ""), f"{name}.{spec.name} is not documented"


@pytest.mark.parametrize(("name", "nearest"), [("adamv", "adamw"), ("prun", "prune"), ("onnx_runtime", "onnxruntime")])
def test_an_unknown_name_gives_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownMethod, match=f"no method '{name}'; did you mean '{nearest}'") as caught:
        method_class(name)
    assert caught.value.nearest == nearest


def test_a_name_near_to_nothing_gives_all() -> None:
    with pytest.raises(UnknownMethod) as caught:
        method_class("zzzzzz")
    assert caught.value.nearest is None
    assert all(name in str(caught.value) for name in names())


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Registers entry points as an installed package would."""

    def register(**points: str) -> None:
        found = [importlib.metadata.EntryPoint(name, value, "thrifty.methods") for name, value in points.items()]
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found)
        registry.places.cache_clear()
        method_class.cache_clear()

    yield register
    monkeypatch.undo()
    registry.places.cache_clear()
    method_class.cache_clear()


def test_third_parties_register_by_entry_point(third_party: Any) -> None:
    from tests.recipes.test_method import Scale

    third_party(scale="tests.recipes.test_method:Scale")
    assert names()[0] == "scale"
    assert method_class("scale") is Scale


def test_a_third_party_cannot_replace_a_method_that_recipes_name(third_party: Any) -> None:
    third_party(prune="tests.recipes.test_method:Scale")
    assert registry.places()["prune"] == BUILT_IN["prune"]


def test_a_method_under_another_name_than_its_own_is_refused(third_party: Any) -> None:
    third_party(scales="tests.recipes.test_method:Scale")
    with pytest.raises(ThriftyError, match="registered as 'scales' but names itself 'scale'"):
        method_class("scales")
