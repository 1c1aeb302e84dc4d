"""Commands as tests run them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess

from tests.forks import Fork


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
    return Fork(_command, list(words), cwd=cwd, env=env).wait(timeout)


def _command(words: list[str]) -> None:
    from thrifty.__main__ import main

    sys.argv[:] = ["thrifty", *words]
    sys.path[0] = ""
    main()
