"""The process of a run, started anew or forked: it reads a job, or one phase of one, and tells what happens.

A crash or an out-of-memory takes nothing else with it, and peak memory is its own. One message is read from stdin; events
and then an answer are written to the descriptor that was stdout, a JSON object a line.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
import traceback
import warnings
from typing import Any

import numpy as np
import torch

from thrifty.errors import ThriftyError
from thrifty.measure.parent import end_with_parent
from thrifty.runs import cache
from thrifty.runs.execution import Execution
from thrifty.runs.job import Job, Task
from thrifty.runs.pace import pace
from thrifty.runs.phase import take
from thrifty.runs.rank import take_as_rank
from thrifty.runs.ranks import gang
from thrifty.studies.events import Charged, Event, to_json
from thrifty.studies.ledger import Charge
from thrifty.studies.serialization import plain, typed
from thrifty.training.ranks import RankFailed
from thrifty.workloads.blame import debugging, described, leave


def preload() -> None:
    """Import what torch itself only imports when a model first runs: a second, once for all forks of a warm process."""
    import torch._dynamo  # noqa: F401


def main() -> int:
    """Read a message, do it, answer."""
    end_with_parent()
    written = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not be mistaken for an event

    def write(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=written, flush=True)

    def tell(event: Event) -> None:
        write(to_json(event))

    message = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    settle(message)
    try:
        tell(Charged(Charge("start", "process", max(0.0, time.time() - message["spawned"]))))
        with cache.session():
            if "pace" in message:
                write({"answer": pace(typed(Job, message["pace"]))})
            elif "rank" in message:
                take_as_rank(typed(Task, message["task"]), message["rank"], tell)
                write({"answer": None})
            elif "task" in message:
                take(typed(Task, message["task"]), tell)
                write({"answer": None})
            else:
                write({"answer": plain(Execution(typed(Job, message["job"]), tell, gang(message.get("restarts", 0))).outcome())})
        return 0
    except ThriftyError as error:
        write({"error": f"{error}{_trace()}", "final": not isinstance(error, RankFailed)})
    except BaseException as error:  # of the user's code, which may leave or raise what is below no Exception
        write({"error": f"{described(error)}{_trace()}"})
    return 1


def settle(message: dict[str, Any]) -> None:
    """Be where and as the parent was when it asked: a fork was begun earlier, and elsewhere."""
    os.environ.clear()
    os.environ.update(message["environment"])
    os.chdir(message["directory"])
    if debugging():
        warnings.simplefilter("default")
    if message["processors"]:
        os.sched_setaffinity(0, message["processors"])
    random.seed()
    np.random.seed()
    torch.set_num_threads(message["threads"])


def _trace() -> str:
    return f"\n{traceback.format_exc()}" if debugging() else ""


def _end_with_stdin() -> None:
    """Leave when the parent's end of stdin closes, however it died: nobody is left to tell.

    It does not read `sys.stdin`: a thread that waits there holds its lock, and a process that is forked meanwhile, such as a
    loader's worker, would wait for it without end.
    """
    while os.read(0, 4096):
        pass
    leave(1)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    leave(code)  # all is told and written: tearing torch down would only make the parent wait
