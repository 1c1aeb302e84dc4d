from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.trials import keep, trial
from thrifty.cli.app import app, guarded
from thrifty.cli.options import FAILED, KEEP, USAGE
from thrifty.report.shown import emit
from thrifty.studies.trial import ArtifactFigure


def thrifty(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "thrifty", *arguments], capture_output=True, text=True,
                          check=False, **options)


def test_lists_are_json():
    methods = json.loads(thrifty("methods", "--json").stdout)
    assert {tuple(sorted(row)) for row in methods} == {
        ("benefit", "family", "name", "paper", "phase", "trade_off")}
    assert {row["name"] for row in methods} >= {"adamw", "bf16", "distill", "prune", "quantize", "inductor"}
    assert {row["name"] for row in json.loads(thrifty("workloads", "--json").stdout)} == {
        "digits", "python-lm", "python-lm-mamba2", "python-lm-hybrid", "minilm"}


def test_a_method_has_a_card():
    done = thrifty("methods", "prune")
    assert done.returncode == 0 and "ratio" in done.stdout and "pruning" in done.stdout


def test_lists_read_well_off_a_terminal():
    for verb in ("methods", "workloads"):
        done = thrifty(verb)
        assert done.returncode == 0 and "\x1b" not in done.stdout and done.stdout.strip()


@pytest.mark.parametrize(("arguments", "says"), [
    (["check", "digits", "prun(ratio=0.5)"], "did you mean 'prune'"),
    (["check", "digits", "prune(ration=0.5)"], "did you mean 'ratio'"),
    (["check", "digits", "prune(ratio=1.5)"], "must be in"),
    (["check", "digits", "__import__('os').system('touch canary')"], "nothing is executed"),
    (["check", "digit", "train"], "did you mean 'digits'"),
    (["check", "nothing.py", "train"], "there is no file"),
    (["run", "digits", "compile(onnxruntime) | prune"], "requires"),
    (["run", "digits", "train", "--threads", "4000"], "threads"),
    (["bench", "nothing"], "no artifact"),
    (["serve", "nothing"], "no artifact"),
    (["serve", "nothing", "--max-wait", "soon"], "a duration is written"),
    (["serve", "nothing", "--max-body", "0"], "a size is written"),
    (["serve", "nothing", "--max-queue", "0"], "1 or more"),
    (["serve", "nothing", "--port", "70000"], "0 to 65535"),
    (["show", "nothing"], "no study"),
    (["report", "nothing"], "no study"),
    (["report", "nothing", "--requests-per-day", "0"], "above 0"),
    (["explore", "digits", "--budget", "soon"], "a duration is written"),
    (["explore", "digits", "--budget", "0s"], "above 0"),
    (["explore", "digits", "--budget", "5m", "--max-drop", "some"], "1pt (absolute)"),
    (["explore", "digits", "--budget", "5m", "--minimize", "color"], "latency, bytes, memory, training"),
    (["explore", "digits", "--budget", "5m", "--methods", "prun"], "did you mean 'prune'"),
    (["explore", "minilm", "--budget", "5m", "--methods", "bf16"], "the model comes trained"),
    (["explore", "digits"], "--budget"),
    (["tune", "digits"], "OPTIMIZER"),
    (["tune", "digits", "adamv"], "did you mean 'adamw'"),
    (["tune", "digits", "adamw(lr=0)"], "must be in (0, inf)"),
    (["tune", "digits", "adamw", "--trials", "2"], "3 or more"),
    (["tune", "digits", "adamw", "--budget", "soon"], "a duration is written"),
    (["tune", "digits", "adamw", "--also", "color"], "no number 'color'"),
    (["tune", "minilm", "adamw"], "no training set"),
    (["best", "nothing"], "no study"),
    (["best", "nothing", "--max-bytes", "0"], "a size is written"),
    (["methods", "prun"], "did you mean 'prune'"),
    (["run", "digits"], "RECIPE"),
    (["check", "digits", "train", "--task", "causal-lm"], "only a Hugging Face directory accepts"),
    (["check", ".", "train", "--task", "translation"], "there is no task 'translation'"),
    (["check", ".", "train"], "is not a Hugging Face directory"),
    (["frobnicate"], "frobnicate"),
])
def test_bad_input_is_answered_with_exit_code_2(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["thrifty", *arguments])
    assert guarded(app) == USAGE
    told = capsys.readouterr().err
    assert says in " ".join(told.split()), told
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())


