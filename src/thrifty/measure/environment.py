"""What a reader must know of the machine to trust a figure or to repeat it."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from thrifty.target import cores

VERSION = importlib.metadata.version("thrifty")


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """What a reader must know to trust or repeat a figure."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"cpu": model, "cores": cores(), "system": platform.platform(), "python": platform.python_version(),
            **runtime_versions()}


def runtime_versions() -> dict[str, str]:
    """Versions of the packages that decide what an engine does."""
    known = {}
    for package in ("thrifty", "torch", "onnxruntime", "onnx", "onnxscript", "openvino", "jax", "apache-tvm", "executorch",
                    "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[package] = importlib.metadata.version(package)
    return known
