"""Thirty-four damaged stores: every verb that reads one answers in one line, and nothing that was there is changed."""

from __future__ import annotations

import os
import random
import sqlite3
import sys

import numpy as np
import pytest

from tests.factories import trial
from thrifty.cli.app import app, guarded
from thrifty.cli.options import FAILED, USAGE
from thrifty.studies.database import FILE, StoreError
from thrifty.studies.ledger import Charge
from thrifty.studies.store import Store, Study
from thrifty.workloads.quality import Scores

STUDY = Study("digits", "ab12", {"device": "cpu"})
ESCAPES = "\x1b[2J\u202e\x07"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = tmp_path_factory.mktemp("whole")
    with Store.open(place, "write", STUDY) as store:
        for i in range(20):
            store.put_trial(trial(i, speedup=(1 + i / 10, 1.0, 9.0), raw={"x": list(range(200))}),
                            {"validation": Scores(np.ones(50), np.ones(50), np.arange(50))})
            store.charge(str(i), Charge("training", f"train(steps={i})", 1.0))
        store.put_round("1", 0, {"ratios": [1.0]})
        store.put_failure(None, "train()", "no reason")
        store.note("bars", {"max_drop": None})
        store.note("source", "digits")
    return (place / FILE).read_bytes()


def cut(at):
    return lambda content: content[:at]


def overwritten(at, piece):
    return lambda content: content[:at] + piece + content[at + len(piece):]


def at_random(seed):
    def change(content):
        made, draw = bytearray(content), random.Random(seed)
        for _ in range(40):
            at = draw.randrange(100, len(made))
            made[at:at + 30] = draw.randbytes(len(made[at:at + 30]))
        return bytes(made)
    return change


