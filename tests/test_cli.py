from __future__ import annotations

import json
import subprocess
import sys

import pytest

from thrifty import cli


def thrifty(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "thrifty.cli", *arguments], capture_output=True, text=True,
                          check=False, **options)


def test_lists_are_json():
    methods = json.loads(thrifty("methods", "--json").stdout)
    assert {tuple(sorted(row)) for row in methods} == {
        ("benefit", "family", "name", "paper", "phase", "trade_off")}
    assert {row["name"] for row in methods} >= {"adamw", "bf16", "distill", "prune", "quantize", "inductor"}
    assert {row["name"] for row in json.loads(thrifty("workloads", "--json").stdout)} == {
        "digits", "python-lm", "minilm"}


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
    (["show", "nothing"], "no study"),
    (["methods", "prun"], "did you mean 'prune'"),
    (["run", "digits"], "RECIPE"),
    (["check", "digits", "train", "--task", "causal-lm"], "go with a Hugging Face directory"),
    (["check", ".", "train", "--task", "translation"], "there is no task 'translation'"),
    (["check", ".", "train"], "is no Hugging Face directory"),
    (["frobnicate"], "frobnicate"),
])
def test_bad_input_is_answered_with_exit_code_2(arguments, says, tmp_path):
    done = thrifty(*arguments, cwd=tmp_path)
    assert done.returncode == cli.USAGE, done.stderr
    assert says in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_dry_run_runs_nothing(tmp_path):
    done = thrifty("run", "digits", "train | compile(onnxruntime)", "--dry-run", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["status"] == "dry-run"
    assert not list(tmp_path.iterdir())


def test_a_failed_run_exits_with_1_and_keeps_its_trial(tmp_path):
    done = thrifty("run", "thrifty.testing:workload", "train(adamw(lr=1e30), clip=None, epochs=1)", "--pairs", "1",
                   "--store", str(tmp_path / "study"), "--json")
    assert done.returncode == cli.FAILED, done.stderr
    document = json.loads(done.stdout)
    assert document["status"] == "failed" and document["error"]
    shown = thrifty("show", str(tmp_path / "study"))
    assert "Failures" in shown.stdout and "clip=None" in shown.stdout


def test_what_is_not_finite_is_null(capsys):
    cli.emit({"a": float("nan"), "b": [float("inf"), 1.0], "c": None})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.0], "c": None}


def test_every_verb_has_help_with_an_example():
    for verb in ("workloads", "methods", "check", "run", "sweep", "bench", "show", "cache"):
        done = thrifty(verb, "--help")
        assert done.returncode == 0 and "Example" in done.stdout, verb


def test_the_cache_is_shown_and_cleaned(tmp_path):
    import os

    environment = {**os.environ, "THRIFTY_CACHE": str(tmp_path)}
    assert thrifty("cache", env=environment).returncode == 0
    assert json.loads(thrifty("cache", "--clean", "--all", "--json", env=environment).stdout)
