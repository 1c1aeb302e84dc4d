from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest

import thrifty
from thrifty.cli.app import app, guarded
from thrifty.runs.opening import open_study
from thrifty.studies.database import FILE
from thrifty.studies.events import PhaseBegan
from thrifty.studies.trial import Ratio
from thrifty.target import Target

ROWS = Path(__file__).parents[2] / "examples" / "rows.py"
RECIPE = "train(adamw(lr=1e-2)) | compile(export)"


@pytest.fixture
def said(monkeypatch, capsys):
    def say(*words):
        monkeypatch.setattr(sys, "argv", ["thrifty", *map(str, words)])
        code, told = guarded(app), capsys.readouterr()
        assert code == 0, told.err
        return told.out

    return say


def _favoured(study, trial):
    """Have it significantly faster than the model as it is, whatever was measured, so that it is what `best` saves."""
    with open_study(study, thrifty.load_workload("rows.py"), Target()) as (store, _):
        found = store.trial(trial)
        faster = dataclasses.replace(found.inference, speedup=Ratio(2.0, 1.9, 2.1, "faster", 5))
        store.put_trial(dataclasses.replace(found, inference=faster))


@pytest.mark.slow
def test_a_study_that_was_moved_works_from_anywhere(tmp_path, monkeypatch, said):
    before, after, elsewhere = tmp_path / "before", tmp_path / "later" / "after", tmp_path / "elsewhere"
    before.mkdir(), elsewhere.mkdir()
    shutil.copy(ROWS, before)
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(before)
    trial = thrifty.run("rows.py", RECIPE, pairs=1)
    assert trial.status == "done" and trial.artifact.path == f"study-rows/artifacts/{trial.id}"
    with sqlite3.connect(before / "study-rows" / FILE) as db:
        (text,) = db.execute("SELECT json FROM trials").fetchone()
    assert json.loads(text)["artifact"]["path"] == f"artifacts/{trial.id}"
    _favoured(before / "study-rows", trial.id)
    monkeypatch.chdir(elsewhere)
    shutil.copytree(before, after)
    shutil.rmtree(before)

    study = Path("../later/after/study-rows")
    document = json.loads(said("show", study, "--json"))
    assert document["trials"][0]["artifact"]["path"] == str(study / "artifacts" / trial.id)
    assert document["source"] == f"{after}/rows.py:workload"
    said("best", study, "--save", "model")
    for place in ("model", document["trials"][0]["artifact"]["path"]):
        assert "It may serve here" in said("verify", place)
    said("report", study, "--out", "page.html")
    assert Path("page.html").is_file()

    heard = []
    again = thrifty.run("../later/after/rows.py", RECIPE, study=study, pairs=1, listener=heard.append)
    assert (again.id, again.created) == (trial.id, trial.created)
    assert not [event for event in heard if isinstance(event, PhaseBegan)]  # nothing ran again
