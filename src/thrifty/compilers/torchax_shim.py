"""torchax 0.0.13 on torch 2.13: overloads that torch no longer has, which torchax only names.

To be deleted, with its test, once torchax imports without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._ops import OpOverloadPacket


@contextmanager
def _removed_overloads() -> Iterator[None]:
    """Give a name that stands for nothing where torch had an overload for named dimensions.

    torchax lists them for `torch._decomp.get_decompositions`, which passes over what it does not know.
    """
    lookup = OpOverloadPacket.__getattr__

    def forgiving(packet: OpOverloadPacket, key: str) -> Any:
        try:
            return lookup(packet, key)
        except AttributeError:
            if "name" not in key.lower():
                raise
            return object()

    OpOverloadPacket.__getattr__ = forgiving  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        OpOverloadPacket.__getattr__ = lookup  # type: ignore[method-assign]


def import_torchax() -> Any:
    """torchax, its table of operators filled; what importing it changes in torch is put back where it can be."""
    os.environ.setdefault("ENABLE_RUNTIME_UPTIME_TELEMETRY", "0")  # it sets 1
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        with _removed_overloads():
            import torchax
            import torchax.export
            import torchax.ops.mappings

            torchax.default_env()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return torchax
