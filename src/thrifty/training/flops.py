"""Counting floating-point operations, and naming those that no formula counts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch._ops import HigherOrderOperator
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

from thrifty.compilers.inprocess import eagerly

T = TypeVar("T")


@final
@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one call, and the operators that ran without a formula for theirs."""

    flops: float
    uncounted: tuple[str, ...]


@dataclass(frozen=True)
class _Known:
    """What is to be done with calls of an operator: looked up once for each, for a step has thousands of calls."""

    formula: Callable[..., int] | None
    named: bool
    composite: bool
    asks: bool

    @staticmethod
    @functools.cache
    def of(operator: Any) -> _Known:
        packet = operator._overloadpacket
        found = formula(packet)
        return _Known(
            formula=found,
            named=found is None and not operator.is_view and packet not in _FREE and operator.namespace not in _SENDING,
            composite=operator._can_decompose(),
            asks=packet in _ASKING)


class _Counter(TorchDispatchMode):
    """Counts what this process computes (of a product that ranks share, its part), and names operators without a formula."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.names = 0.0, set[str]()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled meanwhile (`eagerly`); asking Dynamo at each call takes as long as the counting."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            self.names.add(str(func))
            return func(*args, **kwargs)
        known = _Known.of(func)
        if known.asks:
            return NotImplemented
        if known.composite:
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if known.formula is not None:
            ranks = max((x.device_mesh.size() for x in args if isinstance(x, DTensor)), default=1)
            self.flops += known.formula(*args, **kwargs, out_val=out) / ranks
        elif known.named:
            self.names.add(str(func._overloadpacket))
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


_ASKING = {torch.ops.prim.layout} | {
    getattr(torch.ops.aten, name)
    for name in ("is_contiguous", "is_strides_like_format", "is_non_overlapping_and_dense", "size", "stride", "storage_offset",
                 "numel", "dim", "sym_is_contiguous", "sym_size", "sym_stride", "sym_storage_offset", "sym_numel")
    if hasattr(torch.ops.aten, name)
}
"""Operators by which a tensor subclass is asked for its form: torch answers by itself."""


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
    counter = _Counter()
    with eagerly(), counter:
        result = call()
    return result, FlopCount(counter.flops, tuple(sorted(counter.names)))
