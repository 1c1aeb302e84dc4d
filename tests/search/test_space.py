"""The space of recipes: every choice makes a recipe that can be written and checked, and is found again from it."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.recipes.compiler import Compiler
from thrifty.recipes.phases import Train
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe
from thrifty.runs.preflight import initial_properties
from thrifty.search.space import Space, SpaceError
from thrifty.workloads.loading import load_workload

WORKLOAD = load_workload("thrifty.testing:workload")
UNTRAINED = dataclasses.replace(WORKLOAD, train=None, loss=None, reference="")
METHODS = ("bf16", "distill", "prune", "quantize", "inductor", "onnxruntime")
SPACE = Space.of(WORKLOAD, METHODS)


@st.composite
def choices(draw):
    return {slot.name: draw(st.sampled_from(slot.options)) for slot in SPACE.slots}


@given(choices())
def test_a_choice_makes_a_recipe_that_can_run_and_is_found_again(choice):
    recipe = SPACE.recipe(choice)
    if recipe is None:
        return
    assert Recipe.parse(str(recipe)) == recipe
    carry(recipe, initial_properties(WORKLOAD))
    again = SPACE.choice(recipe)
    assert again is not None and SPACE.recipe(again) == recipe


def test_the_plain_choice_is_the_reference():
    assert SPACE.recipe(SPACE.plain) == Recipe.parse(WORKLOAD.reference)


def test_methods_stand_where_their_cards_say():
    names = {slot.name for slot in SPACE.slots}
    assert names == {"structure.prune", "last.quantize", "precision", "length", "place", "recover", "compile"}
    assert len(SPACE.parts["structure.prune"]) == 5  # none, and every value of its search
    assert set(SPACE.parts["compile"]) == {"export", "inductor", "onnxruntime"}
    for recipe in map(Recipe.parse, SPACE.recipes()):
        kinds = [type(phase) for phase in recipe]
        assert not any(issubclass(kind, Compiler) for kind in kinds[:-1])
        assert sum(issubclass(kind, Train) for kind in kinds) <= 2


def test_every_recipe_of_a_small_space_is_listed_once():
    small = Space.of(WORKLOAD, ("prune", "onnxruntime"))
    found = small.recipes()
    # Two lengths by two compilers, unpruned; pruned by 4 ratios, before the training, or after it with two recoveries.
    assert len(found) == 2 * 2 * (1 + 4 * (1 + 2))
    assert small.size() >= len(found)
    assert len({str(small.recipe(choice)) for choice in found.values()}) == len(found)


def test_a_recovery_is_short_and_slow():
    (text,) = [option for option in SPACE.parts["recover"] if "distill" in option]
    recovery, reference = SPACE.parts["recover"][text], Recipe.parse(WORKLOAD.reference).phases[-1]
    assert isinstance(reference, Train)
    assert recovery.methods[0].lr == pytest.approx(reference.methods[0].lr / 3, rel=0.01)
    length = "steps" if reference.steps is not None else "epochs"
    assert getattr(recovery, length) == pytest.approx((getattr(reference, length) or 1) / 3, rel=0.35)


def test_a_workload_that_comes_trained_has_no_training_in_its_space():
    space = Space.of(UNTRAINED)
    assert not {"precision", "optimizer", "length", "place", "recover"} & set(space.parts)
    assert all(not isinstance(phase, Train) for text in space.recipes() for phase in Recipe.parse(text))


@pytest.mark.parametrize("workload, methods, says", [
    (WORKLOAD, ("prun",), "did you mean 'prune'"),
    (UNTRAINED, ("bf16",), "has no training set"),
    (WORKLOAD, ("adamw",), "its own training names it"),
])
def test_methods_that_cannot_be_explored(workload, methods, says):
    with pytest.raises(Exception, match=says):
        Space.of(workload, methods)


def test_nothing_to_explore_is_said():
    with pytest.raises(SpaceError, match="nothing to explore"):
        Space.of(UNTRAINED, ("export",))


def test_a_recipe_of_elsewhere_has_no_choice():
    assert SPACE.choice(Recipe.parse("train(steps=3) | quantize(w8a8)")) is None
