"""Batches as nested tensors: moved, cut, parted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thrifty.recipes.ranks import Ranks
from thrifty.workloads.workload import Batch


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest of lists and tuples with every tensor changed; what is no tensor stays."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(mapped(part, change) for part in value) if isinstance(value, list | tuple) else value


def moved(batch: Batch, device: str | torch.device) -> Batch:
    """The batch on a device. What the host holds goes to a GPU by pinned memory, for which nobody waits."""
    def there(x: Tensor) -> Tensor:
        return x.pin_memory().to(device, non_blocking=True) if cuda and x.device.type == "cpu" else x.to(device)

    cuda, (inputs, target) = torch.device(device).type == "cuda", batch
    return tuple(map(there, inputs)), mapped(target, there)


def micro_batches(batch: Batch, count: int) -> list[Batch]:
    """A batch in at most so many parts of nearly equal size.

    >>> [len(inputs[0]) for inputs, _ in micro_batches(((torch.zeros(7, 2),), torch.zeros(7)), 3)]
    [3, 2, 2]
    """
    count = min(count, len(batch[0][0]))
    if count == 1:
        return [batch]

    def part(i: int) -> Batch:
        return mapped(batch, lambda x: x.tensor_split(count)[i])  # type: ignore[no-any-return]

    return [part(i) for i in range(count)]


def own(batch: Batch, ranks: Ranks) -> Batch:
    """This rank's part of a batch, the parts of all ranks being nearly equal in size."""
    if ranks.count == 1:
        return batch
    return mapped(batch, lambda x: x.tensor_split(ranks.count)[ranks.index])  # type: ignore[no-any-return]
