"""Several processes that run functions of the tests' files together, over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PROCESS = """
import importlib, json, os, sys, traceback
import torch
import torch.distributed as dist
from thrifty.training.ranks import BOTH, Group

place, index, count, module, timeout = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], float(sys.argv[5])
torch.set_num_threads(1)
if gpus := sys.argv[6] == "gpus":
    torch.cuda.set_device(index)
try:
    with Group(dist.FileStore(f"{place}/meet", count), index, count, timeout=timeout,
               backend=BOTH if gpus else "gloo") as ranks:
        for name in sys.argv[7:]:
            torch.save(getattr(importlib.import_module(module), name)(ranks), f"{place}/{name}.{index}.pt")
except Exception as error:
    traceback.print_exc()
    print(json.dumps([type(error).__name__, str(error)]), flush=True)
    sys.stderr.flush()
    os._exit(0)  # others may be gone: taking the group down would wait for them
"""


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
    command = [sys.executable, "-c", PROCESS, str(place)]
    processes = [subprocess.Popen([*command, str(i), str(count), module, str(timeout),
                                   "gpus" if gpus else "cpus", *names], stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
                 for i in range(count)]
    told: list[list[str] | None] = []
    errors = ""
    for process in processes:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0 or out, err
        errors += err
        told.append(json.loads(out.splitlines()[-1]) if out else None)
    return Together(place, count, told, time.perf_counter() - began, errors)
