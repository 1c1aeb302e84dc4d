"""Counting floating-point operations, and naming those that no formula counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from thrifty.compilers.inprocess import eagerly

T = TypeVar("T")


@final
@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one call, and the operators that ran without a formula for theirs."""

    flops: float
    uncounted: tuple[str, ...]


class _Names(TorchDispatchMode):
    """Notes the operators that read and write floating-point tensors and have no FLOP formula."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        counted = packet in flop_registry or packet in _RECURRENT
        if not counted and not func.is_view and packet not in _FREE and func.namespace not in _SENDING:
            self.names.add(str(packet))
        return out


Shape = Sequence[int]


def _layer(input: Shape, of_inputs: Shape, of_states: Shape, *_: Any, **__: Any) -> int:
    """One direction of an LSTM's layer: at each step, its two matrices."""
    return 2 * math.prod(input[:-1]) * (math.prod(of_inputs) + math.prod(of_states))


def _layers(input: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    """All layers of cuDNN's: at each step, every matrix; biases, which are vectors, add."""
    return 2 * math.prod(input[:-1]) * sum(math.prod(weight) for weight in weights if len(weight) == 2)


def _twice(formula: Callable[..., int]) -> Callable[..., int]:
    """Backward: as much for the inputs' gradients, and for the weights'."""
    return lambda *args, **kwargs: 2 * formula(*args, **kwargs)


_RECURRENT: Mapping[Any, Callable[..., int]] = {
    getattr(torch.ops.aten, name): formula
    for name, formula in {"mkldnn_rnn_layer": _layer, "mkldnn_rnn_layer_backward": _twice(_layer),
                          "_cudnn_rnn": _layers, "_cudnn_rnn_backward": _twice(_layers)}.items()
    if hasattr(torch.ops.aten, name)
}
"""Formulas that torch has none of: recurrent layers as one operator."""

_FREE = {
    getattr(torch.ops.aten, name)
    for name in ("detach", "clone", "copy_", "_to_copy", "empty", "empty_like", "zeros", "zeros_like", "ones_like",
                 "fill_", "zero_", "new_zeros", "new_empty", "new_empty_strided", "arange", "full", "full_like",
                 "scalar_tensor", "_local_scalar_dense", "index", "cat", "stack", "embedding", "lift_fresh", "ones",
                 "empty_strided", "set_", "resize_", "_unsafe_view", "constant_pad_nd", "ne", "eq", "isfinite",
                 "slice_backward", "select_backward", "new_full", "new_ones", "equal", "_foreach_copy_")
    if hasattr(torch.ops.aten, name)
}
"""Operators that move or make data: no arithmetic to count."""


_SENDING = {"profiler", "c10d", "_c10d_functional", "fsdp"}
"""Namespaces of operators that watch, or send to other ranks."""


def count_flops(call: Callable[[], T]) -> tuple[T, FlopCount]:
    """Make a call and count it.

    FLOPs are torch's: 2 for each multiply-add of matrix products, convolutions, attention and recurrent layers, forward and
    backward.
    Compiled modules run as they were written, this once: a kernel of the compiler's has no formula.

    Returns:
        the call's result, and the count.

    >>> _, count = count_flops(lambda: torch.ones(4, 8) @ torch.ones(8, 2))
    >>> count.flops
    128.0
    """
    names, counter = _Names(), FlopCounterMode(display=False, custom_mapping=dict(_RECURRENT))
    with eagerly(), counter, names:
        result = call()
    return result, FlopCount(float(counter.get_total_flops()), tuple(sorted(names.names)))
