import pytest

from tests.factories import trial
from tests.search.test_space import RECOVERY, registered  # noqa: F401
from thrifty.recipes.cost import Known
from thrifty.recipes.recipe import Recipe
from thrifty.search.costs import COMPILERS, Costs
from thrifty.studies.ledger import Charge, Ledger
from thrifty.studies.trial import InferenceFigure, Ratio

REFERENCE = Recipe.parse("train(adamw, epochs=4)")
TRAINED = Ledger((Charge("training", "train(adamw, epochs=4)", 40.0),))


def costs(*trials, spent=None):
    measured = Ledger((Charge("scoring", "validation", 3.0), Charge("timing", "rounds of fresh processes", 4.0, amount=1)))
    return Costs.of(trials, {t.id: spent or measured for t in trials}, TRAINED, REFERENCE)


def test_what_is_kept_costs_nothing_again():
    known = trial("a", recipe="train(adamw, epochs=4) | prune(ratio=0.5) | train(adamw, epochs=1) | compile(inductor)",
                  ledger=Ledger((*TRAINED.charges, Charge("calibration", "prune(ratio=0.5)", 2.0),
                                 Charge("training", "train(adamw, epochs=1)", 11.0),
                                 Charge("compilation", "compile(inductor)", 20.0))))
    found = costs(known)
    assert found.seconds(Recipe.parse(known.recipe)) == 20 + 7
    assert found.seconds(Recipe.parse("train(adamw, epochs=4) | prune(ratio=0.5) | compile(inductor)")) == 20 + 7
    # Another beginning: its phases are paid for, by what the same texts took.
    other = Recipe.parse("prune(ratio=0.5) | train(adamw, epochs=4) | train(adamw, epochs=1) | compile(inductor)")
    assert found.seconds(other) == 2 + 40 + 11 + 20 + 7


def test_a_training_that_never_ran_costs_its_share_of_the_references():
    assert costs().seconds(Recipe.parse("train(adamw, bf16, epochs=2)")) == 20 + 10 + 1
    assert costs().seconds(REFERENCE) == 10 + 1


def test_the_first_trial_is_expected_to_be_scored_as_long_as_the_reference_was():
    scored = Ledger((*TRAINED.charges, Charge("scoring", "validation", 74.0)))
    assert Costs.of([], {}, scored, REFERENCE).overhead == 10 + 74
    measured = Ledger((Charge("scoring", "validation", 3.0), Charge("timing", "rounds of fresh processes", 4.0, amount=1)))
    done = trial("a", recipe="train(adamw, epochs=4)")
    assert Costs.of([done], {"a": measured}, scored, REFERENCE).overhead == 7


def test_a_failed_trial_keeps_no_prefix():
    failed = trial("a", recipe="train(adamw, epochs=1) | compile(inductor)", status="failed", error="why")
    assert str(Recipe.parse("train(adamw, epochs=1)")) not in costs(failed).kept


def test_all_that_was_paid_for_a_phase_counts_once_for_each_time_it_stands():
    twice = trial("a", recipe="train(adamw, epochs=4) | (prune(ratio=0.5) | train(epochs=1)) * 2", ledger=Ledger((
        Charge("calibration", "prune(ratio=0.5)", 1.0), Charge("search", "prune(ratio=0.5)", 7.0),
        Charge("training", "train(epochs=1)", 3.0), Charge("calibration", "prune(ratio=0.5)", 2.0),
        Charge("training", "train(epochs=1)", 5.0))))
    assert costs(twice).phases == {"prune(ratio=0.5)": 5.0, "train(epochs=1)": 4.0}


# -- what has not run here ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("registered")
def test_a_method_that_has_not_run_is_asked_what_it_will_cost():
    in_steps = Recipe.parse("train(adamw, steps=200)")
    found = Costs.of([], {}, Ledger((Charge("training", str(in_steps), 10.0),)), in_steps)
    assert found.known == Known(step=0.05)
    assert found.seconds(in_steps | "convert(share=0.5)") == pytest.approx(100 * 0.5 * 0.05 + 11)
    assert found.seconds(in_steps | "prune(ratio=0.5)") == 1 + 11  # which says nothing
    assert costs().seconds(REFERENCE | "convert(share=0.5)") == 1 + 11  # who cannot tell, without a step's seconds
    ran = trial("a", recipe=f"{REFERENCE} | convert(share=0.5)",
                ledger=Ledger((*TRAINED.charges, Charge("calibration", "convert(share=0.5)", 30.0))))
    assert costs(ran).phases["convert(share=0.5)"] == 30  # asked no more


@pytest.mark.parametrize(("name", "text"), [("inductor", "compile(inductor)"), ("distill", "train(distill, epochs=2)")])
def test_compilers_and_methods_of_a_training_are_asked_too(monkeypatch, name, text):
    from thrifty.recipes.registry import method_class

    before = costs().seconds(Recipe.parse(text))
    monkeypatch.setattr(method_class(name), "estimate", lambda self, known: 17.0 + known.epoch)
    assert costs().seconds(Recipe.parse(text)) == before + 27 - (COMPILERS[name] if name == "inductor" else 0)


def test_of_a_model_that_comes_trained_a_training_costs_what_its_requests_take_until_one_ran():
    def of(*trials):
        return Costs.of(trials, {t.id: Ledger() for t in trials}, Ledger(), Recipe())

    recovered = Recipe.parse(f"prune(ratio=0.5) | {RECOVERY}")
    assert of().seconds(recovered) == 1 + 11
    figure = InferenceFigure("SingleStream", 0.001, 0.001, Ratio(2.0), Ratio(None), 1000.0, None, None)
    quick = trial("a", recipe="compile(inductor)", inference=figure)
    assert of(quick).known == Known(forward=pytest.approx(256 * 0.002))
    assert of(quick).seconds(recovered) == pytest.approx(1 + 200 * 0.5 * 256 * 0.002 + 1)
    ran = trial("b", recipe="prune(ratio=0.75) | train(adamw, steps=100)",
                ledger=Ledger((Charge("training", "train(adamw, steps=100)", 4.0),)))
    assert of(quick, ran).known.step == 0.04
    assert of(quick, ran).seconds(recovered) == pytest.approx(1 + 8 + 1)


def test_a_compiler_that_has_not_run_costs_its_usual_by_what_the_others_took():
    slow = trial("a", recipe="compile(onnxruntime)", ledger=Ledger((Charge("compilation", "compile(onnxruntime)", 6.0),)))
    scale = 6.0 / COMPILERS["onnxruntime"]
    assert costs(slow).seconds(Recipe.parse("compile(inductor)")) == pytest.approx(7 + scale * COMPILERS["inductor"])
    assert costs(slow).cheapest_compiler == 6.0 and costs().cheapest_compiler == COMPILERS["onnxruntime"]


def test_what_a_claim_measured_is_no_part_of_screening():
    spent = Ledger((Charge("start", "process", 1.0), Charge("scoring", "validation[1000]", 2.0),
                    Charge("timing", "rounds", 3.0, amount=1),
                    Charge("scoring", "test", 50.0), *(Charge("timing", "rounds", 3.0, amount=1) for _ in range(5))))
    assert costs(trial("a", recipe="compile(onnxruntime)"), spent=spent).overhead == 6.0
