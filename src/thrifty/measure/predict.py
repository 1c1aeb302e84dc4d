"""A loaded worker as a predictor: the parent holds the data and judges, the worker only answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from thrifty.errors import ThriftyError
from thrifty.measure.process import Worker

if TYPE_CHECKING:
    from torch import Tensor


class PredictionError(ThriftyError):
    """An engine's outputs do not belong to the examples that it was given."""


def predictor(worker: Worker, batch: int | None = None) -> Callable[[tuple[Any, ...]], Any]:
    """A function from n examples to the worker's outputs for them.

    Args:
        worker: loaded.
        batch: examples that the engine takes in a call; the last call is padded with its last example. None: all
            at once, where the engine takes any number.

    Returns:
        inputs (a tuple of tensors or arrays, [n, ...] each) -> a tensor [n, ...], or a tuple of them where
        the engine has several outputs.

    Raises:
        PredictionError: an output's first dimension is not the batch's.
        WorkerDied, WorkerFailed, WorkerTimeout: from the call.

    >>> from thrifty.measure.sides import CallableSide
    >>> with Worker(CallableSide("thrifty.measure.process:_identity")) as worker:
    ...     _ = worker.load()
    ...     predictor(worker, batch=2)((np.arange(3.0),)).tolist()
    [0.0, 1.0, 2.0]
    """
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be 1 or more but is {batch}")

    def predict(inputs: tuple[Any, ...]) -> Tensor | tuple[Tensor, ...]:
        import torch

        arrays = [_array(x) for x in inputs]
        n = len(arrays[0])
        parts = [
            _call(worker, [x[start : start + size] for x in arrays], size)
            for size in [batch or max(n, 1)]
            for start in range(0, n, size)
        ]
        outputs = tuple(torch.from_numpy(np.concatenate(each)) for each in zip(*parts, strict=True))
        return outputs[0] if len(outputs) == 1 else outputs

    return predict


def _array(x: Any) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else np.asarray(x.detach().cpu().numpy())


def _call(worker: Worker, chunk: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    n = len(chunk[0])
    padded = [np.concatenate([x, np.repeat(x[-1:], size - n, axis=0)]) if n < size else x for x in chunk]
    outputs = worker.run(padded)
    for output in outputs:
        if output.ndim == 0 or len(output) != size:
            raise PredictionError(
                f"the engine was given {size} examples but an output has shape {output.shape}; "
                "outputs must have the examples as their first dimension"
            )
    return [output[:n] for output in outputs]
