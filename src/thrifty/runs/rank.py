"""One rank of a training, in its own process: it meets the others, agrees with them, and takes its part."""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from thrifty.errors import ThriftyError
from thrifty.measure.environment import VERSION
from thrifty.recipes.ranks import Ranks
from thrifty.runs.context import Tell
from thrifty.runs.job import Task
from thrifty.runs.phase import take
from thrifty.training.ranks import BOTH, TIMEOUT, Group
from thrifty.workloads.fingerprint import fingerprint
from thrifty.workloads.loading import load_workload

_MEETING = timedelta(minutes=5)


def take_as_rank(task: Task, rank: dict[str, Any], tell: Tell) -> None:
    """Take a rank's part of a training phase.

    Args:
        task: the phase, the same for all ranks.
        rank: index, count, local (its number on this machine), host and port of the store, attempt.
        tell: hears of steps and charges; of the first rank alone something is heard.

    Raises:
        ThriftyError: ranks disagree; says on what, and which.
        RankFailed: another rank failed.
    """
    device = task.job.machine.device
    if device == "cuda":
        if rank["local"] >= torch.cuda.device_count():
            raise ThriftyError(f"rank {rank['index']} is number {rank['local'] + 1} on its machine, but torch sees "
                               f"{torch.cuda.device_count()} GPUs there: start as many ranks as there are GPUs")
        torch.cuda.set_device(rank["local"])
    store = dist.TCPStore(rank["host"], rank["port"], None, is_master=False, timeout=_MEETING)
    meeting = dist.PrefixStore(f"ranks/{rank['attempt']}", store)
    with Group(meeting, rank["index"], rank["count"], backend=BOTH if device == "cuda" else "gloo",
               timeout=float(os.environ.get("THRIFTY_RANKS_TIMEOUT") or TIMEOUT)) as ranks:
        require_agreement(ranks, facts(task))
        take(task, tell if rank["index"] == 0 else _nothing, ranks)


def facts(task: Task) -> dict[str, str]:
    """What all ranks must have alike."""
    here = fingerprint(load_workload(task.job.workload))
    return {"version of thrifty": VERSION, "version of torch": str(torch.__version__), "recipe": task.job.recipe,
            "workload and its data": here, "task": hashlib.sha256(repr(task).encode()).hexdigest()}


def require_agreement(ranks: Ranks, own: dict[str, str]) -> None:
    """Compare what ranks must have alike, before anything is trained.

    Raises:
        ThriftyError: they differ; says in what, and which ranks.
    """
    of_all = ranks.gather(own)
    for what, first in of_all[0].items():
        others = [index for index, found in enumerate(of_all) if found.get(what) != first]
        if others:
            which = f"ranks {', '.join(map(str, others))} have" if len(others) > 1 else f"rank {others[0]} has"
            raise ThriftyError(f"ranks disagree on the {what}: rank 0 has {first[:60]}, {which} "
                               f"{of_all[others[0]].get(what, 'none')[:60]}; give all machines the same code, files and versions")


def _nothing(event: Any) -> None:
    """What the first rank tells is told already."""
