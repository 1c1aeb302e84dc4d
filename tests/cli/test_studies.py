"""Tags, notes and comparisons from the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.trials import keep, trial
from thrifty.cli.app import app


@pytest.fixture
def study(tmp_path):
    return str(keep(tmp_path / "study", [trial("ab12"), trial("cd56", speed=3.0)]))


def said(*arguments):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_what_is_said_of_a_trial_is_shown(study):
    assert said("tag", study, "cd", "shipped", "fast") == "cd56: shipped, fast\n"
    assert json.loads(said("tag", study, "cd56", "--remove", "fast", "--json")) == {
        "trial": "cd56", "tags": ["shipped"], "note": ""}
    assert said("note", study, "cd56", "on\x1b[31m trial") == "cd56: on\\x1b[31m trial\n"
    shown = said("show", study)
    assert "Tags and notes" in shown and "shipped" in shown and "on\\x1b[31m trial" in shown
    document = json.loads(said("show", study, "--json"))
    assert [(each["tags"], each["note"]) for each in document["trials"]] == [([], ""), (["shipped"], "on\x1b[31m trial")]
    assert said("note", study, "cd56", "") == "cd56: no note\n"


def test_show_begins_with_the_answer(study):
    assert said("show", study).startswith("3.00x faster at no measurable loss; its payback was not measured.\n")


def test_a_page_beside_another_study(study, tmp_path):
    other = str(keep(tmp_path / "before", [trial("ef78", speed=1.5)]))
    path = json.loads(said("report", study, "--compare", other, "--json"))["page"]
    text = Path(path).read_text()
    assert '"study": "before"' in text and '"says": "faster here"' in text
