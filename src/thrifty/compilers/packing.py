"""Weights of convolutions packed when they are compiled, whatever the batch; Inductor's own does so for fixed sizes alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch


@contextlib.contextmanager
def packed_for_any_batch() -> Iterator[None]:
    """While the context lasts, Inductor packs weights of convolutions whose inputs have free sizes as well.

    Left alone it hands oneDNN plain weights there, which are packed anew at every call: on a processor with AVX2, longer than
    the products. The layout is chosen for one request; a batch of another size may want another one, and is as right. It
    reaches into torch (2.11 to 2.13); where torch has changed, nothing is packed and nothing is wrong.
    """
    from torch._inductor.fx_passes import mkldnn_fusion as fusion

    free, operators = getattr(fusion, "has_free_symbols", None), getattr(fusion, "MkldnnDeviceOpBase", None)
    kinds = [kind for kind in (operators.__subclasses__() if operators is not None else []) if "pack_conv_weight" in vars(kind)]
    if free is None or not kinds:
        yield
        return

    def scalar_is_free(value: Any) -> bool:  # shapes are asked about for convolutions, batch sizes for linear layers
        return not isinstance(value, torch.Size) and bool(free(value))

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(fusion, "has_free_symbols", scalar_is_free))
        for kind in kinds:
            stack.enter_context(mock.patch.object(kind, "pack_conv_weight", _with_known_sizes(kind.pack_conv_weight)))
        yield


def _with_known_sizes(pack: Any) -> Any:
    def packed(self: Any, graph: Any, is_transposed: bool, weight: Any, constant_args: Any, input_size: Sequence[Any]) -> Any:
        # A free batch is that of one request, which is where packing costs most of the time.
        known = [size if isinstance(size, int) else int(size.node.hint) if i else 1 for i, size in enumerate(input_size)]
        return pack(self, graph, is_transposed, weight, constant_args, known)

    return packed
