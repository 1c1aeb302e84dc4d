"""What a study tells: a reference, a trial with two trainings, one that fails, and the first measured again."""

from tests.trials import failed, trial

from thrifty.studies.events import Charged, Event, Noted, PhaseBegan, RecipeBegan, Stepped, TrialEnded
from thrifty.studies.ledger import Charge

RECIPE = "train(adamw, epochs=2) | prune(ratio=0.5) | train(epochs=1)"
SCREENED = trial("aaa", RECIPE, speed=2.5, width=0)
CLAIMED = trial("aaa", RECIPE, speed=2.25)
FAILED = failed("bbb", "quantize(w8a8)", "loss is nan")
LOSSES = {"phase 1/loss": [(10, 2.0), (20, 1.0)], "phase 2/loss": [(5, 0.5)]}
"""Of the trial, by phase: step and loss."""


def told() -> list[Event]:
    return [
        RecipeBegan("reference: train(adamw)", "reference"), PhaseBegan("train(adamw)"), Stepped(1, 2, loss=9.0),
        Charged(Charge("training", "train(adamw)", 1.0)), Noted("something"),
        RecipeBegan(RECIPE, "aaa"), PhaseBegan("train(adamw, epochs=2)"), Stepped(10, 20, loss=2.0, examples_per_second=100.0),
        Stepped(20, 20, loss=1.0), PhaseBegan("prune(ratio=0.5)"), PhaseBegan("train(epochs=1)"), Stepped(5, 5, loss=0.5),
        PhaseBegan("timing, 1 rounds of fresh processes"), Stepped(1, 1, "engine"), TrialEnded(SCREENED),
        RecipeBegan("quantize(w8a8)", "bbb"), TrialEnded(FAILED),
        RecipeBegan(RECIPE, "aaa"), TrialEnded(CLAIMED),
    ]
