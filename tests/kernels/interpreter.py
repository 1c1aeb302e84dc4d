"""Kernels run by Triton's interpreter, in a process of their own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor


def interprets() -> bool:
    """Whether Triton's interpreter runs here: of 3.6 it fails with numpy 2.4, of 3.9 it does not."""
    if importlib.util.find_spec("triton") is None:
        return False
    old = tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) < (3, 9)
    return not (old and np.lib.NumpyVersion(np.__version__) >= "2.4.0")


interpreted = pytest.mark.skipif(not interprets(), reason="Triton is not installed, or too old for this numpy")


def interpret(code: str) -> None:
    """Run code whose kernels Triton interprets."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(["src", ".", *sys.path])})
    assert done.returncode == 0, done.stderr[-2000:]


def poison() -> None:
    """Fresh memory is NaN: what is read before it is written shows."""
    empty = torch.empty

    def poisoned(*args: object, **kwargs: object) -> Tensor:
        made: Tensor = empty(*args, **kwargs)  # type: ignore[call-overload]
        return made.fill_(torch.nan) if made.is_floating_point() else made

    torch.empty = poisoned  # type: ignore[assignment]
