"""The space of recipes: every choice makes a recipe that can be written and checked, and is found again from it."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.recipes import registry
from thrifty.recipes.card import Card
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.hyperparameters import number
from thrifty.recipes.phases import Train
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.training_method import TrainingMethod
from thrifty.recipes.transform import Plan, Transform
from thrifty.runs.preflight import initial_properties
from thrifty.search.space import NONE, RECOVERY_RATE, RECOVERY_STEPS, Space, SpaceError
from thrifty.workloads.embedded.retrieval import Recall
from thrifty.workloads.loading import load_workload
from thrifty.workloads.losses import MSE

WORKLOAD = load_workload("thrifty.testing:workload")
UNTRAINED = dataclasses.replace(WORKLOAD, train=None, loss=None, reference="")
PRETRAINED = dataclasses.replace(WORKLOAD, reference="")
RECOVERY = f"train(adamw(lr={RECOVERY_RATE:g}), steps={RECOVERY_STEPS})"
METHODS = ("bf16", "distill", "prune", "quantize", "inductor", "onnxruntime")
SPACE = Space.of(WORKLOAD, METHODS)


@dataclass(frozen=True)
class Convert(Transform):
    """Converts a trained model into another architecture, which then learns what the first one knew."""

    name: ClassVar[str] = "convert"
    card: ClassVar[Card] = Card("architectures", "both", "none", "none",
                                requires=frozenset({"module", "float-weights", "trained"}))
    share: float = number(0.5, 0, 1, search=(0.25, 0.5))

    def plan(self, model, context):
        return Plan()

    def build(self, model, plan):
        return model

    def claims(self, before, after):
        return ()

    def estimate(self, known):
        return None if known.step is None else 100 * self.share * known.step


@dataclass(frozen=True)
class Rebuild(Convert):
    """Makes another architecture, whose weights are nothing before they are trained."""

    name: ClassVar[str] = "rebuild"
    card: ClassVar[Card] = Card("architectures", "both", "none", "none", needs=frozenset({"training"}))
    share: float = number(0.5, 0, 1)


@dataclass(frozen=True)
class Ranked(TrainingMethod):
    """Spreads a training over ranks."""

    name: ClassVar[str] = "ranked"
    card: ClassVar[Card] = Card("distributed", "training time", "none", "none", slot="parallelism")


@pytest.fixture
def registered(monkeypatch):
    """The methods above, in the registry."""
    for cls in (Convert, Rebuild, Ranked):
        monkeypatch.setitem(registry.BUILT_IN, cls.name, f"tests.search.test_space:{cls.__name__}")
    registry.places.cache_clear()
    registry.method_class.cache_clear()
    yield
    monkeypatch.undo()
    registry.places.cache_clear()
    registry.method_class.cache_clear()


def kinds_of(space):
    return {slot.name: slot.kind for slot in space.slots}


@st.composite
def choices(draw):
    space = draw(st.sampled_from([(WORKLOAD, SPACE), (PRETRAINED, Space.of(PRETRAINED))]))
    return *space, {slot.name: draw(st.sampled_from(slot.options)) for slot in space[1].slots}


@given(choices())
def test_a_choice_makes_a_recipe_that_can_run_and_is_found_again(drawn):
    workload, space, choice = drawn
    recipe = space.recipe(choice)
    if recipe is None:
        return
    assert Recipe.parse(str(recipe)) == recipe
    carry(recipe, initial_properties(workload))
    again = space.choice(recipe)
    assert again is not None and space.recipe(again) == recipe


def test_the_plain_choice_is_the_reference():
    assert SPACE.recipe(SPACE.plain) == Recipe.parse(WORKLOAD.reference)


def test_methods_stand_where_their_cards_say():
    assert kinds_of(SPACE) == {
        "structure.prune": "structure", "last.quantize": "last", "precision": "training", "length": "length",
        "place": "place", "recover": "recovery", "compile": "compiler"}
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


def test_a_recovery_by_the_optimizer_of_no_name_is_slow_too():
    space = Space.of(dataclasses.replace(WORKLOAD, reference="train(distill, epochs=3)"), ("prune",))
    assert space.slot("recovery").options == (NONE, "train(adamw(lr=0.000333), distill, epochs=1)")


def test_a_workload_that_cannot_be_trained_has_no_training_in_its_space():
    space = Space.of(UNTRAINED)
    assert set(kinds_of(space).values()) == {"structure", "last", "compiler"}
    assert all(not isinstance(phase, Train) for text in space.recipes() for phase in Recipe.parse(text))


def test_a_model_that_comes_trained_is_recovered_by_its_own_teaching_where_inputs_have_no_labels():
    alone = dataclasses.replace(UNTRAINED, unlabelled=WORKLOAD.validation)
    space = Space.of(alone, ("prune", "distill", "quantize", "onnxruntime"))
    recovery = RECOVERY.replace("),", "), distill,")
    assert space.slot("recovery").options == (NONE, recovery)
    assert f"prune(ratio=0.5) | {recovery} | quantize(w8a8) | compile(onnxruntime)" in set(space.recipes())
    assert Space.of(alone, ("prune", "onnxruntime")).slot("recovery") is None  # nobody is asked to teach
    vectors = dataclasses.replace(alone, quality=Recall())
    assert "distill(embedding)" in Space.of(vectors, ("prune", "distill")).slot("recovery").options[1]


def test_a_model_that_comes_trained_is_recovered_where_it_can_be_trained():
    space = Space.of(PRETRAINED, ("prune", "distill", "quantize", "onnxruntime"))
    assert set(kinds_of(space).values()) == {"structure", "last", "recovery", "compiler"}
    assert space.slot("recovery").options == (NONE, RECOVERY, RECOVERY.replace("),", "), distill,"))
    texts = set(space.recipes())
    assert {"prune(ratio=0.5)", f"prune(ratio=0.5) | {RECOVERY} | quantize(w8a8) | compile(onnxruntime)"} <= texts
    assert {text for text in texts if "prune" not in text and "train" in text} == set()  # there is nothing to recover from
    assert space.recipe(space.plain) == Recipe()


# -- where a transform stands, by its properties ------------------------------------------------------------------


@pytest.mark.usefixtures("registered")
def test_what_requires_a_trained_model_stands_after_the_training_whatever_its_family():
    space = Space.of(WORKLOAD, ("convert", "prune", "distill"))
    assert kinds_of(space)["after.convert"] == "after"
    reference, recovery = WORKLOAD.reference, space.slot("recovery").options[1]
    texts = [text for text in space.recipes() if "convert(share=0.25)" in text]
    assert f"{reference} | convert(share=0.25) | {recovery}" in texts
    assert f"prune(ratio=0.5) | {reference} | convert(share=0.25) | {recovery}" in texts  # pruned before, converted after
    assert any("distill" in text for text in texts)
    assert all(text.index("train(") < text.index("convert") for text in texts)


@pytest.mark.usefixtures("registered")
def test_what_requires_a_trained_model_is_recovered_where_it_comes_trained():
    space = Space.of(PRETRAINED, ("convert",))
    assert set(space.recipes()) == {
        "", *(f"convert(share={share}){after}" for share in (0.25, 0.5) for after in ("", f" | {RECOVERY}"))}
    bare = Space.of(UNTRAINED, ("convert",))
    assert set(bare.recipes()) == {"", "convert(share=0.25)", "convert(share=0.5)"}


@pytest.mark.usefixtures("registered")
def test_what_needs_training_is_always_followed_by_one():
    space = Space.of(WORKLOAD, ("rebuild",))
    assert kinds_of(space) == {"before.rebuild": "before", "length": "length"}
    assert f"rebuild(share=0.5) | {WORKLOAD.reference}" in space.recipes()
    assert set(Space.of(PRETRAINED, ("rebuild",)).recipes()) == {"", f"rebuild(share=0.5) | {RECOVERY}"}
    assert "before.rebuild" not in kinds_of(Space.of(UNTRAINED))
    with pytest.raises(SpaceError, match="rebuild needs training, and stripes has no training set"):
        Space.of(UNTRAINED, ("rebuild",))


@pytest.mark.usefixtures("registered")
def test_the_slots_of_a_training_are_those_of_its_methods():
    space = Space.of(WORKLOAD, ("bf16", "lion", "ranked", "distill", "prune"), ranks=2)
    assert [slot.name for slot in space.slots if slot.kind == "training"] == ["precision", "optimizer", "parallelism"]
    whole = {**space.plain, "precision": "bf16", "optimizer": "lion", "parallelism": "ranked"}
    assert str(space.recipe(whole)) == "train(lion, bf16, ranked, epochs=2)"


def test_a_method_of_a_training_takes_the_place_of_the_references_own():
    space = Space.of(dataclasses.replace(WORKLOAD, reference="train(bf16, distill, adamw, epochs=2)"), ("fp16", "muon"), "cuda")
    both = {**space.plain, "precision": "fp16", "optimizer": "muon"}
    assert str(space.recipe(both)) == "train(fp16, distill, muon, epochs=2)"


def test_what_cannot_go_together_is_no_recipe():
    space = Space.of(dataclasses.replace(WORKLOAD, reference="train(qat, epochs=2)"), ("prune", "lora", "quantize"))
    assert space.recipes() and all("lora" not in text and "quantize" not in text for text in space.recipes())


def test_what_needs_logits_is_not_proposed_where_the_loss_gives_none():
    numbers = dataclasses.replace(WORKLOAD, loss=MSE())
    recipes = Space.of(numbers, ("muon", "prune", "bf16")).recipes()
    assert recipes and not any("distill" in text or "sophia" in text for text in recipes)
    for name, offered in (("distill", "recover"), ("sophia", "optimizer")):
        assert any(name in option for option in Space.of(WORKLOAD).parts[offered])
        assert not any(name in option for option in Space.of(numbers).parts[offered])


@pytest.mark.parametrize("workload, methods, says", [
    (dataclasses.replace(WORKLOAD, loss=MSE()), ("distill", "prune"), "distill needs logits, but the loss of stripes, MSE"),
    (WORKLOAD, ("prun",), "did you mean 'prune'"),
    (UNTRAINED, ("bf16",), "has no training set"),
    (WORKLOAD, ("adamw",), "its own training names it"),
    (PRETRAINED, ("bf16", "prune"), "bf16 cannot be explored on stripes: the model comes trained"),
    (WORKLOAD, ("distill", "onnxruntime"), "nothing to recover from"),
    (WORKLOAD, ("auto", "prune"), "auto would race the others again"),
])
def test_methods_that_cannot_be_explored(workload, methods, says):
    with pytest.raises(Exception, match=says):
        Space.of(workload, methods)


def test_nothing_to_explore_is_said():
    with pytest.raises(SpaceError, match="export cannot be explored on stripes: recipes without a compiler end as export"):
        Space.of(UNTRAINED, ("export",))


def test_a_recipe_of_elsewhere_has_no_choice():
    assert SPACE.choice(Recipe.parse("train(steps=3) | quantize(w8a8)")) is None


def test_methods_that_spread_a_training_are_offered_where_there_are_ranks_to_spread_it_over():
    alone, two = Space.of(WORKLOAD), Space.of(WORKLOAD, ranks=2)
    assert alone.slot("training") is not None and "parallelism" not in {slot.name for slot in alone.slots}
    (slot,) = [slot for slot in two.slots if slot.name == "parallelism"]
    assert set(slot.parts) == {"-", "ddp", "zero1", "zero2", "zero3"}
    with pytest.raises(SpaceError, match="ddp distributes training over ranks, but there is only one: give --nproc"):
        Space.of(WORKLOAD, ("ddp",))
