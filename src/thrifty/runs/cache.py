"""The cache of checkpoints and engines: whole entries or none, a quota, and cleaning that spares what is used.

An entry is a directory, built aside and renamed into place. Whoever builds or uses one holds a ``flock`` on the
directory itself: the kernel drops it with the process, however it ends, so that a killed one blocks nothing.
Between the processes of one run nobody holds an entry: a `session` spares whatever was used since it began.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from thrifty.errors import ThriftyError

KINDS = ("checkpoints", "engines", "findings", "trainings", "searches")
DEFAULT_QUOTA = 10 * 10**9

_TAG = "CACHEDIR.TAG"  # the sign by which back-ups skip a cache, and by which this one knows itself
_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of Thrifty; `thrifty cache --clean` empties it.\n"
_KEY = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}")
_SESSIONS = "sessions"
_BUILDING, _REMOVING = ".building-", ".removing-"
_GRACE = 60.0  # seconds between making a directory and locking it are far fewer


class CacheError(ThriftyError):
    """A cache that cannot be used as it is set up."""


@final
@dataclass(frozen=True)
class Entry:
    """One checkpoint or engine: its bytes, and when it was last used (seconds since 1970)."""

    kind: str
    key: str
    bytes: int
    used: float


@final
@dataclass(frozen=True)
class Usage:
    """What is in the cache; ``leftovers`` are bytes of what is being built, or was when its process was killed."""

    path: Path
    quota: int
    entries: tuple[Entry, ...]
    leftovers: int

    @property
    def bytes(self) -> int:
        return self.leftovers + sum(entry.bytes for entry in self.entries)


@final
@dataclass(frozen=True)
class Cleaned:
    """What a cleaning did."""

    removed: tuple[Entry, ...]
    freed: int
    in_use: tuple[Entry, ...]
    """Entries that would have gone and were spared, being in use."""


# -- where and how much -------------------------------------------------------------------------------------------


def directory() -> Path:
    """Where the cache is: THRIFTY_CACHE, or ``thrifty`` under XDG_CACHE_HOME or ~/.cache. Not made by asking."""
    if chosen := os.environ.get("THRIFTY_CACHE"):
        return Path(chosen).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification has relative paths ignored.
    return (Path(home) if home and os.path.isabs(home) else Path.home() / ".cache") / "thrifty"


def quota() -> int:
    """The most bytes that finished entries may take: THRIFTY_CACHE_QUOTA ("500MB", "20GB", "1e9"), or 10 GB.

    Raises:
        CacheError: it cannot be read.
    """
    text = os.environ.get("THRIFTY_CACHE_QUOTA")
    if not text:
        return DEFAULT_QUOTA
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d{1,2})?)\s*([kMGT]?)B?", text.strip())
    if not match:
        raise CacheError(f"THRIFTY_CACHE_QUOTA must be a size such as 500MB or 20GB but is {text!r}")
    return int(float(match[1]) * 1000 ** "_kMGT".index(match[2] or "_"))


def _root() -> Path:
    """The cache's directory, made where it is missing.

    Only a directory that Thrifty made, or found empty, is taken: cleaning must never reach anything else's files.
    """
    root = directory()
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (root / _TAG).exists():
            if any(root.iterdir()):
                raise CacheError(f"{root} holds other files and is not a Thrifty cache; set THRIFTY_CACHE to "
                                 "an empty or new directory")
            (root / _TAG).write_text(_SIGNATURE)
        for kind in KINDS:
            (root / kind).mkdir(exist_ok=True)
    except OSError as error:
        raise CacheError(f"{root} cannot be used as the cache ({error.strerror}); set THRIFTY_CACHE to "
                         "a writable directory") from error
    return root


def _entry(kind: str, key: str) -> Path:
    if kind not in KINDS:
        raise CacheError(f"there is no cache entry kind {kind!r}; known: {', '.join(KINDS)}")
    if not _KEY.fullmatch(key):
        raise CacheError(f"a key is 1 to 128 letters, digits, - and _ but is {key!r}")
    return _root() / kind / key


# -- building and using -------------------------------------------------------------------------------------------


def lookup(kind: str, key: str) -> Path | None:
    """The entry's directory, marked as used now; None where there is none. `using` also keeps it from cleaning."""
    path = _entry(kind, key)
    try:
        os.utime(path)
    except FileNotFoundError:
        return None
    return path


