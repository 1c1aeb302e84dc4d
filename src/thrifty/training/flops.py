"""Counting floating-point operations, and naming those that no formula counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, shape_wrapper

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
        counted = formula(packet) is not None
        if not counted and not func.is_view and packet not in _FREE and func.namespace not in _SENDING:
            self.names.add(str(packet))
        return out


class _Counter(FlopCounterMode):
    """Counts what this process computes: of a product that ranks share, its part."""

    elsewhere = 0.0

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        before = self.get_total_flops()
        out = super()._count_flops(func_packet, out, args, kwargs)
        ranks = max((x.device_mesh.size() for x in args if isinstance(x, DTensor)), default=1)
        self.elsewhere += (self.get_total_flops() - before) * (1 - 1 / ranks)
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


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Scores, and the values that they weigh; keys and values may have fewer heads than queries."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(by_out: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Scores again, and the gradients of scores, values, queries and keys."""
    return 2 * math.prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1])


_KERNELS = ("efficient_attention", "flash_attention", "cudnn_attention", "flash_attention_for_cpu")
_FORMULAS: Mapping[str, Callable[..., int]] = {
    "mkldnn_rnn_layer": _layer, "mkldnn_rnn_layer_backward": _twice(_layer),
    "_cudnn_rnn": _layers, "_cudnn_rnn_backward": _twice(_layers),
    **{f"_scaled_dot_product_{kernel}": _attention for kernel in _KERNELS},
    **{f"_scaled_dot_product_{kernel}_backward": _attention_backward for kernel in _KERNELS},
}
_OWN = {getattr(torch.ops.aten, name): count for name, count in _FORMULAS.items() if hasattr(torch.ops.aten, name)}
"""Formulas that torch has none of, or in its older versions not for grouped queries."""


def formula(operator: Any) -> Callable[..., int] | None:
    """The formula of an operator's FLOPs, called with its arguments and ``out_val``; None where there is none."""
    return shape_wrapper(_OWN[operator]) if operator in _OWN else flop_registry.get(operator)

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
    names, counter = _Names(), _Counter(display=False, custom_mapping=_OWN)
    with eagerly(), counter, names:
        result = call()
    return result, FlopCount(counter.get_total_flops() - counter.elsewhere, tuple(sorted(names.names)))
