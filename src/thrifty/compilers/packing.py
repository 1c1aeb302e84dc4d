"""Weights of convolutions packed when they are compiled, whatever the batch; Inductor's own does so for fixed sizes alone."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

ASKS = "convolution"
"""The function of torch that packs a convolution's weight where `has_free_symbols` says no. Others ask too, of transposed
convolutions and of linear layers, and are answered as ever."""


@contextlib.contextmanager
def packed_for(batch: int) -> Iterator[None]:
    """While the context lasts, Inductor packs weights of convolutions whose inputs have free sizes as well.

    Left alone it hands oneDNN plain weights there, which are packed anew at every call: on a processor with AVX2 that can take
    longer than the products. A packed weight makes a convolution answer in channels-last order, so the order that Inductor
    reckons with, which for plain weights hangs on the input's, is that too.

    It reaches into torch (2.11 to 2.13); where torch has changed, nothing is packed and nothing is wrong. Transposed
    convolutions of free sizes stay plain: torch reads their batch as a number.

    Args:
        batch: that the layout is chosen for, where it is free. Another one may want another layout: its call packs anew.
    """
    from torch._inductor.fx_passes import mkldnn_fusion as fusion

    ir = sys.modules.get("torch._inductor.mkldnn_ir")
    operators = getattr(fusion, "MkldnnDeviceOpBase", None)
    kinds = [kind for kind in (operators.__subclasses__() if operators is not None else [])
             if "pack_conv_weight" in vars(kind)]
    free, plain = getattr(fusion, "has_free_symbols", None), getattr(ir, "is_contiguous_storage_and_layout", None)
    if free is None or plain is None or not kinds:
        yield
        return
    done: list[None] = []

    def asked(value: Any) -> bool:
        return sys._getframe(1).f_code.co_name != ASKS and bool(free(value))

    def first_order(x: Any) -> bool:
        return not done and bool(plain(x))

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(fusion, "has_free_symbols", asked))
        stack.enter_context(mock.patch.object(ir, "is_contiguous_storage_and_layout", first_order))
        for kind in kinds:
            packed = _with_known_sizes(kind.pack_conv_weight, batch, done)
            stack.enter_context(mock.patch.object(kind, "pack_conv_weight", packed))
        yield


def _with_known_sizes(pack: Callable[..., Any], batch: int, done: list[None]) -> Callable[..., Any]:
    def packed(self: Any, graph: Any, is_transposed: bool, weight: Any, constant_args: Any, input_size: Sequence[Any]) -> Any:
        done.append(None)
        known = [size if isinstance(size, int) else int(size.node.hint) if i else batch for i, size in enumerate(input_size)]
        return pack(self, graph, is_transposed, weight, constant_args, known)

    return packed
