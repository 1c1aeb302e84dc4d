"""A full disk, a directory that is gone, a reader that left, texts that would steer a terminal: one line each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.commands import thrifty
from tests.factories import trial
from thrifty.report.shown import emit
from thrifty.studies.store import Store, Study

COMMAND = [sys.executable, "-m", "thrifty"]
ESCAPES = "\x1b[2J\x9b31m\u202e\u2066\x07é"


@pytest.fixture
def study(tmp_path):
    with Store.open(tmp_path / f"study {ESCAPES}", "write", Study(f"digits{ESCAPES}", "ab12", {"device": "cpu"})) as store:
        store.put_trial(trial(1, workload=f"digits{ESCAPES}", recipe=f"train(){ESCAPES}"))
        store.put_trial(trial(2, workload=f"digits{ESCAPES}", status="failed", error=ESCAPES,
            environment={f"cpu{ESCAPES}": ESCAPES}))
        store.put_failure(None, ESCAPES, f"line{ESCAPES}\nline")
        store.note("doubt", f"doubt{ESCAPES}")
    return store.path


def test_a_full_disk_under_stdout(study):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "show", str(study)], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "No space left" in done.stderr, done.stderr


def test_a_reader_that_left(study):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, "show", str(study)], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.count("\n") <= 1, done.stderr


def test_a_current_directory_that_is_gone(tmp_path):
    script = "cd \"$1\" && rmdir \"$1\" && shift && exec \"$@\""
    (tmp_path / "gone").mkdir()
    done = subprocess.run(["sh", "-c", script, "sh", str(tmp_path / "gone"), *COMMAND, "show", "study"],
        capture_output=True, text=True,
                          check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "directory was deleted" in done.stderr, done.stderr


@pytest.mark.parametrize("options", [["show"], ["show", "--json"], ["best"], ["best", "--json"], ["report"], ["report",
    "--json"]])
def test_nothing_steers_the_terminal(study, options):
    """Names, recipes and reasons of a study, and its own path."""
    verb, *rest = options
    done = thrifty([verb, str(study), *rest])
    told = done.stdout + done.stderr
    assert told and "Traceback" not in told
    assert all(line.isprintable() for line in told.split("\n")), [line for line in told.split("\n") if not line.isprintable()]
    if "--json" in rest:
        json.loads(done.stdout)


def test_json_is_the_same_when_it_is_parsed(capsys):
    emit({ESCAPES: [ESCAPES, 1.5, float("nan")]})
    told = capsys.readouterr().out
    assert told.strip().isprintable() and "é" in told and json.loads(told) == {ESCAPES: [ESCAPES, 1.5, None]}


def test_a_study_that_is_gone(tmp_path, study):
    shutil.rmtree(study)
    done = thrifty(["show", str(study)])
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.strip().isprintable()
