"""Where the embedded workloads find their data: installed packages, the standard library, and the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from thrifty.errors import MissingExtra

NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib-dynload", "__pycache__"}

CACHE_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of Thrifty.\n"


def package_folder(module: str, package: str, extra: str) -> Path:
    """Folder of an installed package, found without importing it (some drag in pandas, some print).

    Args:
        module: the name by which it is imported.
        package: the name by which it is installed, for the error.
        extra: Thrifty's extra that brings it.

    Raises:
        MissingExtra: it is not installed.

    >>> package_folder("thrifty", "thrifty", "none").name
    'thrifty'
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(package, extra)
    return Path(spec.submodule_search_locations[0])


def data_folder() -> Path:
    """Where data are unpacked: `data` in Thrifty's cache, where `thrifty.runs.cache` puts checkpoints.

    That is $THRIFTY_CACHE, or thrifty under $XDG_CACHE_HOME or ~/.cache. Cleaning checkpoints leaves data alone.
    """
    chosen, home = os.environ.get("THRIFTY_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if chosen:
        root = Path(chosen).expanduser().absolute()
    else:  # the XDG specification has relative paths ignored
        root = (Path(home) if home and os.path.isabs(home) else Path.home() / ".cache") / "thrifty"
    root.mkdir(parents=True, exist_ok=True)
    tag = root / "CACHEDIR.TAG"
    if not tag.exists() and not any(root.iterdir()):
        tag.write_text(CACHE_SIGNATURE)  # `thrifty.runs.cache` takes only a directory that is empty or tagged
    return root / "data"


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Fill a cache folder unless it is there; many processes may try, and none sees it half filled.

    Args:
        folder: where it ends; its name changes with whatever its content depends on.
        build: fills the empty folder that it is given.

    Returns:
        the folder.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build(draft)
        # Renaming onto a folder that another process has filled meanwhile fails; theirs is as good.
        with contextlib.suppress(OSError):
            draft.rename(folder)
        if not folder.is_dir():
            raise OSError(f"cannot rename {draft} to {folder}")
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


@cache
def library_files() -> tuple[str, ...]:
    """Paths of the running Python's own modules, relative to its library: no tests, nothing installed, sorted."""
    root, found = library_root(), []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in NOT_LIBRARY]  # installed packages are many: not entered
        found += [Path(folder, name).relative_to(root).as_posix() for name in names if name.endswith(".py")]
    return tuple(sorted(found))


@cache
def library_root() -> Path:
    """Folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def read_library(path: str) -> str:
    """Text of one of `library_files`; bytes that are not UTF-8 (a few old encodings) become U+FFFD."""
    return (library_root() / path).read_bytes().decode("utf-8", errors="replace")


def digest(paths: Sequence[str]) -> str:
    """sha256 of the names and contents of files of the standard library: it changes with the Python version."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(path.encode() + b"\0" + hashlib.sha256((library_root() / path).read_bytes()).digest())
    return whole.hexdigest()


def bucket(path: str, buckets: int) -> int:
    """A file's bucket by the hash of its name: a file stays in its split whatever the Python version.

    >>> bucket("json/decoder.py", 10)
    3
    """
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % buckets
