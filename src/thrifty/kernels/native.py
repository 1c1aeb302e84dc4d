"""C++ of our own, compiled once for this very machine and kept."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from thrifty.errors import ThriftyError

FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
"""No -ffast-math: NaN must stay NaN, it is how a training that went wrong is found out."""


class NoCompiler(ThriftyError):
    """There is no C++ compiler here, or it failed."""


@functools.cache
def library(source: Path) -> ctypes.CDLL:
    """The shared library of one C++ file, compiled at first use.

    It is kept in the user's temporary folder under a hash of the source, the flags, the compiler and the processor,
    and moved into place whole, so that processes that start together do not meet half a file.

    Raises:
        NoCompiler: no ``CXX`` and no g++, or an error of the compiler's.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise NoCompiler("no C++ compiler: install g++, or set CXX to yours")
    told = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    key = hashlib.sha256("\0".join([source.read_text(), *FLAGS, told, _processor()]).encode()).hexdigest()[:20]
    folder = Path(tempfile.gettempdir()) / f"thrifty-native-{os.getuid()}"
    kept = folder / f"{source.stem}-{key}.so"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise NoCompiler(f"{folder} belongs to another user: remove it, or set TMPDIR")
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            made = Path(place) / kept.name
            done = subprocess.run([compiler, *FLAGS, str(source), "-o", str(made)], capture_output=True, text=True,
                                  check=False)
            if done.returncode:
                raise NoCompiler(f"{compiler} could not compile {source.name}: {done.stderr[-2000:]}")
            made.replace(kept)
    return ctypes.CDLL(str(kept))


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
