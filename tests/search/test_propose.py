"""Proposals: new, valid, the same for the same seed, and better than chance on a space whose truth is known."""

import dataclasses
import math

import pytest

from tests.factories import trial
from tests.search.test_space import PRETRAINED, registered  # noqa: F401
from thrifty.recipes.recipe import Recipe
from thrifty.search.alone import alone, candidates, composed
from thrifty.search.propose import outcomes, propose, values_of
from thrifty.search.space import Space
from thrifty.studies.constraints import Bars
from thrifty.workloads.loading import load_workload

WORKLOAD = load_workload("thrifty.testing:workload")
SPACE = Space.of(WORKLOAD, ("prune", "quantize", "onnxruntime", "inductor"))
SMALL = Space.of(WORKLOAD, ("onnxruntime",))
SPEED = {"export": 1.0, "inductor": 1.5, "onnxruntime": 3.0}


def ran(recipe, **fields):
    """The trial of a world in which speed is a product of its parts and pruning without training costs quality."""
    choice = SPACE.choice(Recipe.parse(str(recipe)))
    ratio = SPACE.parts["structure.prune"][choice["structure.prune"]]
    cut = ratio.ratio if ratio is not None else 0.0
    lost = cut * (0.02 if choice["recover"] != "-" or choice["place"] == "before" else 0.8)
    speed = SPEED[choice["compile"]] * (2.5 if "w8a8" in choice["last.quantize"] else 1.0) / (1 - 0.7 * cut)
    seconds = 30 * float(choice["length"]) + (10 if choice["recover"] != "-" and cut else 0)
    return trial(str(recipe), (lost, lost - 0.005, lost + 0.005), seconds=seconds, speedup=(speed, None, None),
                 recipe=str(recipe), **fields)


def first(count):
    """The first trials of an exploration: at most six methods stand alone here."""
    trials = []
    while len(trials) < min(count, 6):
        trials += [ran(recipe) for recipe in alone(SPACE, trials, Bars())][: count - len(trials)]
    return trials


def test_methods_alone_come_with_the_best_compiler():
    trials = []
    seen = []
    while waiting := alone(SPACE, trials, Bars()):
        seen.append(str(waiting[0]))
        trials.append(ran(waiting[0]))
    assert sorted(seen[:2]) == [f"{WORKLOAD.reference} | compile({name})" for name in ("inductor", "onnxruntime")]
    assert all(text.endswith("compile(onnxruntime)") for text in seen[2:])
    assert "quantize" in seen[2]  # what needs no training comes first
    assert any("quantize(w8a8)" in text for text in seen) and any("quantize(bf16)" in text for text in seen)
    (pruned,) = [text for text in seen if "prune" in text]
    assert pruned.count("train(") == 2  # with the training that recovers


def test_what_gained_alone_comes_together_first():
    trials = first(6)
    together = [str(recipe) for recipe in composed(SPACE, trials, Bars.read("2pt"))]
    assert together and all("compile(onnxruntime)" in text for text in together)
    assert "prune" in together[-1] and "quantize(w8a8)" in together[-1]
    assert composed(SPACE, [*trials, *map(ran, together)], Bars.read("2pt")) == []
    assert composed(SPACE, [], Bars()) == []
    # What is lost for good is not composed.
    assert not any("prune" in str(recipe) for recipe in composed(SPACE, trials, Bars.read("0.01pt")))


def test_proposals_are_new_and_valid():
    trials = first(6)
    found = propose(SPACE, trials, Bars(), 3, seed=0)
    assert len(set(map(str, found))) == 3
    assert not set(map(str, found)) & {t.recipe for t in trials}
    assert all(str(recipe) in SPACE.recipes() for recipe in found)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(("workload", "trainings"), [(WORKLOAD, 2), (PRETRAINED, 1)])
def test_what_requires_a_trained_model_is_proposed_after_the_training_with_recovery(workload, trainings):
    space = Space.of(workload, ("convert",))
    found = [str(recipe) for recipe in propose(space, [], Bars(), space.size(), seed=0)]
    assert sorted(found) == sorted(space.recipes())
    recovered = [text for text in found if "convert" in text and text.count("train(") == trainings]
    assert len(recovered) == 2 * (2 if trainings == 2 else 1)  # two shares, and the reference's two lengths
    assert all(text.index("convert") < text.rindex("train(") for text in recovered)


