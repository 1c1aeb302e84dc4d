"""Which compilers are here, what they serve, and whether they really work."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from thrifty.artifacts.verification import installed, verify
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.registry import method_class, names

LIMIT = 180.0
"""Seconds that a compiler has for a tiny net; XLA's and AOTInductor's first imports take most of it."""


@final
@dataclass(frozen=True)
class Tried:
    """What came of a tiny net: whether its engine answers as it does, and in how many seconds, or why not."""

    works: bool
    seconds: float | None
    detail: str


@final
@dataclass(frozen=True)
class Available:
    """One compiler.

    Args:
        name: as a recipe has it.
        packages: version of each that it needs, None where it is not installed.
        tools: programs that it calls, and where they are; None where they are not.
        precisions, devices: that it serves.
        missing: what to install, None where nothing is missing.
        tried: None where none was asked for, or something is missing.
    """

    name: str
    packages: Mapping[str, str | None]
    tools: Mapping[str, str | None]
    precisions: tuple[str, ...]
    devices: tuple[str, ...]
    missing: str | None
    tried: Tried | None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "tried": self.tried and vars(self.tried)}


def available(check: bool = False, limit: float = LIMIT) -> tuple[Available, ...]:
    """Every registered compiler.

    Args:
        check: have each that is installed compile a tiny net, in a process of its own, and compare the answers.
        limit: seconds for each of these.
    """
    return tuple(_look(cls, check, limit) for cls in compilers(names()))


def compilers(known: Iterable[str]) -> list[type[Compiler]]:
    """The compilers among names of methods."""
    return [cls for cls in map(method_class, known) if issubclass(cls, Compiler)]


def _look(cls: type[Compiler], check: bool, limit: float) -> Available:
    missing = cls.missing()
    return Available(cls.name, {name: installed(name) for name in cls.packages}, cls.tools(), cls.precisions,
                     tuple(sorted(cls.card.devices)),
                     missing, attempt(cls.name, limit) if check and missing is None else None)


def attempt(name: str, limit: float = LIMIT) -> Tried:
    """Have a compiler compile a tiny net, in a process of its own: whatever it does ends with that process."""
    command = [sys.executable, "-m", "thrifty.compilers.availability", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return Tried(False, None, f"it did not finish within {limit:g} s")
    try:
        return Tried(**json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        return Tried(False, None, f"its process ended with {done.returncode} and said: {done.stderr.strip()[-500:] or 'nothing'}")


def _attempt(name: str) -> Tried:
    import time

    import torch
    from torch import nn

    from thrifty.compilers.lower import lower
    from thrifty.errors import ThriftyError

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval().requires_grad_(False)
    example = (torch.randn(1, 3, 6, 6),)
    (compiler,) = (cls() for cls in compilers([name]))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        try:
            lower(net, compiler, Path(place) / name, example)
        except ThriftyError as error:
            return Tried(False, None, str(error))
        found = verify(Path(place) / name, trust_native_code=True)
    seconds = time.perf_counter() - began
    failed = [check.detail for check in found.checks if check.status == "failed"]
    return Tried(found.sound, seconds, failed[0] if failed else found.checks[-1].detail)


if __name__ == "__main__":
    print(json.dumps(vars(_attempt(sys.argv[1]))))  # noqa: T201  # the process's answer