BYTES = {
    "empty": cut(0), "a byte": cut(1), "a header": cut(100), "half a page": cut(2048), "half": lambda x: x[:len(x) // 2],
    "without its end": cut(-5000), "zeros": lambda x: bytes(len(x)), "a text": lambda x: b"nothing to see here\n" * 500,
    "another magic": overwritten(0, b"SQLite format 4\0"), "a page size of 0": overwritten(16, b"\0\0"),
    "another version": overwritten(18, b"\x09\x09"), "no schema": overwritten(100, bytes(1000)),
    "a page of ones": overwritten(4096, b"\xff" * 4096), "pages of zeros": overwritten(8192, bytes(20_000)),
    **{f"noise {seed}": at_random(seed) for seed in range(6)},
}
STATEMENTS = {
    "a newer format": "PRAGMA user_version = 99", "an older format": "PRAGMA user_version = 0",
    "another program's": "PRAGMA application_id = 7", "no trials": "DROP TABLE trials", "no notes": "DROP TABLE meta",
    "no study": "DELETE FROM meta WHERE key = 'study'", "a study of nothing": "UPDATE meta SET value = '{}' WHERE key = 'study'",
    "deep JSON": f"UPDATE trials SET json = '{'[' * 100_000}'", "JSON cut off": "UPDATE trials SET json = substr(json, 1, 50)",
    "bad UTF-8": "UPDATE trials SET json = CAST(x'7bff7d' AS TEXT)", "bytes": "UPDATE trials SET json = x'00ff00ff'",
    "a huge number": f"UPDATE trials SET json = '{{\"id\": {'9' * 10_000}}}'",
    "a number for a text": "UPDATE charges SET json = 7",
    "escapes": f"UPDATE trials SET json = '{{\"{ESCAPES}\": 1}}'",
    "deep notes": f"UPDATE meta SET value = '{'[' * 100_000}' WHERE key = 'bars'",
    "a long text": f"UPDATE trials SET json = '{{\"id\": [\"{'x' * 100_000}\"]}}'",
    "a view that never ends": "DROP TABLE failures; CREATE VIEW failures AS WITH RECURSIVE n(trial, recipe, reason, at, n) AS "
                              "(SELECT '', '', '', '', 1 UNION ALL SELECT trial, recipe, reason, at, n + 1 FROM n) "
                              "SELECT * FROM n",
    "a trigger": "CREATE TRIGGER gone AFTER INSERT ON trials BEGIN DELETE FROM trials; END",
}


def test_there_are_thirty_four():
    assert len(BYTES) + len(STATEMENTS) >= 34


@pytest.fixture
def damaged(whole, tmp_path):
    def make(name):
        place = tmp_path / "study"
        place.mkdir()
        (place / FILE).write_bytes(BYTES[name](whole) if name in BYTES else whole)
        if name in STATEMENTS:
            with sqlite3.connect(place / FILE) as db:
                db.executescript(STATEMENTS[name])
            db.close()
        return place
    return make


@pytest.mark.parametrize("name", [*BYTES, *STATEMENTS])
def test_every_verb_answers_in_one_line(name, damaged, tmp_path, capfd, monkeypatch):
    place = damaged(name)
    before = (place / FILE).read_bytes()
    (tmp_path / "page.html").write_text("mine")
    for options in (["show", str(place)], ["show", str(place), "--json"], ["best", str(place)],
                    ["report", str(place), "--out", str(tmp_path / "page.html")]):
        monkeypatch.setattr(sys, "argv", ["thrifty", *options])
        assert guarded(app) in (USAGE, FAILED), options
        told = capfd.readouterr()
        assert not told.out and told.err.startswith("thrifty: ") and told.err.count("\n") == 1, (options, told)
        assert told.err.strip().isprintable() and len(told.err) < 1200, (options, told)
    assert (place / FILE).read_bytes() == before and os.listdir(place) == [FILE]
    assert (tmp_path / "page.html").read_text() == "mine"


@pytest.mark.parametrize("name", ["no study", "a view that never ends", "a trigger", "another program's", "a newer format",
                                  "zeros", "half", "another magic", "a page of ones"])
def test_a_writer_leaves_it_alone(name, damaged):
    place = damaged(name)
    before = (place / FILE).read_bytes()
    with pytest.raises(StoreError):
        Store.open(place, "write", STUDY)
    assert (place / FILE).read_bytes() == before


def test_another_programs_file_keeps_its_journal(tmp_path):
    """Even what is set before anything is written would change it."""
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE cakes (name TEXT)")
    db.close()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(StoreError, match="not a Thrifty study"):
        Store.open(tmp_path, "write", STUDY)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)], ids=["directory", "pipe", "circle"])
@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_store_that_is_no_file(make, mode, tmp_path):
    make(tmp_path / FILE)
    with pytest.raises(StoreError):
        Store.open(tmp_path, mode, STUDY)


# -- the lock -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("content", ["precious", "", "1234\n"])
def test_a_lock_that_is_a_link_overwrites_nothing(link, content, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text(content)
    (tmp_path / "study").mkdir()
    link(mine, tmp_path / "study" / "study.lock")
    with pytest.raises(StoreError, match="left untouched"):
        Store.open(tmp_path / "study", "write", STUDY)
    assert mine.read_text() == content


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.write_text("a file of mine"),
                                  lambda path: os.symlink("nowhere", path)], ids=["directory", "pipe", "file", "nowhere"])
def test_a_lock_that_is_none(make, tmp_path):
    make(tmp_path / "study.lock")
    with pytest.raises(StoreError, match="left untouched"):
        Store.open(tmp_path, "write", STUDY)
    assert not (tmp_path / "nowhere").exists() and not (tmp_path / FILE).exists()


def test_a_study_whose_directory_was_deleted(tmp_path):
    with Store.open(tmp_path / "study", "write", STUDY) as store:
        (tmp_path / "study" / FILE).unlink()
        with pytest.raises(StoreError) as told:
            store.put_trial(trial(1))
        assert "\n" not in str(told.value)
