from tests.factories import trial
from thrifty.recipes.recipe import Recipe
from thrifty.search.costs import Costs
from thrifty.studies.ledger import Charge, Ledger

REFERENCE = Recipe.parse("train(adamw, epochs=4)")
TRAINED = Ledger((Charge("training", "train(adamw, epochs=4)", 40.0),))


def costs(*trials, spent=None):
    measured = Ledger((Charge("scoring", "validation", 3.0), Charge("timing", "1 rounds", 4.0)))
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
    assert costs().seconds(Recipe.parse("train(adamw, bf16, epochs=2)")) == 20 + 10 + 10
    assert costs().seconds(REFERENCE) == 10 + 10


def test_a_failed_trial_keeps_no_prefix():
    failed = trial("a", recipe="train(adamw, epochs=1) | compile(inductor)", status="failed", error="why")
    assert str(Recipe.parse("train(adamw, epochs=1)")) not in costs(failed).kept
