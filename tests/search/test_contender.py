from __future__ import annotations

import dataclasses

import pytest

from thrifty import testing
from thrifty.errors import RecipeError, ThriftyError
from thrifty.search.contender import Contender, TuneError, fewest, optimizers

WORKLOAD = testing.workload


def searched(contender: Contender, quality, trials: int) -> dict:
    known: dict = {}
    while (point := contender.following(known, trials)) is not None:
        assert point not in known
        known[point] = quality(point)
    return known


def test_the_optimizer_takes_the_place_of_the_references_and_all_else_stays():
    reference = "prune(ratio=0.5) | train(adamw(lr=0.003), bf16, steps=9, clip=2)"
    workload = dataclasses.replace(WORKLOAD, reference=reference)
    contender = Contender.of(workload, "muon(momentum=0.9)")
    assert str(contender) == "muon(momentum=0.9)"
    assert str(contender.recipe((1.0, 0.0), evaluations=4)) == (
        "prune(ratio=0.5) | train(muon(lr=0.004, momentum=0.9), bf16, steps=9, clip=2, evaluations=4)")


def test_a_second_number_is_the_optimizers_or_the_trainings():
    decay = Contender.of(WORKLOAD, "adamw", "weight_decay")
    assert str(decay.recipe((0.0, 1.0))) == "train(adamw(weight_decay=0.04), epochs=2)"
    warm = Contender.of(WORKLOAD, "adamw", "warmup")
    assert str(warm.recipe((-1.0, -1.0))) == "train(adamw(lr=0.00025), epochs=2, warmup=0.025)"
    both = Contender.of(WORKLOAD, "adamw", "beta1, warmup")
    assert str(both.recipe((0.0, 1.0, 1.0))) == "train(adamw(beta1=0.6), epochs=2, warmup=0.4)"


@pytest.mark.parametrize(("text", "also", "names"), [
    ("adamw", "", ["lr", "beta2", "weight_decay"]), ("sophia", "", ["lr", "gamma"]), ("muon", "", ["lr", "weight_decay"]),
    ("soap", "", ["lr"]), ("lion", "", ["lr", "weight_decay"]), ("schedule_free", "", ["lr", "beta1"]),
    ("adamw", "lr", ["lr"]), ("adamw", "warmup", ["lr", "warmup"]),
    ("adamw(weight_decay=0)", "", ["lr", "beta2"]), ("sophia(gamma=auto)", "", ["lr"]),
])
def test_what_the_paper_says_is_tuned_where_nothing_is_named(text, also, names):
    assert [line.name for line in Contender.of(WORKLOAD, text, also).lines] == names


def test_a_running_mean_is_searched_by_its_distance_from_one():
    contender = Contender.of(WORKLOAD, "adamw")
    assert str(contender.recipe((0.0, -1.0, 0.0))) == "train(adamw(beta2=0.99975), epochs=2)"
    assert str(contender.recipe((0.0, 1.0, 0.0))) == "train(adamw(beta2=0.996), epochs=2)"
    assert str(contender.recipe((0.0, 0.0, 0.0))) == "train(adamw, epochs=2)"


@pytest.mark.parametrize("trials", range(3, 8))
def test_every_trial_is_spent_on_the_learning_rate_where_nothing_else_is_asked_for(trials):
    contender = Contender.of(WORKLOAD, "adamw", "lr")
    known = searched(contender, lambda point: -abs(point[0] + 0.3), trials)
    assert len(known) == trials and not contender.edges(known)
    assert contender.best(known) == max(known, key=known.get)


@pytest.mark.parametrize("trials", range(5, 12))
def test_of_two_numbers_both_are_bracketed(trials):
    contender = Contender.of(WORKLOAD, "adamw", "weight_decay")
    known = searched(contender, lambda point: -abs(point[0] - 0.3) - abs(point[1] + 0.2), trials)
    assert len(known) == trials and not contender.edges(known)
    second = [point for point in known if point[0] == contender.best(known)[0]]
    assert len(second) >= 3 and contender.best(known) == max(known, key=known.get)


@pytest.mark.parametrize("trials", range(3, 16))
def test_of_three_numbers_as_many_are_bracketed_as_the_trials_reach(trials):
    contender = Contender.of(WORKLOAD, "adamw")
    known = searched(contender, lambda point: -abs(point[0] - 0.3) - abs(point[1] + 0.2) - abs(point[2] - 0.1), trials)
    assert len(known) == trials and contender.best(known) == max(known, key=known.get)
    assert contender.edges(known) == ("beta2", "weight_decay")[min(2, (trials - 3) // 2):]


def test_what_stands_at_the_edge_is_named():
    contender = Contender.of(WORKLOAD, "adamw", "weight_decay")
    assert contender.edges(searched(contender, lambda point: point[0] - abs(point[1]), 6)) == ("lr",)
    assert contender.edges(searched(contender, lambda point: point[1] - abs(point[0]), 6)) == ("weight_decay",)


def test_every_optimizer_can_be_tuned():
    assert set(optimizers()) >= {"adamw", "sophia", "muon", "soap", "lion", "adafactor", "schedule_free"}
    for name in optimizers():
        contender = Contender.of(WORKLOAD, name)
        assert contender.lines[0].center == contender.optimizer.lr


@pytest.mark.parametrize(("text", "also", "says"), [
    ("adamv", "", "did you mean 'adamw'"), ("prune", "", "no optimizer 'prune'"), ("", "", "no optimizer ''"),
    ("adamw, muon", "", "no optimizer 'adamw, muon'"), ("adamw(lr=0.1), bf16", "", "more than one"),
    ("adamw(lr=0)", "", "must be in (0, inf)"), ("adamw(lr=-1)", "", "must be in (0, inf)"),
    ("adamw(rate=1)", "", "no argument 'rate'"), ("adamw", "color", "has no number 'color'"),
    ("sophia", "every", "has no number 'every'"), ("sophia(gamma=auto)", "gamma", "nothing to tune"),
    ("adafactor", "weight_decay", "weight_decay must be above 0"), ("adamw(__import__('os'))", "", "never executed"),
])
def test_what_cannot_be_tuned_is_refused(text, also, says):
    with pytest.raises(ThriftyError) as caught:
        Contender.of(WORKLOAD, text, also)
    assert says in str(caught.value)
    assert isinstance(caught.value, TuneError | RecipeError) or "above 0" in says


@pytest.mark.parametrize(("changes", "says"), [
    ({"train": None, "reference": ""}, "no training set"), ({"reference": ""}, "has 0"),
    ({"reference": "train(adamw) | train(lion)"}, "has 2"),
])
def test_a_workload_without_one_training_is_refused(changes, says):
    with pytest.raises(TuneError, match=says):
        Contender.of(dataclasses.replace(WORKLOAD, **changes), "adamw")


def test_the_fewest_trials_bracket():
    assert (fewest(""), fewest("lr"), fewest("warmup"), fewest("warmup, beta2")) == (3, 3, 5, 7)
