"""What a compiler needs before it can work: packages, a C++ compiler, a processor to serve."""

from __future__ import annotations

import importlib.util

from thrifty.compilers.capture import LoweringError
from thrifty.errors import MissingExtra, ThriftyError


class NoCompiler(ThriftyError):
    """There is no C++ compiler."""


def absent(packages: tuple[str, ...]) -> str | None:
    """The first package that is not installed, by the name under which it is imported."""
    return next((name for name in packages if importlib.util.find_spec(name) is None), None)


def require(extra: str, *packages: str) -> None:
    """Refuse to go on without packages.

    Args:
        extra: that brings them.
        packages: by the names under which they are imported.

    Raises:
        MissingExtra: one is not installed.
    """
    if name := absent(packages):
        raise MissingExtra(name, extra)


def to_install(extra: str, *packages: str) -> str | None:
    """What to install, None where all of these packages are.

    >>> to_install("tvm", "torch"), to_install("tvm", "torch", "no_such_package")
    (None, "no_such_package is not installed: pip install 'thrifty[tvm]'")
    """
    return f"{name} is not installed: pip install 'thrifty[{extra}]'" if (name := absent(packages)) else None


def cpp_compiler_to_install(compiler: str, purpose: str = "") -> str:
    """What to install where there is no C++ compiler.

    Args:
        compiler: that needs it, by its name in a recipe.
        purpose: what for, behind a space; empty where it is plain.
    """
    return (f"compile({compiler}) needs a C++ compiler{purpose} and found none: install one (Debian, Ubuntu: apt-get install "
            "g++; Fedora: dnf install gcc-c++), or set CXX to yours")


def require_processor(compiler: str, device: str) -> None:
    """Refuse a target that is no processor.

    Raises:
        LoweringError: ``device`` is another.
    """
    if device != "cpu":
        raise LoweringError(f"compile({compiler}) supports CPUs only, not {device}: use compile(inductor)")
