"""What this processor can execute, without torch."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

KNOWN = ("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx_vnni",
         "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "sve", "bf16", "i8mm")
"""Those that decide which kernels a compiler picks, as Linux names them."""


PRETENDED = "THRIFTY_INSTRUCTIONS"
"""The environment variable that says what the processor has, under emulation, or to make artifacts for a lesser one."""
VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


@functools.cache
def instructions() -> frozenset[str]:
    """Those of `KNOWN` that this processor has, as Linux or `PRETENDED` says; empty where neither does."""
    if (said := os.environ.get(PRETENDED)) is not None:
        return frozenset(said.split()) & frozenset(KNOWN)
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return frozenset()
    for line in path.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split()) & frozenset(KNOWN)
    return frozenset()


def instruction_set() -> str:
    """This processor's, as an artifact records it: "x86_64 amx_int8 avx2 ..."."""
    return " ".join([platform.machine(), *sorted(instructions())])


def saturates() -> bool:
    """Whether products of u8 and s8 are summed in 16 bits and saturate: on x86 without VNNI."""
    return platform.machine() in ("x86_64", "AMD64") and bool(instructions()) and not instructions() & VNNI


def missing_instructions(needed: str) -> list[str]:
    """What an artifact's ``instruction_set`` asks for and this processor lacks.

    >>> missing_instructions("")
    []
    """
    if not needed:
        return []
    machine, *wanted = needed.split()
    if machine != platform.machine():
        return [machine]
    have = instructions()
    return [name for name in wanted if name not in have] if have else []
