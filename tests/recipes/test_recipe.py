from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.generated_recipes import methods, recipes, trains
from thrifty import AdamW, Bf16, Distill, Export, OnnxRuntime, Prune, Quantize
from thrifty.errors import RecipeError
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.hyperparameters import HyperparameterError
from thrifty.recipes.phases import MAX_PHASES, Train
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.transform import Transform
from thrifty.runs.job import seed_of

UNTRAINED = frozenset({"module", "float-weights"})
TRAINED = UNTRAINED | {"trained"}


def parse(text: str) -> Recipe:
    return Recipe.parse(text)


# -- a value ----------------------------------------------------------------------------------------------------


@given(recipes())
def test_parsing_what_is_printed_gives_the_recipe_back(recipe: Recipe) -> None:
    again = parse(str(recipe))
    assert again == recipe
    assert str(again) == str(recipe)
    assert again.hash() == recipe.hash()


@given(recipes(most=2), recipes(most=2))
def test_hashes_are_equal_exactly_where_recipes_are(one: Recipe, other: Recipe) -> None:
    assert (one.hash() == other.hash()) == (one == other)
    if one == other:
        assert hash(one) == hash(other)


@given(recipes(most=2), recipes(most=2), recipes(most=2))
def test_joining_is_associative_and_joins_the_texts(a: Recipe, b: Recipe, c: Recipe) -> None:
    assert (a | b) | c == a | (b | c)
    assert str(a | b) == " | ".join(part for part in (str(a), str(b)) if part)


@given(recipes(most=3), st.integers(1, 4))
def test_repeating_is_joining_to_itself(recipe: Recipe, times: int) -> None:
    joined = Recipe()
    for _ in range(times):
        joined |= recipe
    assert recipe * times == joined
    if recipe.phases:
        assert parse(f"({recipe}) * {times}") == joined


@given(trains() | methods(Transform) | methods(Compiler))
def test_a_phase_alone_is_a_recipe_of_one(phase: object) -> None:
    assert Recipe.of(phase) == Recipe((phase,)) == parse(str(Recipe.of(phase)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("api", "text"), [
    (Train(AdamW(lr=3e-3), Bf16(), epochs=2), "train(adamw(lr=3e-3), bf16, epochs=2)"),
    (Train(), "train"),
    (Train(AdamW()) | Prune(ratio=0.5) | Quantize() | OnnxRuntime(),
     "train(adamw) | prune(ratio=0.5) | quantize(w8a8) | compile(onnxruntime)"),
    (Prune(ratio=0.5) | Train(Distill(temperature=2), epochs=1), "prune(ratio=0.5) | train(distill(temperature=2), epochs=1)"),
    ((Prune(ratio=0.2) | Train(epochs=1)) * 3, "(prune(ratio=0.2) | train(epochs=1)) * 3"),
    (Recipe.of(AdamW()), "train(adamw)"),
    (Recipe.of(Quantize("w4a16", group=64, layers={"head": "fp32", r"blocks\.0\..*": "w8a16"})),
     r"quantize(w4a16, group=64, layers={'head': fp32, 'blocks\\.0\\..*': 'w8a16'})"),
    (Recipe() | Export(), "compile(export)"),
])
def test_the_python_api_says_the_same_as_the_text(api: object, text: str) -> None:
    assert Recipe.of(api) == parse(text)
    assert Recipe.of(api).hash() == parse(text).hash()


def test_values_that_are_equal_read_the_same() -> None:
    for text in ("train(epochs=2)", "train(epochs=2.0)", "train(epochs=0x2)", " train(\n epochs = 2 )\n"):
        assert str(parse(text)) == "train(epochs=2)"
        assert parse(text).hash() == parse("train(epochs=2)").hash()
    assert str(Recipe.of(Train(epochs=float(np.float64(0.5))))) == str(Recipe.of(Train(epochs=np.float64(0.5))))


def test_whitespace_between_words_does_not_count_and_in_quotes_stays() -> None:
    assert parse("train( adamw ,\n\t epochs=1 )|prune") == parse("train(adamw, epochs=1) | prune()")
    recipe = Recipe.of(Train(Distill(teacher="train(adamw)  |  prune")))
    assert parse(str(recipe)) == recipe


def test_the_empty_recipe_is_the_model_as_it_comes() -> None:
    assert parse("") == parse(" \n ") == Recipe()
    assert str(Recipe()) == ""
    assert Recipe().compiler == Export()
    assert not Recipe().transforms.phases


def test_the_hash_depends_on_the_versions_of_all_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["train(adamw)", "train", "train(distill(teacher='train(adamw)'))", "train(distill(teacher='train'))"]
    before = [parse(text).hash() for text in texts]
    monkeypatch.setattr(AdamW, "version", AdamW.version + 1)
    assert all(parse(text).hash() != old for text, old in zip(texts, before, strict=True))


def test_text_and_hash_are_the_same_in_every_process() -> None:
    text = "train(adamw(lr=0.01), distill(temperature=3)) | prune(ratio=0.3) | quantize(w8a8) | compile(onnxruntime)"
    code = f"from thrifty import Recipe; r = Recipe.parse({text!r}); print(r, r.hash())"
    told = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={"PYTHONHASHSEED": seed, "PATH": ""}).stdout for seed in ("1", "2")}
    assert told == {f"{text} {parse(text).hash()}\n"}


