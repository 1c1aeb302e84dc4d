"""The store of a study: one SQLite file that holds everything measured, with one writer.

The journal is SQLite's rollback journal, not its write-ahead log: what is committed stands in ``study.sqlite``
itself, which can be copied, or read from a read-only disk; a killed writer loses its open transaction alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np

from thrifty.errors import in_one_line
from thrifty.measure.bootstrap import Statistic
from thrifty.studies.database import (
    FILE,
    LOCK,
    Mode,
    Note,
    StoreError,
    acquire,
    alive,
    connect,
    explained,
    foreign,
    make_durable,
    release,
    version,
)
from thrifty.studies.ledger import Charge, Ledger
from thrifty.studies.places import kept, reached
from thrifty.studies.rows import KINDS, first_measured, now, put_failure, put_scores, utf8
from thrifty.studies.serialization import dumps, loads, plain
from thrifty.studies.trial import Trial
from thrifty.units import plainly
from thrifty.workloads.quality import Scores

FORMAT = 1
"""Raised whenever a store written by an older Thrifty could not be read as it is."""

_APPLICATION = 0x54485254  # "THRT", in the file's header: tells a study from any other SQLite file
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE trials (id TEXT PRIMARY KEY, created TEXT NOT NULL, status TEXT NOT NULL, json TEXT NOT NULL);
CREATE TABLE scores (trial TEXT, split TEXT, numerator BLOB NOT NULL, denominator BLOB NOT NULL,
                     cluster BLOB NOT NULL, PRIMARY KEY (trial, split));
CREATE TABLE charges (n INTEGER PRIMARY KEY, at TEXT NOT NULL, trial TEXT, json TEXT NOT NULL);
CREATE TABLE rounds (trial TEXT, what TEXT, round INTEGER, at TEXT NOT NULL, json TEXT NOT NULL,
                     PRIMARY KEY (trial, what, round));
CREATE TABLE failures (n INTEGER PRIMARY KEY, at TEXT NOT NULL, trial TEXT, recipe TEXT NOT NULL, reason TEXT NOT NULL)
"""


@final
@dataclass(frozen=True)
class Study:
    """What every trial of a store has in common, so that they can be compared."""

    workload: str
    workload_hash: str
    target: Mapping[str, Any]


@final
@dataclass(frozen=True)
class Failure:
    """A run that failed: kept even where the same trial succeeds later."""

    trial: str | None
    recipe: str
    reason: str
    at: str


