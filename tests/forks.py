"""Processes that start in milliseconds: forks of one that has imported the product and done nothing else.

A fork is as fresh as a process that was started, some seconds sooner. That commands and ranks start from nothing too is shown by
`tests/cli/test_app.py` and `tests/runs/test_ranks.py`.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import Any

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["thrifty.cli.app", "thrifty.runs.runner", "thrifty.report.terminal", "thrifty.search.explore",
                                "thrifty.testing", "torch.distributed.tensor"])


class Fork:
    """A function at the top of its module, in a process of its own, with its output in files.

    Args:
        function: what runs.
        arguments: of it, that can be pickled.
        cwd: where it runs; here by default.
        env: all of its environment; this process's by default.
    """

    def __init__(self, function: Callable[..., None], *arguments: Any, cwd: Path | None = None,
                 env: Mapping[str, str] | None = None) -> None:
        self._name = function.__qualname__
        self._place = tempfile.TemporaryDirectory(prefix="thrifty-fork-")
        self._process = _SERVER.Process(target=_run, args=(
            function, arguments, str(cwd or Path.cwd()), dict(os.environ if env is None else env), self._place.name))
        self._process.start()

    def wait(self, timeout: float | None = None) -> CompletedProcess[str]:
        """What it exited with and printed.

        Raises:
            TimeoutExpired: it had not ended after so many seconds, and was killed.
        """
        self._process.join(timeout)
        late = self._process.exitcode is None
        if late:
            self._process.kill()
            self._process.join()
        with self._place as place:
            out, err = (Path(place, name).read_text() if Path(place, name).is_file() else "" for name in ("out", "err"))
        if late:
            raise TimeoutExpired(self._name, timeout or 0.0, out, err)
        return CompletedProcess(self._name, self._process.exitcode or 0, out, err)


def _run(function: Callable[..., None], arguments: tuple[Any, ...], cwd: str, env: dict[str, str], place: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(place, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdin = os.fdopen(os.dup(0))
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    code = 1
    try:
        function(*arguments)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves without
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