# -- seeds ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(0, 63), st.text(max_size=8), st.integers(0, 2**31), st.integers(0, 63),
       st.text(max_size=8))
@example(1, 11, "a", 11, 1, "a")
@example(1, 1, "data", 1, 2, "data")
@example(1, 1, "data", 1, 1, "model")
def test_every_stream_of_every_phase_has_its_own_seed(s: int, p: int, a: str, t: int, q: int, b: str) -> None:
    assert 0 <= seed_of(s, p, a) < 2**63
    assert (seed_of(s, p, a) == seed_of(t, q, b)) == ((s, p, a) == (t, q, b))


# -- checking ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "culprit", "accused"), [
    ("compile(export) | prune(ratio=0.3)", "compile(export)", "prune(ratio=0.3)"),
    ("compile(onnxruntime) | train(adamw)", "compile(onnxruntime)", "train(adamw)"),
    ("compile(export) | quantize(w8a8)", "compile(export)", "quantize(w8a8)"),
    ("compile(export) | compile(onnxruntime)", "compile(export)", "compile(onnxruntime)"),
    ("quantize(w8a8) | prune(ratio=0.3)", "quantize", "prune(ratio=0.3)"),
    ("quantize(w8a8) | quantize(w8a8)", "quantize", "quantize(w8a8)"),
    ("quantize(w8a8) | train(adamw)", "quantize", "train(adamw)"),
    ("train(adamw) | quantize(w8a8) | train(adamw, epochs=2) | compile(export)", "quantize", "train(adamw, epochs=2)"),
])
def test_an_order_that_cannot_work_names_the_culprit_and_points_at_the_piece(text: str, culprit: str,
                                                                            accused: str) -> None:
    with pytest.raises(RecipeError) as caught:
        carry(parse(text), TRAINED)
    error = caught.value
    assert culprit in error.reason
    assert error.text[error.start:error.end] == accused
    assert error.start == text.rindex(accused)
    assert str(error).splitlines()[-1] == " " * (2 + error.start) + "^" * len(accused)


def test_what_requires_a_trained_model_asks_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    needy = dataclasses.replace(Prune.card, requires=Prune.card.requires | {"trained"})
    monkeypatch.setattr(Prune, "card", needy)
    for text in ("prune(ratio=0.3)", "prune(ratio=0.3) | train(adamw)"):
        with pytest.raises(RecipeError, match="put train"):
            carry(parse(text), UNTRAINED)
        assert carry(parse(f"train | {text}"), UNTRAINED)
        assert carry(parse(text), TRAINED)


@given(recipes())
def test_checking_accepts_or_says_why_and_never_changes_its_mind(recipe: Recipe) -> None:
    try:
        end = carry(recipe, TRAINED)
    except RecipeError as error:
        assert error.text == str(recipe)
        assert 0 <= error.start < error.end <= len(error.text)
        with pytest.raises(RecipeError) as again:
            carry(recipe, TRAINED)
        assert str(again.value) == str(error)
    else:
        assert carry(recipe, TRAINED) == end
        assert ("module" in end) != any(isinstance(phase, Compiler) for phase in recipe)


@given(recipes(most=3), recipes(most=3))
def test_checking_a_joined_recipe_is_checking_its_parts_in_turn(one: Recipe, other: Recipe) -> None:
    try:
        end = carry(other, carry(one, TRAINED))
    except RecipeError:
        with pytest.raises(RecipeError):
            carry(one | other, TRAINED)
    else:
        assert carry(one | other, TRAINED) == end