def test_the_same_trials_and_seed_give_the_same_proposals():
    trials = first(6)
    assert propose(SPACE, trials, Bars(), 2, seed=3) == propose(SPACE, trials, Bars(), 2, seed=3)


def test_a_small_space_is_exhausted_and_then_nothing_is_proposed():
    trials = []
    for _ in range(20):
        if not (found := propose(SMALL, trials, Bars(), 2, seed=0)):
            break
        trials += [trial(str(r), recipe=str(r), speedup=(2.0, None, None)) for r in found]
    assert sorted(t.recipe for t in trials) == sorted(SMALL.recipes())


@pytest.mark.slow
def test_the_best_of_a_known_world_is_found_early():
    """The fastest recipe that keeps the quality, in a tenth of a space of two hundred."""
    bars, trials = Bars.read("2pt"), first(6)
    everything = [ran(text) for text in SPACE.recipes()]
    good = [t for t in everything if t.quality.drop.high <= 0.02]
    goal = max(t.inference.speedup.value for t in good)
    while len(trials) < len(everything) // 10:
        trials += [ran(recipe) for recipe in propose(SPACE, trials, bars, 3, seed=0)]
    best = max(t.inference.speedup.value for t in trials if t.quality.drop.high <= 0.02)
    assert best >= 0.95 * goal


def test_failures_count_as_the_worst():
    trials = first(5)
    broken = trial("x", recipe=f"{WORKLOAD.reference} | quantize(bf16) | compile(onnxruntime)", status="failed",
                   error="no kernels", quality=None, inference=None)
    told = outcomes(SPACE, [*trials, broken], Bars())
    assert [values for _, values in told][-1] is None
    assert len(told) == len(trials) + 1
    assert propose(SPACE, [*trials, broken], Bars(), 1, seed=0)


def test_what_is_told_of_a_trial():
    one = trial("a", (0.05, 0.04, 0.06), seconds=math.e, speedup=(math.e, None, None), size=100)
    assert values_of(one, Bars()) == pytest.approx((0.05, -1.0, 1.0))
    assert values_of(one, Bars.read("1pt")) == pytest.approx((0.03, -1.0, 1.0))  # beyond three bars all is lost
    assert values_of(one, Bars.read(minimize="training")) == pytest.approx((0.05, 1.0))
    assert values_of(one, Bars.read(max_bytes=50)) is None
    assert values_of(dataclasses.replace(one, inference=None), Bars()) is None


def test_candidates_for_a_claim():
    fast = trial("fast", (0.002, -0.01, 0.02), speedup=(5.0, None, None))
    slow = trial("slow", (0.0, -0.001, 0.001), speedup=(2.0, None, None))
    lost = trial("lost", (0.5, 0.4, 0.6), speedup=(9.0, None, None))
    assert candidates([slow, fast, lost], Bars.read("1pt")) == [slow, fast]  # slow meets it, fast may, lost cannot
    assert candidates([slow, fast, lost], Bars()) == [lost, fast, slow]
    assert candidates([lost], Bars.read("1pt")) == [lost]  # nothing may: the nearest is shown
    assert candidates([], Bars()) == []
    told = trial("told", (0.001, 0.0, 0.002), speedup=(3.0, 2.9, 3.1, "faster", 5))
    told = dataclasses.replace(told, test=told.quality)
    assert candidates([slow, fast, told], Bars.read("1pt")) == [slow, fast]  # one loses less, the other is faster
    worse = trial("worse", (0.001, 0.0, 0.002), speedup=(2.9, None, None), seconds=1.0)
    assert candidates([worse, told], Bars.read("1pt")) == []  # it trained less, and is no better otherwise
    doubted = trial("doubted", (0.0005, -0.01, 0.02), speedup=(9.0, 8.0, 10.0, "faster", 5))
    doubted = dataclasses.replace(doubted, test=doubted.quality)
    assert candidates([worse, doubted], Bars.read("1pt")) == [worse]  # which is an answer, as what outdoes it is not
