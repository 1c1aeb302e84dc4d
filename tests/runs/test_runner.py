"""Runs on a small real workload, in real processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

import thrifty
from thrifty import testing
from thrifty.errors import RunFailed
from thrifty.measure.process import WorkerDied
from thrifty.recipes.recipe import Recipe
from thrifty.runs.launcher import LocalLauncher
from thrifty.runs.opening import open_study
from thrifty.runs.preflight import resolve
from thrifty.runs.runner import Runner
from thrifty.studies.events import Charged
from thrifty.studies.store import Store
from thrifty.target import Target, cores

WORKLOAD = "thrifty.testing:workload"
REFERENCE = testing.workload.reference
BARREN = "train(epochs=1) | prune(ratio=0.001) | compile(onnxruntime)"
PRUNED = f"{REFERENCE} | prune(ratio=0.5) | train(distill, epochs=1) | quantize(w8a8) | compile(onnxruntime)"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two trials that share the reference as a prefix, and two that fail, with the events that were heard."""
    events = []
    place = tmp_path_factory.mktemp("study")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path_factory.mktemp("cache")))  # empty: what is trained is seen
    workload = resolve(WORKLOAD)
    with open_study(place, workload, Target()) as (store, _):
        runner = Runner(workload, store, price=3.6, listener=events.append)
        trials = [runner.run(Recipe.parse(text), pairs=1)
                  for text in (REFERENCE, PRUNED, BARREN, "train(adamw(lr=1e30), clip=None, epochs=1)")]
    yield place, trials, events
    monkeypatch.undo()


def test_a_trial_has_everything_that_the_json_promises(study):
    _, (reference, pruned, *_), _ = study
    for trial in (reference, pruned):
        document = json.loads(json.dumps(trial.to_json()))
        assert trial.status == "done"
        for key in ("recipe", "workload", "target", "seed", "status", "quality", "training", "inference", "artifact",
                    "break_even_requests", "effects", "environment"):
            assert key in document
        assert set(document["quality"]) >= {"name", "higher_is_better", "value", "baseline", "drop"}
        assert set(document["quality"]["drop"]) == {"value", "low", "high"}
        assert set(document["training"]) >= {"seconds", "flops", "peak_memory_bytes", "joules", "dollars", "speedup"}
        assert set(document["inference"]) >= {
            "scenario", "latency_seconds", "speedup", "speedup_over_compiled", "throughput_per_second",
            "peak_memory_bytes", "first_inference_seconds"}
        assert set(document["inference"]["speedup"]) >= {"value", "low", "high", "verdict"}
        assert set(document["artifact"]) == {"path", "bytes", "portable"}


def test_the_reference_against_itself_loses_nothing(study):
    reference = study[1][0]
    assert reference.quality.drop.value == 0
    assert reference.quality.drop.low <= 0 <= reference.quality.drop.high


def test_more_pairs_of_what_ran_take_no_other_job(study, monkeypatch):
    place, _, _ = study
    with open_study(place, resolve(WORKLOAD), Target()) as (store, _):
        runner = Runner(WORKLOAD, store, price=3.6)
        assert runner.run(Recipe.parse(REFERENCE), pairs=2).inference.speedup.pairs == 2
        monkeypatch.setattr(LocalLauncher, "run", lambda *job: pytest.fail("a job was asked for"))
        assert runner.run(Recipe.parse(REFERENCE), pairs=3).inference.speedup.pairs == 3


def test_one_pair_makes_no_claim(study):
    assert study[1][1].inference.speedup.verdict == "screened"
    assert study[1][1].inference.speedup.low is None
    assert study[1][1].break_even_requests is not None  # an estimate, as the verdict says


def test_every_method_left_its_mark(study):
    effects = {effect.method: effect for effect in study[1][1].effects}
    assert set(effects) >= {"prune", "distill", "quantize"}
    assert effects["prune"].after < effects["prune"].before
    assert effects["quantize"].read_from == "engine"  # integer arithmetic is read off what the engine executes


def test_a_common_prefix_is_trained_once(study):
    _, _, events = study
    trained = [event.charge.what for event in events if isinstance(event, Charged) and event.charge.kind == "training"]
    assert trained.count(REFERENCE) == 1