@given(recipes(most=3), methods(Compiler), trains() | methods(Transform) | methods(Compiler))
def test_nothing_follows_a_compiler(recipe: Recipe, compiler: Compiler, phase: object) -> None:
    with pytest.raises(RecipeError):
        carry(recipe.transforms | compiler | phase, TRAINED)


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "piece", "words"), [
    ("trian(adamw)", "trian", "did you mean 'train'?"),
    ("train(adamw) | prun(ratio=0.5)", "prun", "did you mean 'prune'?"),
    ("train(adanw)", "adanw", "did you mean 'adamw'?"),
    ("compile(onnxruntme)", "onnxruntme", "did you mean 'onnxruntime'?"),
    ("zzzz", "zzzz", "known: "),
    ("train(adamw(learning_rate=1))", "learning_rate=1", "it takes: lr"),
    ("prune(rato=0.5)", "rato=0.5", "did you mean 'ratio'?"),
    ("train(epoch=1)", "epoch=1", "did you mean 'epochs'?"),
    ("train(methods=1)", "methods=1", "no argument 'methods'"),
    ("prune(ratio=1.5)", "ratio=1.5", "ratio must be in"),
    ("prune(ratio=-1)", "ratio=-1", "ratio must be in"),
    ("prune(ratio='a')", "ratio='a'", "must be a number"),
    ("prune(ratio=True)", "ratio=True", "must be a number"),
    ("prune(ratio=1e999)", "ratio=1e999", "ratio must be in"),
    ("train(steps=1.5)", "steps=1.5", "whole number"),
    ("train(steps=0)", "steps=0", "steps must be in [1, inf)"),
    ("train(epochs=1e999)", "epochs=1e999", "epochs must be in (0, inf)"),
    ("train(epochs=1, steps=1)", "epochs=1", "epochs or steps, not both"),
    ("train(schedule=cosin)", "schedule=cosin", "must be one of cosine"),
    ("quantize(w1a1)", "quantize(w1a1)", "must be one of w8a8"),
    ("quantize(group=48)", "group=48", "must be one of 32, 64, 128"),
    ("quantize(group=64.0)", "group=64.0", "must be one of 32, 64, 128"),
    ("quantize(layers={'head': w9})", "layers={'head': w9}", "one of w8a8"),
    ("quantize(layers={'(': fp32})", "layers={'(': fp32}", "each regular expression"),
    ("quantize(layers={head: fp32})", "head", "patterns in quotes"),
    ("quantize(layers={'a': f()})", "f()", "never executed"),
    ("quantize(layers={'a': fp32, 'a': w8a8})", "'a'", "twice"),
    ("quantize(layers={**x})", "x", "patterns in quotes"),
    ("quantize(layers=[1])", "layers=[1]", "each regular expression"),
    ("train(adamw, adamw)", "train(adamw, adamw)", "adamw twice"),
    ("adamw", "adamw", "write train(adamw, ...)"),
    ("train | adamw(lr=1)", "adamw(lr=1)", "write train(adamw, ...)"),
    ("onnxruntime", "onnxruntime", "write compile(onnxruntime)"),
    ("train(prune)", "prune", "write train(...) | prune"),
    ("compile()", "compile()", "compile(export)"),
    ("compile", "compile", "compile(export)"),
    ("compile(prune)", "prune", "no compiler 'prune'"),
    ("prune * 0", "prune * 0", "repeated 1 to 64 times"),
    ("prune * 1000000", "prune * 1000000", "repeated 1 to 64 times"),
    ("((prune * 60) | train) * 2", "((prune * 60) | train) * 2", "at most 64 phases"),
    ("prune(0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)", "0.5", "at most"),
    ("prune # | quantize", "#", "cannot contain comments"),
])
def test_what_is_wrong_is_pointed_at_with_what_would_be_right(text: str, piece: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(text)
    assert words in caught.value.reason
    assert caught.value.text[caught.value.start:caught.value.end] == piece


def test_the_pointer_is_right_after_characters_of_several_bytes() -> None:
    with pytest.raises(RecipeError) as caught:
        parse("train(distill(teacher='')) | prune(ratio='é→é') | prune(rato=1)".replace("ratio='é→é'", "ratio=0.5"))
    assert caught.value.text[caught.value.start:caught.value.end] == "rato=1"
    with pytest.raises(RecipeError) as caught:
        parse("prun(ratio='é→é')|prune")
    assert caught.value.text[caught.value.start:caught.value.end] == "prun"
    with pytest.raises(RecipeError) as caught:
        parse("train(schedule='é→é', epoch=1)")
    assert caught.value.text[caught.value.start:caught.value.end] == "epoch=1"


def test_two_providers_of_one_slot_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bf16, "card", AdamW.card)
    with pytest.raises(RecipeError, match="two methods that provide the optimizer: adamw and bf16; keep one"):
        parse("train(adamw, bf16)")
    with pytest.raises(HyperparameterError, match="keep one"):
        Train(AdamW(), Bf16())


def test_an_error_in_a_teacher_points_into_the_teacher() -> None:
    with pytest.raises(RecipeError, match="did you mean 'adamw'") as caught:
        parse("train(distill(teacher='train(adamv)'))")
    assert caught.value.text == "train(adamv)"


def test_only_training_methods_stand_in_a_train_phase() -> None:
    with pytest.raises(HyperparameterError, match="only training methods"):
        Train(Prune())  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="not part of a recipe"):
        Recipe.of(3)
    with pytest.raises(RecipeError, match="at most 64 phases"):
        Recipe.of(Prune()) * (MAX_PHASES + 1)
