from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.trials import keep, trial
from thrifty.cli.app import app, guarded
from thrifty.cli.options import DONE, USAGE
from thrifty.report.verbosity import VARIABLE
from thrifty.workloads.blame import DEBUG


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty directory: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name in (VARIABLE, DEBUG):
        monkeypatch.setenv(name, "")  # put back after the test, whatever a command sets

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["thrifty", *words])
        code, told = guarded(app), capsys.readouterr()
        return code, told.out, told.err

    return run


def dry(run, *words):
    """What a dry run would do, and what it tells."""
    code, out, err = run("run", "digits", "train", "--dry-run", "--json", *words)
    assert code == DONE, err
    return json.loads(out), err


def test_flags_win_over_a_file_and_it_is_said_what_came_from_where(run):
    Path("thrifty.toml").write_text('[run]\nthreads = 2\nseed = 7\nprice = 1.5\n[explore]\nmax-drop = "1pt"\n')
    plan, told = dry(run)
    assert plan["target"]["threads"] == 2 and plan["seed"] == 7
    assert plan["settings"] == {"files": ["thrifty.toml"], "values": {"threads": "2", "seed": "7", "price": "1.5"}}
    assert told == "thrifty: settings from thrifty.toml: threads 2, seed 7, price 1.5\n"
    plan, told = dry(run, "--threads", "1", "--seed", "3", "--price", "2")
    assert plan["target"]["threads"] == 1 and plan["seed"] == 3 and "settings" not in plan and told == ""


def test_the_project_and_the_file_are_read_together_and_the_file_wins(run):
    Path("pyproject.toml").write_text("[project]\nname = 'x'\n[tool.thrifty.run]\nthreads = 2\nseed = 7\n")
    plan, told = dry(run)
    assert (plan["target"]["threads"], plan["seed"]) == (2, 7) and "settings from pyproject.toml" in told
    Path("thrifty.toml").write_text("[run]\nseed = 8\n")
    plan, told = dry(run)
    assert (plan["target"]["threads"], plan["seed"]) == (2, 8) and "from pyproject.toml and thrifty.toml" in told


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_file_that_is_named_is_read_alone(run, place):
    Path("thrifty.toml").write_text("[run]\nseed = 8\nthreads = 2\n")
    Path("mine.toml").write_text("[run]\nseed = 9\n")
    words = ["run", "digits", "train", "--dry-run", "--json"]
    code, out, _ = run(*(["--config", "mine.toml", *words] if place == "before" else [*words, "--config", "mine.toml"]))
    plan = json.loads(out)
    assert code == DONE and plan["seed"] == 9 and plan["target"]["threads"] == 1


def test_a_file_gives_arguments_and_lists_too(run):
    Path("thrifty.toml").write_text('[run]\nworkload = "digits"\nrecipe = "train(steps=3)"\ndry-run = true\njson = true\n')
    code, out, _ = run("run")
    assert code == DONE and json.loads(out)["recipe"] == "train(steps=3)"


def test_what_is_not_in_a_project_is_nothing(run):
    Path("pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert "settings" not in dry(run)[0]


@pytest.mark.parametrize(("text", "says"), [
    ("[run]\nseeds = 1\n", "thrifty.toml: [run] sets seeds, but run has no such option; the nearest is 'seed'"),
    ("[run]\nmax_restart = 1\n", "the nearest is 'max-restarts'"),
    ("[rum]\nseed = 1\n", "thrifty.toml sets [rum], but there is no such verb; the nearest is 'run'"),
    ("[explore]\nstore = 'x'\n", "[explore] sets store, but explore has no such option; the nearest is"),
    ("seed = 1\n", "there is no such verb"),
    ("run = 1\n", "run must be a table"),
    ("[run]\nseed = {a = 1}\n", "run.seed must be a string, a number, true, false, or a list of strings"),
    ("[bench]\ntrust-native-code = true\n", "only a flag can"),
    ("[run]\nseed = \n", "cannot be read as TOML"),
    ("[run]\nverbose = true\n", "run has no such option"),
    ("[run]\nseed = 1\nseed = 2\n", "cannot be read as TOML"),
    ("\x1b[31m", "cannot be read as TOML"),
])
def test_a_bad_file_is_answered_in_one_line(run, text, says):
    Path("thrifty.toml").write_text(text)
    code, out, err = run("workloads")
    assert code == USAGE and out == "" and says in err and err.count("\n") == 1 and "\x1b" not in err


def test_neither_bytes_nor_depth_break_it(run):
    for data in (b"\xff\xfe", b"a = " + b"[" * 100_000):
        Path("thrifty.toml").write_bytes(data)
        code, _, err = run("workloads")
        assert code == USAGE and "cannot be read as TOML" in err and err.count("\n") == 1
    code, _, err = run("--config", "nothing.toml", "workloads")
    assert code == USAGE and "there is no file nothing.toml" in err


def test_a_value_of_another_kind_is_refused_as_a_flags_would_be(run):
    Path("thrifty.toml").write_text('[run]\nthreads = "two"\n')
    code, _, err = run("run", "digits", "train", "--dry-run")
    assert code == USAGE and "--threads" in err and "integer" in err


def test_the_version(run):
    code, out, _ = run("--version")
    assert code == DONE and out.startswith("thrifty ") and out.count("\n") == 1


@pytest.mark.parametrize("place", ["before", "after"])
def test_how_much_is_said_is_asked_before_the_verb_or_after(run, monkeypatch, place):
    Path("thrifty.toml").write_text("[show]\nrequests-per-day = 1000.0\n")
    keep(Path("study"), [trial("aaa")])
    told = {}
    for flag in ("-q", "--quiet", "-v", "--verbose", "--debug"):
        monkeypatch.setenv(VARIABLE, "")
        monkeypatch.setenv(DEBUG, "")
        code, told[flag], err = run(*([flag, "show"] if place == "before" else ["show", flag]))
        assert code == DONE and ("settings from" in err) == (flag not in ("-q", "--quiet"))
    assert "Charge by charge" in told["-v"] == told["--verbose"] and "Charge by charge" not in told["-q"]
