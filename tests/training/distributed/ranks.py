"""Several processes that run functions of the tests' files together, over gloo."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.forks import Fork
from thrifty.training.ranks import BOTH, Group


def _rank(place: str, index: int, count: int, module: str, timeout: float, gpus: bool, names: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    if gpus:
        torch.cuda.set_device(index)
    try:
        with Group(dist.FileStore(f"{place}/meet", count), index, count, timeout=timeout,
                   backend=BOTH if gpus else "gloo") as ranks:
            for name in names:
                torch.save(getattr(importlib.import_module(module), name)(ranks), f"{place}/{name}.{index}.pt")
    except Exception as error:
        traceback.print_exc()
        print(json.dumps([type(error).__name__, str(error)]), flush=True)
        sys.stderr.flush()
        os._exit(0)  # others may be gone: taking the group down would wait for them


@dataclass(frozen=True)
class Together:
    """What ranks did: what each failed with, or None; seconds; what each function gave on each rank."""

    place: Path
    count: int
    failures: list[list[str] | None]
    seconds: float
    stderr: str

    def found(self, name: str) -> list[Any]:
        assert self.failures == [None] * self.count, f"{self.failures}\n{self.stderr}"
        return [torch.load(self.place / f"{name}.{i}.pt", weights_only=False) for i in range(self.count)]


def together(place: Path, count: int, module: str, *names: str, timeout: float = 60.0, gpus: bool = False) -> Together:
    """Run functions of a module, one after the other, in so many ranks, each on a GPU of its own where that is asked for."""
    began = time.perf_counter()
    forks = [Fork(_rank, str(place), i, count, module, timeout, gpus, names, env={**os.environ, "OMP_NUM_THREADS": "1"})
             for i in range(count)]
    told: list[list[str] | None] = []
    errors = ""
    for fork in forks:
        done = fork.wait(600)
        assert done.returncode == 0 or done.stdout, done.stderr
        errors += done.stderr
        told.append(json.loads(done.stdout.splitlines()[-1]) if done.stdout else None)
    return Together(place, count, told, time.perf_counter() - began, errors)
