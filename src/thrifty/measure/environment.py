"""What a reader must know of the machine to trust a figure or to repeat it."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from thrifty.target import cores


def _version() -> str:
    """Thrifty's version; a checkout that is on the path and not installed has none."""
    try:
        return importlib.metadata.version("thrifty")
    except importlib.metadata.PackageNotFoundError:
        return "source"


VERSION = _version()


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def processor() -> str:
    """The processor's name, as its maker gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    return next(named, platform.processor() or platform.machine())


def environment() -> dict[str, Any]:
    """What a reader must know to trust or repeat a figure."""
    return {"cpu": processor(), "cores": cores(), "system": platform.platform(), "python": platform.python_version(),
            **runtime_versions()}


def runtime_versions() -> dict[str, str]:
    """Versions of the packages that decide what an engine does."""
    known = {}
    for package in ("thrifty", "torch", "onnxruntime", "onnx", "onnxscript", "openvino", "jax", "apache-tvm", "executorch",
                    "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[package] = importlib.metadata.version(package)
    return known
