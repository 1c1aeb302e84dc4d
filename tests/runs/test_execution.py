"""The pieces of a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from thrifty import testing
from thrifty.errors import EffectLost, ThriftyError
from thrifty.recipes.claim import Claim
from thrifty.recipes.recipe import Recipe
from thrifty.report.shown import show_layers
from thrifty.runs.checkpoint import MethodClaim
from thrifty.runs.execution import Execution, reprobe
from thrifty.runs.job import Job, prefix_key
from thrifty.target import Target

JOB = Job(testing.workload.source, "hash", "", 0, Target())


def test_a_prefix_is_known_by_all_that_determines_its_weights():
    prefix = Recipe.parse("train(steps=2)")
    same = prefix_key(JOB, prefix)
    assert prefix_key(dataclasses.replace(JOB, recipe="anything", lower=False, spawned=1.0), prefix) == same
    for other in (dataclasses.replace(JOB, seed=1), dataclasses.replace(JOB, workload_hash="other"),
                  dataclasses.replace(JOB, target=Target(memory=1))):
        assert prefix_key(other, prefix) != same
    assert prefix_key(JOB, Recipe.parse("train(steps=3)")) != same


def test_a_claim_that_training_undid_is_an_error():
    claim = MethodClaim("mask", Claim("share of zeros", 0.0, 0.5, 0.45, probe=zeros))
    with pytest.raises(EffectLost, match="undid"):
        reprobe((claim,), testing.trained())


def zeros(model):
    return 0.0


def test_a_claim_that_the_engine_lost_is_an_error():
    claim = Claim("layers in integers", 0.0, 10.0, 1.0, fact="integer_layers")
    with pytest.raises(EffectLost, match="in the engine it is 0"):
        Execution.final_effect(MethodClaim("quantize", claim), {"integer_layers": 0.0})
    assert Execution.final_effect(MethodClaim("quantize", claim), {"integer_layers": 9.0}).read_from == "engine"
    assert Execution.final_effect(MethodClaim("quantize", claim), {}).read_from == "model"


def test_layers_of_a_mixture_are_told_and_its_table_is_computed_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    text, events = "train(steps=24) | quantize(mixed, group=32, max_drop={})", []
    outcomes = [Execution(dataclasses.replace(JOB, recipe=text.format(drop), lower=drop == 1), events.append).outcome()
                for drop in (1, 0.5)]
    first, second = ({charge.kind: charge.what for charge in done.charges} for done in outcomes)
    assert {"training", "calibration", "search"} <= set(first) & set(second)
    told = [event["charge"]["what"] for event in events if event["event"] == "charge"]
    assert "recalled" not in first["calibration"] and second["calibration"].endswith(": recalled")
    assert not any("recalled" in what for what in told)  # a trial's cost as if alone, and not of what ran now
    show_layers(Path(outcomes[0].artifact), as_json=True)
    (shown,) = json.loads(capsys.readouterr().out)
    assert [row["layer"] for row in shown["layers"]] and all(row["bytes"] > 0 for row in shown["layers"])
    assert all(row["error"] is not None for row in shown["layers"])
    show_layers(Path(outcomes[0].artifact), as_json=False)
    printed = capsys.readouterr().out
    assert "stem.0" in printed and "error of the outputs, alone" in printed
    with pytest.raises(ThriftyError, match="no artifact of a quantized model"):
        show_layers(tmp_path, as_json=True)
