"""What a store keeps, as rows of its tables, and what is read off several rows at once."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime

import numpy as np

from thrifty.workloads.quality import Scores

KINDS = ("<f8", "<f8", "<i8")
"""Of the arrays of scores."""


def put_scores(db: sqlite3.Connection, trial: str, split: str, scores: Scores) -> None:
    """Keep a trial's scores on a split, replacing earlier ones."""
    arrays = (scores.numerator, scores.denominator, scores.cluster)
    blobs = [np.ascontiguousarray(array, kind).tobytes() for array, kind in zip(arrays, KINDS, strict=True)]
    db.execute("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)", (utf8(trial), utf8(split), *blobs))


def put_failure(db: sqlite3.Connection, trial: str | None, recipe: str, reason: str) -> None:
    """Append a failure."""
    db.execute("INSERT INTO failures (at, trial, recipe, reason) VALUES (?, ?, ?, ?)",
               (now(), trial and utf8(trial), utf8(recipe), utf8(reason)))


def utf8(value: str) -> str:
    """SQLite takes UTF-8, which cannot encode lone surrogates (for example of undecodable file names)."""
    return value.encode("utf-8", "backslashreplace").decode()


def now() -> str:
    """The time, as it is kept: its texts are in the order of time."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def first_measured(db: sqlite3.Connection) -> list[tuple[str, float]]:
    """Each trial that was timed, and the seconds that its study had been charged by then, in that order.

    A trial that was screened and then measured again counts from its screening, which is when a search knew of it.
    """
    rows = db.execute(
        "SELECT trial, (SELECT sum(json_extract(json, '$.seconds')) FROM charges WHERE charges.at <= ended.at) FROM "
        "(SELECT trial, min(at) AS at FROM (SELECT trial, max(at) AS at FROM rounds WHERE what IN ('screen', 'claim') "
        "GROUP BY trial, what) GROUP BY trial) AS ended ORDER BY ended.at"
    ).fetchall()
    return [(str(trial), float(seconds or 0.0)) for trial, seconds in rows]