@pytest.mark.slow
@pytest.mark.skipif(cores() < 2, reason="needs two processors")
def test_more_threads_to_serve_with_train_nothing_again(study, tmp_path):
    heard = []
    recipe = f"{REFERENCE} | compile(onnxruntime)"
    trial = thrifty.run(WORKLOAD, recipe, study=tmp_path / "study", target=Target(threads=2), pairs=1, listener=heard.append)
    assert trial.status == "done" and trial.target["threads"] == 2
    kinds = [event.charge.kind for event in heard if isinstance(event, Charged)]
    assert "compilation" in kinds and not {"training", "rehearsal"} & set(kinds)


def test_the_cost_is_as_if_alone(study):
    _, (reference, pruned, *_), _ = study
    kinds = [charge.kind for charge in pruned.ledger.charges]
    assert kinds.count("training") == 2 and "compilation" in kinds and "calibration" in kinds
    assert "teacher" not in kinds  # the teacher is the recipe's own first phase
    assert pruned.training.seconds > reference.ledger.only("training").seconds
    assert pruned.training.dollars == pytest.approx(pruned.training.seconds * 0.001)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_ledger(study):
    place, (*_, failed), _ = study
    assert failed.status == "failed"
    assert "step" in failed.error
    assert any(charge.kind == "failure" for charge in failed.ledger.charges)
    with Store.open(place) as store:
        assert {failure.recipe for failure in store.failures()} == {failed.recipe, study[1][2].recipe}


def test_no_engine_cures_what_fails_before_it(study):
    """The recipe before it ended with the same compiler."""
    barren = study[1][2]
    assert barren.status == "failed" and "removes nothing" in barren.error and "engine" not in barren.error


def test_asking_again_runs_nothing(study):
    place, (_, pruned, *_), _ = study
    heard = []
    again = thrifty.run(WORKLOAD, PRUNED, study=place, pairs=1, listener=heard.append)
    assert json.dumps(again.to_json()) == json.dumps(pruned.to_json())
    assert not heard


def test_the_artifact_is_measured_again(study):
    pruned = study[1][1]
    found = thrifty.bench(pruned.artifact.path, rounds=1)
    assert found["output_error"] < 0.1
    assert found["inference"]["latency_seconds"]["p50"] > 0
    assert json.dumps(found)


# -- killed ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_twenty_random_moments_loses_at_most_the_run_in_hand(tmp_path):
    """SIGKILL, again and again: what was done stays done, and the next start goes on from there."""
    script = ("import sys, thrifty\n"
              f"done = thrifty.sweep({WORKLOAD!r}, {[REFERENCE, PRUNED]!r}, study=sys.argv[1], promote=0)\n"
              "print(len(done.trials))")
    command = [sys.executable, "-c", script, str(tmp_path / "study")]
    environment = {**os.environ, "THRIFTY_CACHE": str(tmp_path / "cache")}
    draw = random.Random(0)
    known: dict[str, str] = {}
    for _ in range(20):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            process.wait(draw.uniform(0.2, 5.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if (tmp_path / "study" / "study.sqlite").is_file():
            with Store.open(tmp_path / "study") as store:
                now = {trial.id: trial.created for trial in store.trials()}
            assert known.items() <= now.items()  # nothing lost, nothing measured twice
            known = now
    time.sleep(0.5)  # the last child notices that its parent is gone
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2"
    with Store.open(tmp_path / "study") as store:
        final = {trial.id: trial for trial in store.trials()}
    assert len(final) == 2 and all(trial.status == "done" for trial in final.values())
    assert known.items() <= {name: trial.created for name, trial in final.items()}.items()


# -- failures --------------------------------------------------------------------------------------------------


def test_a_reference_that_fails_stops_the_study(tmp_path):
    (tmp_path / "failing.py").write_text(
        "import dataclasses\nfrom thrifty.testing import workload as base\n"
        'workload = dataclasses.replace(base, reference="train(adamw(lr=1e30), clip=None, epochs=1)")\n')
    with pytest.raises(RunFailed, match="the reference failed.*step"):
        thrifty.run(str(tmp_path / "failing.py"), "train(epochs=1)", study=tmp_path / "study")


def test_a_measurement_that_fails_is_a_failed_trial(study, monkeypatch, tmp_path):
    def broken(*arguments, **options):
        raise WorkerDied("the worker was killed by signal 9")

    monkeypatch.setattr(sys.modules["thrifty.runs.runner"], "measure", broken)
    trial = thrifty.run(WORKLOAD, f"{REFERENCE} | compile(onnxruntime)", study=tmp_path / "study", pairs=1)
    assert trial.status == "failed" and "signal 9" in trial.error
    assert trial.ledger.charges  # what was spent by then is kept
