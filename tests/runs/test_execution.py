"""The pieces of a run."""

from __future__ import annotations

import dataclasses
import json

import pytest

from thrifty import testing
from thrifty.errors import EffectLost, ThriftyError
from thrifty.recipes.claim import Claim
from thrifty.report.shown import show_layers
from thrifty.runs.checkpoint import MethodClaim
from thrifty.runs.execution import Execution, final_effect
from thrifty.runs.job import Job, place
from thrifty.studies.events import Charged
from thrifty.target import Target

JOB = Job(testing.workload.source, "hash", "", 0, Target())


def test_a_claim_that_the_engine_lost_is_an_error():
    claim = Claim("layers in integers", 0.0, 10.0, 1.0, fact="integer_layers")
    with pytest.raises(EffectLost, match="in the engine it is 0"):
        final_effect(MethodClaim("quantize", claim), {"integer_layers": 0.0})
    assert final_effect(MethodClaim("quantize", claim), {"integer_layers": 9.0}).read_from == "engine"
    assert final_effect(MethodClaim("quantize", claim), {}).read_from == "model"


def test_layers_of_a_mixture_are_told_and_its_table_is_computed_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    text, events = "train(steps=24) | quantize(mixed, group=32, max_drop={})", []
    outcomes = [Execution(dataclasses.replace(JOB, recipe=text.format(drop), lower=drop == 1), events.append).outcome()
                for drop in (1, 0.5)]
    first, second = ({charge.kind: charge.what for charge in done.charges} for done in outcomes)
    assert {"training", "calibration", "search"} <= set(first) & set(second)
    told = [event.charge.what for event in events if isinstance(event, Charged)]
    assert "recalled" not in first["calibration"] and second["calibration"].endswith(": recalled")
    assert not any("recalled" in what for what in told)  # a trial's cost as if alone, and not of what ran now
    show_layers(place("engines", outcomes[0].engine), as_json=True)
    (shown,) = json.loads(capsys.readouterr().out)
    assert [row["layer"] for row in shown["layers"]] and all(row["bytes"] > 0 for row in shown["layers"])
    assert all(row["error"] is not None for row in shown["layers"])
    show_layers(place("engines", outcomes[0].engine), as_json=False)
    printed = capsys.readouterr().out
    assert "stem.0" in printed and "error of the outputs, alone" in printed
    with pytest.raises(ThriftyError, match="no artifact of a quantized model"):
        show_layers(tmp_path, as_json=True)
