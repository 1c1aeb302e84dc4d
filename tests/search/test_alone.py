"""Methods alone: each once, with what it takes to be judged fairly."""

import pytest

from tests.factories import trial
from tests.search.test_space import PRETRAINED, RECOVERY, WORKLOAD, registered  # noqa: F401
from thrifty.search.alone import alone, composed, representative
from thrifty.search.space import Space
from thrifty.studies.constraints import Bars


def every(space):
    """Texts of all that would run alone, in their order."""
    trials = []
    while waiting := alone(space, trials, Bars()):
        trials += [trial(str(recipe), recipe=str(recipe), speedup=(2.0, None, None)) for recipe in waiting]
    return [one.recipe for one in trials]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(("workload", "before", "recovery"), [
    (WORKLOAD, f"{WORKLOAD.reference} | ", "train(adamw, epochs=0.667)"), (PRETRAINED, "", RECOVERY)])
def test_what_no_training_follows_comes_with_one_that_recovers(workload, before, recovery):
    space = Space.of(workload, ("convert", "prune", "quantize", "onnxruntime"))
    end = "compile(onnxruntime)"
    texts = every(space)
    assert texts[0] == f"{before}{end}"
    assert texts[1:5] == [f"{before}{part} | {end}" for part in (
        "quantize(w8a8)", "quantize(bf16)", f"prune(ratio=0.75) | {recovery}", f"convert(share=0.5) | {recovery}")]


@pytest.mark.usefixtures("registered")
def test_what_stands_before_the_training_needs_no_recovery_unless_there_is_none():
    assert [text for text in every(Space.of(WORKLOAD, ("rebuild", "prune"))) if "rebuild" in text] == [
        f"rebuild(share=0.5) | {WORKLOAD.reference}"]
    assert every(Space.of(PRETRAINED, ("rebuild",))) == [f"rebuild(share=0.5) | {RECOVERY}"]


@pytest.mark.usefixtures("registered")
def test_methods_of_a_training_stand_alone_too():
    texts = every(Space.of(WORKLOAD, ("bf16", "lion", "ranked"), ranks=2))
    assert texts == ["train(adamw(lr=0.003), bf16, epochs=2)", "train(lion, epochs=2)",
                     "train(adamw(lr=0.003), ranked, epochs=2)", "train(adamw(lr=0.003), epochs=1)"]


@pytest.mark.usefixtures("registered")
def test_what_gained_comes_together_with_its_recovery():
    space = Space.of(PRETRAINED, ("convert", "quantize", "onnxruntime"))
    speeds = {"compile(onnxruntime)": 1.5, "quantize(w8a8) | compile(onnxruntime)": 3.0,
              f"convert(share=0.5) | {RECOVERY} | compile(onnxruntime)": 2.0}
    ran = [trial(text, recipe=text, speedup=(speed, None, None)) for text, speed in speeds.items()]
    assert [str(recipe) for recipe in composed(space, ran, Bars())] == [
        f"convert(share=0.5) | {RECOVERY} | quantize(w8a8) | compile(onnxruntime)"]


def test_of_options_that_differ_in_numbers_alone_the_middle_one_stands_for_all():
    parts = Space.of(WORKLOAD, ("prune", "quantize")).parts
    assert representative({option: part for option, part in parts["structure.prune"].items() if part}) == ["prune(ratio=0.75)"]
    assert representative(parts["length"]) == ["0.5"]


@pytest.mark.usefixtures("registered")
def test_what_fails_with_the_best_compiler_is_tried_with_the_next():
    space = Space.of(PRETRAINED, ("quantize", "onnxruntime", "inductor"))
    ran = [trial("o", recipe="compile(onnxruntime)", speedup=(3.0, 2.9, 3.1)),
           trial("i", recipe="compile(inductor)", speedup=(2.0, 1.9, 2.1))]
    first = [str(recipe) for recipe in alone(space, ran, Bars())]
    assert first and all(text.endswith("compile(onnxruntime)") for text in first)
    fine = [trial(text, recipe=text, speedup=(4.0, 3.9, 4.1)) for text in first if "w8a8" not in text]
    refused = trial("r", recipe="quantize(w8a8) | compile(onnxruntime)", status="failed", error="it has no such operator")
    second = [str(recipe) for recipe in alone(space, [*ran, *fine, refused], Bars())]
    assert second == ["quantize(w8a8) | compile(inductor)"]
    too = trial("t", recipe=second[0], status="failed", error="nor has it")
    assert alone(space, [*ran, *fine, refused, too], Bars()) == []  # no compiler is left
    took = trial("t", recipe=second[0], speedup=(6.0, 5.9, 6.1))
    assert alone(space, [*ran, *fine, refused, took], Bars()) == []
