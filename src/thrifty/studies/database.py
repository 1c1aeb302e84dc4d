"""The file under a store: its one writer's lock, its connection, and its errors in words that tell what to do."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from thrifty.errors import ThriftyError, in_one_line

FILE, LOCK = "study.sqlite", "study.lock"

Mode = Literal["read", "write"]

Note = Literal["bars", "source", "doubt", "as it is", "compiled", "estimates", "ended", "session",
               "remarks"]
"""What the last search was asked for, where the workload was found, why nothing follows from the study, what is known of the
model as it is, which compiler made the compiled baseline, how well costs were estimated, how the last exploration ended, who
writes now, tags and notes on trials."""


class StoreError(ThriftyError):
    """A store that cannot be opened, read or written; what was in it is as it was."""


def connect(file: Path, mode: Mode) -> sqlite3.Connection:
    # A reader that may write can roll back what a killed writer left half done; query_only keeps it a reader.
    writable = mode == "write" or (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))
    access = "rwc" if mode == "write" else "rw" if writable else "ro"
    db = sqlite3.connect(f"{file.absolute().as_uri()}?mode={access}", uri=True, timeout=30, isolation_level=None,
                         check_same_thread=False)
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        if mode == "read":
            db.execute("PRAGMA query_only = ON")
    except BaseException:
        db.close()
        raise
    return db


def make_durable(db: sqlite3.Connection) -> None:
    """What a writer sets once it knows that the file is a study: it changes the file."""
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("PRAGMA synchronous = FULL")


def foreign(db: sqlite3.Connection, schema: str) -> str | None:
    """The first table, trigger or view that the statements of a schema do not make; None where there is none.

    A view may be a query that never ends, and a trigger change what is written.
    """
    made = {" ".join(statement.split()) for statement in schema.split(";")}
    for kind, name, text in db.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"):
        if kind != "table" or " ".join(str(text).split()) not in made:
            return f"the {kind} {str(name)[:100]!r}"
    return None


_held: set[int] = set()


def _forget() -> None:
    """In a forked child: a lock must not outlive the writer in its children."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def acquire(path: Path) -> int:
    """Take the writer's lock; the kernel gives it back when the process ends, however it ends."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _no_lock(path) from error
        raise
    try:
        found = os.fstat(descriptor)
        owner = os.pread(descriptor, 64, 0).decode(errors="replace").strip() if stat.S_ISREG(found.st_mode) else "?"
        # By another name, or with other content, it is a file of the user's.
        if found.st_nlink > 1 or not (owner.isdigit() or not owner) or len(owner) > 20:
            raise _no_lock(path)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StoreError(f"{path.parent} is being written by process {owner or 'unknown'}; wait for it, stop it, or use another "
                         "--study (reading needs no lock)") from error
    except BaseException:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    _held.add(descriptor)
    return descriptor


def _no_lock(path: Path) -> StoreError:
    return StoreError(f"{path} is not a study's lock but a link or some other file, which was left untouched: remove it, "
                      "or choose another directory")


def alive(path: Path) -> float | None:
    """Seconds since 1970 at which the last writer was known to live, by the time of its lock file; None where there was none."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return None


def touch(study: Path) -> None:
    """Say that the writer which holds the lock of a study's directory lives."""
    with contextlib.suppress(OSError):
        os.utime(study / LOCK, follow_symlinks=False)


def release(descriptor: int) -> None:
    """Give the writer's lock back."""
    _held.discard(descriptor)
    os.close(descriptor)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """What SQLite and the system say, in words that tell what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(_explain(path, error)) from error
    except UnicodeError as error:
        raise StoreError(f"{path / FILE} is damaged ({in_one_line(error)}); restore it from a copy") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be used as a study's directory: {error.strerror or error}") from error


def _explain(path: Path, error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", None)
    code = None if code is None else code & 0xFF  # the low byte; the rest is detail
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return (f"the disk that holds {path} is full or fails ({error}): what was saved before is intact, this was not "
                "saved; free some space (thrifty cache --clean) and ask again")
    if code == sqlite3.SQLITE_NOTADB:
        return f"{path / FILE} is not a Thrifty study, nor an SQLite file: choose another directory"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"{path / FILE} cannot be opened or written ({error}): check its permissions"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{path / FILE} is held by another program ({error}); close it and ask again"
    if code == sqlite3.SQLITE_CORRUPT or type(error) is sqlite3.DatabaseError:
        return f"{path / FILE} is damaged ({error}); restore it from a copy, or try: sqlite3 {FILE} .recover"
    return f"{path / FILE}: {error}"


def version() -> str:
    """Thrifty's own, as it is installed."""
    try:
        return importlib.metadata.version("thrifty")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
