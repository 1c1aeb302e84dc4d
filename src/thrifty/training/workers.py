"""Batches made in processes of their own while training goes on, the same whatever their number."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from thrifty.errors import WorkloadError
from thrifty.measure.parent import end_with_parent
from thrifty.target import Machine, cores
from thrifty.workloads.blame import described


@final
class _Batches(Dataset[Any]):
    """A batch an index: (its number, its examples). Each draws from a seed of its own: which worker makes it, and whether
    training was interrupted before it, changes nothing."""

    def __init__(self, make: Callable[[Tensor], Any], seed: int) -> None:
        self.make, self.seed = make, seed

    def __getitem__(self, key: Any) -> tuple[Any, str]:
        number, chosen = key
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            return self.make(chosen), ""
        except Exception as error:  # its trace would be lost on the way, and its type may not be known there
            return None, described(error)


def in_workers(make: Callable[[Tensor], Any], chosen: Iterator[Tensor], first: int, workers: int, seed: int) -> Iterator[Any]:
    """Batches in order, made ahead of their use.

    Args:
        make: the examples' indices -> a batch.
        chosen: indices of each batch.
        first: number of the first batch.
        workers: processes, one thread each.
        seed: of what the making draws.

    Raises:
        WorkloadError: an example cannot be made; says why.
    """
    keys = enumerate(chosen, first)
    loader = DataLoader(_Batches(make, seed), batch_size=None, sampler=keys,  # type: ignore[arg-type]
                        num_workers=workers, multiprocessing_context="fork", worker_init_fn=_alone,
                        generator=torch.Generator())  # torch's own goes on as if there were no workers
    for batch, why in loader:
        if why:
            raise WorkloadError(f"making a batch of the train set raised {why}")
        yield batch


def _alone(worker: int) -> None:
    end_with_parent()


def crowded(workers: int, machine: Machine) -> str | None:
    """What to say where the processes and threads of a training are more than the processors; None where they are not.

    >>> crowded(0, Machine()) is None, "loader_workers" in (crowded(10_000, Machine()) or "")
    (True, True)
    """
    threads = 1 if machine.device == "cuda" else machine.threads or max(1, cores() // machine.ranks)
    if not workers or machine.ranks * (threads + workers) <= cores():
        return None
    ranks = f", in each of {machine.ranks} ranks," if machine.ranks > 1 else ""
    return (f"training takes {threads} threads and {workers} loader workers{ranks} but there are {cores()} processors: they wait "
            "for one another; lower loader_workers of the Workload, or give fewer --training-threads")
