"""What this processor can execute, without torch."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

KNOWN = ("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx_vnni",
         "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "sve", "bf16", "i8mm")
"""Those that decide which kernels a compiler picks, as Linux names them."""


@functools.cache
def instructions() -> frozenset[str]:
    """Of `KNOWN`, what Linux says that this processor has; empty where it does not say."""
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