def test_a_process_answers_as_its_function_does(tmp_path):
    done = thrifty("check", "digit", "train", cwd=tmp_path)
    assert done.returncode == USAGE and "did you mean 'digits'" in done.stderr and "Traceback" not in done.stderr


def test_a_dry_run_runs_nothing(tmp_path):
    done = thrifty("run", "digits", "train | compile(onnxruntime)", "--dry-run", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["status"] == "dry-run"
    assert not list(tmp_path.iterdir())


def test_a_dry_exploration_names_its_slots(tmp_path):
    done = thrifty("explore", "digits", "--budget", "5m", "--dry-run", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["choices"] > 100 and "inductor" in found["slots"]["compile"]
    assert not list(tmp_path.iterdir())


def test_the_best_of_a_study_is_named_and_saved(tmp_path):
    made = tmp_path / "artifact"
    made.mkdir()
    (made / "artifact.json").write_text("{}")
    fast = trial("fast", "prune(ratio=0.5)", 6.0, 0.004, artifact=ArtifactFigure(str(made), 7, True),
                 break_even_requests=1000.0, saved_seconds_per_request=0.01)
    keep(tmp_path / "study", [trial("slow", "train()", 2.0), fast, trial("lost", "prune(ratio=0.9)", 9.0, 0.05)])
    done = thrifty("best", "study", "--max-drop", "1pt", "--save", "model", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["trial"]["id"] == found["nearest"] == "fast" and found["misses"] == [] and found["saved"] == "model"
    assert (tmp_path / "model" / "artifact.json").is_file()
    shown = thrifty("best", "study", "--max-drop", "1pt", "--requests-per-day", "500", cwd=tmp_path)
    assert "Recommended" in shown.stdout and "2.0 days" in shown.stdout
    again = thrifty("best", "study", "--max-drop", "1pt", "--save", "model", cwd=tmp_path)
    assert again.returncode == USAGE and "already exists" in again.stderr


def test_where_nothing_meets_the_bars_the_nearest_is_shown(tmp_path):
    keep(tmp_path / "study", [trial("near", "train()", 2.0, 0.02), trial("far", "prune(ratio=0.9)", 9.0, 0.5)])
    done = thrifty("best", "study", "--max-drop", "1pt", "--save", "model", cwd=tmp_path)
    assert done.returncode == KEEP
    assert "Keep the model as it is: no trial meets the constraints" in done.stdout and "near seed 0" in done.stdout
    assert "max_drop: 0.0230, and 0.0100 is allowed" in done.stdout
    assert not (tmp_path / "model").exists()


def test_a_failed_run_exits_with_1_and_keeps_its_trial(tmp_path):
    done = thrifty("run", "thrifty.testing:workload", "train(adamw(lr=1e30), clip=None, epochs=1)", "--pairs", "1",
                   "--study", str(tmp_path / "study"), "--json")
    assert done.returncode == FAILED, done.stderr
    document = json.loads(done.stdout)
    assert document["status"] == "failed" and document["error"]
    shown = thrifty("show", str(tmp_path / "study"))
    assert "Failures" in shown.stdout and "clip=None" in shown.stdout


def test_what_is_not_finite_is_null(capsys):
    emit({"a": float("nan"), "b": [float("inf"), 1.0], "c": None})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.0], "c": None}


def test_every_verb_has_help_with_an_example():
    for verb in ("workloads", "methods", "check", "run", "sweep", "explore", "tune", "best", "bench", "verify", "serve",
                 "compilers", "show", "report", "cache"):
        done = thrifty(verb, "--help")
        assert done.returncode == 0 and "Example" in done.stdout, verb


def test_the_cache_is_shown_and_cleaned(tmp_path):
    import os

    environment = {**os.environ, "THRIFTY_CACHE": str(tmp_path)}
    assert thrifty("cache", env=environment).returncode == 0
    assert json.loads(thrifty("cache", "--clean", "--all", "--json", env=environment).stdout)
