"""Commands as tests run them: forks of one process that has imported the command line, so that each starts in milliseconds.

A fork has done nothing but import: it is as fresh as a process that was started, three seconds sooner. That a command starts
from nothing too is shown by `tests/cli/test_app.py`.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["thrifty.cli.app", "thrifty.runs.runner", "thrifty.report.terminal", "thrifty.search.explore"])


def thrifty(words: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None,
            timeout: float | None = None) -> CompletedProcess[str]:
    """``thrifty WORDS``, with what it printed.

    Args:
        words: of the command line.
        cwd: where it runs.
        env: all of its environment.
        timeout: seconds after which it is killed.

    Raises:
        TimeoutExpired: it was.
    """
    with tempfile.TemporaryDirectory(prefix="thrifty-command-") as place:
        out, err = Path(place, "out"), Path(place, "err")
        environment = dict(os.environ if env is None else env)
        process = _SERVER.Process(target=_run, args=(list(words), str(cwd or Path.cwd()), environment, str(out), str(err)))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutExpired(list(words), timeout or 0.0, out.read_text(), err.read_text())
        return CompletedProcess(list(words), process.exitcode, out.read_text(), err.read_text())


def _run(words: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdin = os.fdopen(os.dup(0))
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    sys.argv[:] = ["thrifty", *words]
    sys.path[0] = ""
    code = 1
    try:
        from thrifty.__main__ import main

        main()
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