@contextlib.contextmanager
def using(kind: str, key: str) -> Iterator[Path | None]:
    """The entry's directory, or None, safe from cleaning as long as the context lasts.

    Raises:
        CacheError: the kind or the key is not one.
    """
    path = _entry(kind, key)
    lock = _lock(path, fcntl.LOCK_SH)
    try:
        yield lookup(kind, key) if lock is not None else None
    finally:
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def keeping(kind: str, key: str) -> Iterator[Path]:
    """A directory that is written over and over while the context lasts, and goes when it ends well.

    What a killed process leaves there is found by the next.

    Raises:
        CacheError: the kind or the key is not one.
    """
    path = _entry(kind, key)
    path.mkdir(exist_ok=True)
    lock = _lock(path, fcntl.LOCK_SH)
    try:
        yield path
        shutil.rmtree(path, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def building(kind: str, key: str) -> Iterator[Path]:
    """A new directory to build an entry in; it becomes the entry when the context ends well, and goes otherwise.

    Where another process finished the same entry first, that one stays. What is least recently used then makes room.

    Raises:
        CacheError: the kind or the key is not one, or the cache cannot be written.
    """
    path = _entry(kind, key)
    quota()  # one that cannot be read is told before the work, not after
    room = path.with_name(f"{_BUILDING}{key}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    room.mkdir()
    lock = _lock(room, fcntl.LOCK_EX)
    try:
        yield room
        try:
            os.utime(room)
            room.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        clean()  # while the lock is held: what was just built is not what goes
    finally:
        shutil.rmtree(room, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Whatever is used or built by any process from now on stays until the context ends.

    Its sign is a file that is locked; of a killed process it is unlocked, and `clean` removes it.
    """
    room = _root() / _SESSIONS
    room.mkdir(exist_ok=True)
    path = room / f"{os.getpid()}.{uuid.uuid4().hex[:8]}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def pin(kind: str, key: str) -> None:
    """Keep an entry, where there is one, until this process ends."""
    if (kind, key) not in _pins and (lock := _lock(_entry(kind, key), fcntl.LOCK_SH)) is not None:
        _pins[kind, key] = lock


_pins: dict[tuple[str, str], int] = {}


def _sessions_began() -> float:
    """When the oldest session of those that last began (seconds since 1970); removes the signs of killed ones."""
    began = math.inf
    try:
        signs = list((directory() / _SESSIONS).iterdir())
    except FileNotFoundError:
        return began
    for path in signs:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                age = os.fstat(descriptor).st_mtime
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - age > _GRACE:  # a younger one may not have been locked yet
                    path.unlink(missing_ok=True)
            except BlockingIOError:
                began = min(began, age)
            finally:
                os.close(descriptor)
    return began


def _lock(path: Path, mode: int) -> int | None:
    """Lock a directory; None where it is not there, or (with LOCK_NB) is locked by another."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, mode)
        # It may have been renamed away by a cleaning between the two calls.
        if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


# -- cleaning -----------------------------------------------------------------------------------------------------


def usage() -> Usage:
    """What the cache holds, the least recently used first."""
    root, entries, leftovers = directory(), [], 0
    for kind in KINDS if (root / _TAG).exists() else ():
        for path in _listed(root / kind):
            size = _size(path)
            if path.name.startswith((_BUILDING, _REMOVING)):
                leftovers += size
            elif _KEY.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # cleaned meanwhile
                    entries.append(Entry(kind, path.name, size, path.stat().st_mtime))
    return Usage(root, quota(), tuple(sorted(entries, key=lambda entry: entry.used)), leftovers)


def clean(everything: bool = False) -> Cleaned:
    """Remove what killed builds left, then the least recently used entries until the rest is within the quota.

    Args:
        everything: remove every entry that is not in use.
    """
    root = directory()
    if not (root / _TAG).exists():
        return Cleaned((), 0, ())
    freed = sum(_remove_leftover(path) for kind in KINDS for path in _listed(root / kind))
    began, held = _sessions_began(), usage()
    total, removed, in_use = sum(entry.bytes for entry in held.entries), [], []
    for entry in held.entries:
        if not everything and total <= held.quota:
            break
        if entry.used < began and _remove(root / entry.kind / entry.key, entry.used):
            removed.append(entry)
            total -= entry.bytes
            freed += entry.bytes
        else:
            in_use.append(entry)
    return Cleaned(tuple(removed), freed, tuple(in_use))


def _remove(path: Path, used: float = math.inf) -> bool:
    """Remove a directory that nobody holds, nor has used since: first out of sight, at once, then its files."""
    lock = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if lock is None:
        return False
    try:
        if os.fstat(lock).st_mtime > used:
            return False
        aside = path.with_name(f"{_REMOVING}{path.name.lstrip('.')}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
        return True
    except OSError:
        return False
    finally:
        os.close(lock)


def _remove_leftover(path: Path) -> int:
    """Remove what a killed process left, by name, age and lock; return its bytes, 0 where it stays."""
    if not path.name.startswith((_BUILDING, _REMOVING)):
        return 0
    pid = path.name.split(".")[-2]
    try:
        young = time.time() - path.stat().st_mtime < _GRACE
    except OSError:
        return 0
    if young and pid.isdigit() and _alive(int(pid)):
        return 0
    size = _size(path)
    return size if _remove(path) else 0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _listed(path: Path) -> list[Path]:
    try:
        return [p for p in path.iterdir() if p.is_dir() and not p.is_symlink()]
    except FileNotFoundError:
        return []


def _size(path: Path) -> int:
    total = 0
    for folder, _, files in os.walk(path):
        for file in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, file)).st_size
    return total