def trial_id(workload_hash: str, recipe: str, seed: int, target: Mapping[str, Any]) -> str:
    """The id of a trial: 12 hexadecimal digits, the same wherever and whenever it is asked for.

    >>> trial_id("ab12", "train()", 0, {"device": "cpu", "threads": 1, "memory": None})
    '471eb708f616'
    """
    text = json.dumps([workload_hash, recipe, seed, plain(target)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@final
class Store:
    """A study's trials, in one SQLite file.

    Args:
        path: the study's directory; a writer makes it.
        mode: "read" needs no lock and sees all that is committed; "write" is for one process at a time.
        study: what the trials have in common: needed to make a store, checked where there is one.

    Raises:
        StoreError: another writer has it, it is not a store or of another format, or it holds another study.

    >>> import tempfile
    >>> with Store.open(tempfile.mkdtemp(), "write", Study("digits", "ab12", {"device": "cpu"})) as store:
    ...     store.charge(None, Charge("training", "train()", 3.0))
    ...     store.spent().seconds
    3.0
    """

    def __init__(self, path: str | os.PathLike[str], mode: Mode = "read", study: Study | None = None) -> None:
        self.path, self.mode = Path(path), mode
        self._mutex = threading.RLock()
        self._lock: int | None = None
        self.last_alive: float | None = None  # seconds since 1970 at which the last writer was known to live
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(f"{self.path} is a file; a study is a directory that holds {FILE}")
        if mode == "write":
            with explained(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                self.last_alive = alive(self.path / LOCK)
                self._lock = acquire(self.path / LOCK)
        if mode == "write" and (self.path / FILE).exists() and not (self.path / FILE).is_file():
            self._release()
            raise StoreError(f"{self.path / FILE} is not a file: choose another directory")
        if mode == "read" and not (self.path / FILE).is_file():
            raise StoreError(f"there is no study in {self.path}: it has no {FILE}; thrifty run makes one")
        try:
            with explained(self.path):
                self._db = connect(self.path / FILE, mode)
            try:
                with explained(self.path):
                    self.study = self._begin(study)
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            self._release()
            raise

    @staticmethod
    def open(path: str | os.PathLike[str], mode: Mode = "read", study: Study | None = None) -> Store:
        """The store in a directory; see the class."""
        return Store(path, mode, study)

    def close(self) -> None:
        """Close the file, then let the next writer in. Closing again does nothing."""
        with self._mutex:
            self._db.close()
            self._release()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    # -- what whoever reads the study should know -----------------------------------------------------------------

    def note(self, key: Note, value: Any) -> None:
        """Keep what a reader should know; replaces what was noted under that key."""
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, dumps(value)))

    def noted(self, key: Note) -> Any:
        """What was noted, None where nothing was."""
        rows = self._read("SELECT value FROM meta WHERE key = ?", key)
        return self._json(rows[0][0], key) if rows else None

    # -- trials -------------------------------------------------------------------------------------------------

    def put_trial(self, trial: Trial, scores: Mapping[str, Scores] | None = None) -> None:
        """Keep a trial, and its scores by split, at once; a trial of the same id is replaced.

        Raises:
            StoreError: it is another workload's or target's, or holds what has no JSON form.
        """
        self._same(Study(trial.workload, trial.workload_hash, trial.target))
        try:
            text = dumps(kept(trial, self.path))
        except TypeError as error:
            raise StoreError(f"trial {trial.id} cannot be kept: {error}") from error
        with self._writing() as db:
            db.execute(
                "INSERT INTO trials VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "created = excluded.created, status = excluded.status, json = excluded.json",
                (utf8(trial.id), utf8(trial.created), trial.status, text),
            )
            for split, values in (scores or {}).items():
                put_scores(db, trial.id, split, values)
            if trial.status == "failed":
                put_failure(db, trial.id, trial.recipe, trial.error or "no reason was given")

    def trial(self, id: str) -> Trial | None:
        """The trial of that id, None where there is none."""
        rows = self._read("SELECT json FROM trials WHERE id = ?", utf8(id))
        return self._trial(rows[0][0]) if rows else None

    def trials(self) -> tuple[Trial, ...]:
        """Every trial, in the order in which they first came."""
        return tuple(self._trial(text) for (text,) in self._read("SELECT json FROM trials ORDER BY rowid"))

    def _trial(self, text: str) -> Trial:
        try:
            return reached(loads(Trial, text), self.path)
        except ValueError as error:
            raise StoreError(f"a trial in {self.path} is damaged, or from a newer Thrifty: {in_one_line(error)}") from error

    # -- scores -------------------------------------------------------------------------------------------------

    def put_scores(self, trial: str, split: str, scores: Scores) -> None:
        """Keep a trial's scores on a split, replacing earlier ones."""
        with self._writing() as db:
            put_scores(db, trial, split, scores)

    def scores(self, trial: str, split: str, statistic: Statistic | None = None) -> Scores | None:
        """A trial's scores on a split, None where it was not scored. The quality's statistic is code, which is not kept."""
        rows = self._read("SELECT numerator, denominator, cluster FROM scores WHERE trial = ? AND split = ?",
                          utf8(trial), utf8(split))
        if not rows:
            return None
        try:
            numerator, denominator, cluster = (
                np.frombuffer(blob, kind).astype(kind[1:]) for blob, kind in zip(rows[0], KINDS, strict=True)
            )
            shape = numerator.shape if statistic is None else (len(cluster), -1)
            return Scores(numerator.reshape(shape), denominator.reshape(shape), cluster, statistic)
        except (ValueError, TypeError) as error:
            raise StoreError(f"the {split} scores of trial {trial} in {self.path} are damaged: {error}") from error

    # -- what was spent -----------------------------------------------------------------------------------------

    def charge(self, trial: str | None, charge: Charge) -> None:
        """Append a charge, on behalf of a trial or (None) of the study."""
        with self._writing() as db:
            db.execute("INSERT INTO charges (at, trial, json) VALUES (?, ?, ?)",
                       (now(), trial and utf8(trial), dumps(charge)))

    def spent(self, trial: str | None = None, price: float | None = None) -> Ledger:
        """All that really ran, or what ran on behalf of one trial, in order."""
        where, values = ("", ()) if trial is None else (" WHERE trial = ?", (utf8(trial),))
        rows = self._read(f"SELECT json FROM charges{where} ORDER BY n", *values)
        try:
            return Ledger(tuple(loads(Charge, text) for (text,) in rows), price)
        except ValueError as error:
            raise StoreError(f"a charge in {self.path} cannot be read: {in_one_line(error)}") from error

    # -- rounds of measurement ----------------------------------------------------------------------------------

    def put_round(self, trial: str, round: int, values: Mapping[str, Any], what: str = "inference") -> None:
        """Append one raw round, as soon as it was measured, so that a killed measurement resumes after it.

        Raises:
            StoreError: that round was already kept: rounds are never overwritten.
        """
        try:
            text = dumps(values)
        except TypeError as error:
            raise StoreError(f"round {round} of trial {trial} cannot be kept: {error}") from error
        with self._writing() as db:
            if db.execute("SELECT 1 FROM rounds WHERE trial = ? AND what = ? AND round = ?",
                          (utf8(trial), utf8(what), round)).fetchone():
                raise StoreError(f"round {round} of {what} of trial {trial} was already kept")
            db.execute("INSERT INTO rounds VALUES (?, ?, ?, ?, ?)", (utf8(trial), utf8(what), round, now(), text))

    def rounds(self, trial: str, what: str = "inference") -> dict[int, dict[str, Any]]:
        """The rounds measured so far, by number, in order."""
        rows = self._read("SELECT round, json FROM rounds WHERE trial = ? AND what = ? ORDER BY round",
                          utf8(trial), utf8(what))
        return {number: self._json(text, f"round {number} of {what} of trial {trial}") for number, text in rows}

    def _json(self, text: Any, what: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise StoreError(f"{what} in {self.path} is damaged: {in_one_line(error)}; restore {FILE} from a copy") from error

    def history(self) -> tuple[tuple[str, float], ...]:
        """The trials in the order in which they were first timed, each with the seconds charged by then."""
        with self._mutex, explained(self.path):
            return tuple(first_measured(self._db))

    # -- failures -----------------------------------------------------------------------------------------------

    def put_failure(self, trial: str | None, recipe: str, reason: str) -> None:
        """Append a failure that left no trial; a failed trial's own is appended by `put_trial`."""
        with self._writing() as db:
            put_failure(db, trial, recipe, reason)

    def failures(self) -> tuple[Failure, ...]:
        """Every failure, in order."""
        rows = self._read("SELECT trial, recipe, reason, at FROM failures ORDER BY n")
        return tuple(Failure(trial if trial is None else str(trial), *map(str, others)) for trial, *others in rows)

    # -- inside -------------------------------------------------------------------------------------------------

    def _begin(self, study: Study | None) -> Study:
        """Make the tables or check them; return what the trials have in common."""
        db = self._db
        application = db.execute("PRAGMA application_id").fetchone()[0]
        number = db.execute("PRAGMA user_version").fetchone()[0]
        empty = not application and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if empty and self.mode == "read":
            raise StoreError(f"there is no study in {self.path} yet: its {FILE} is empty")
        if empty:
            if study is None:
                raise StoreError(f"{self.path} is a new study: give its workload and target")
            make_durable(db)
            with self._writing():
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {_APPLICATION}")
                db.execute(f"PRAGMA user_version = {FORMAT}")
                db.executemany("INSERT INTO meta VALUES (?, ?)",
                               [("study", dumps(study)), ("thrifty", version()), ("created", now())])
            return study
        if application != _APPLICATION:
            raise StoreError(f"{self.path / FILE} is an SQLite file but not a Thrifty study; "
                             "it was left untouched: choose another directory")
        if number != FORMAT:
            raise StoreError(
                f"{self.path} is a study of format {number}, but this Thrifty ({version()}) reads format {FORMAT}; "
                "nothing was changed: use the Thrifty that made it, or choose a new directory"
            )
        if strange := foreign(db, _SCHEMA):
            raise StoreError(f"{self.path / FILE} holds {strange}, which Thrifty did not make; it was left untouched: restore it "
                             "from a copy")
        if self.mode == "write":
            make_durable(db)
            verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        row = db.execute("SELECT value FROM meta WHERE key = 'study'").fetchone()
        try:
            self.study = loads(Study, row[0] if row else "")
        except ValueError as error:
            raise StoreError(f"{self.path / FILE} is damaged: {in_one_line(error)}; restore it from a copy") from error
        if study is not None:
            self._same(study)
        return self.study

    def _same(self, other: Study) -> None:
        mine = self.study
        if (mine.workload, mine.workload_hash) != (other.workload, other.workload_hash):
            raise StoreError(f"{self.path} is a study of workload {mine.workload} ({mine.workload_hash[:12]}), but this is "
                             f"{other.workload} ({other.workload_hash[:12]}): their trials cannot be compared. The hash covers "
                             "the workload's source and data; use another --study for it")
        if plain(mine.target) != plain(other.target):
            raise StoreError(f"{self.path} is a study for the target {plainly(mine.target)}, but this is "
                             f"{plainly(other.target)}: their trials cannot be compared; use another --study for it")

    def _read(self, query: str, *values: Any) -> list[Any]:
        with self._mutex, explained(self.path):
            rows: list[Any] = self._db.execute(query, values).fetchall()
            return rows

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is in the file when it ends, or nothing."""
        if self.mode != "write":
            raise StoreError(f"{self.path} was opened read-only; open it with mode='write' to change it")
        with self._mutex, explained(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has ended it already
                    self._db.execute("ROLLBACK")
                raise

    def _release(self) -> None:
        if self._lock is not None:
            release(self._lock)
            self._lock = None
