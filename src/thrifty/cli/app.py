"""The command line: every verb is one function of the Python API with its arguments read and its result shown."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from thrifty.cli import artifacts, conversion, listings, recipes, studies
from thrifty.cli.options import DONE, FAILED, USAGE
from thrifty.cli.output import told_how_to_go_on
from thrifty.cli.settings import configured, settings
from thrifty.errors import RunFailed, ThriftyError
from thrifty.measure import command
from thrifty.report.words import shortened
from thrifty.workloads.blame import ExitCalled, debugging, described, ending_refused, leave, where

app = typer.Typer(
    name="thrifty", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the efficiency frontier of a PyTorch model: what each method costs in training and gains in serving.",
)

VERBS: tuple[Callable[..., None], ...] = (
    listings.workloads, listings.methods, listings.compilers, recipes.check, recipes.plan, recipes.run, recipes.sweep,
    recipes.orders, recipes.explore, recipes.tune, studies.best, artifacts.bench, artifacts.verify, artifacts.serve,
    studies.show, studies.report, studies.tag, studies.note, conversion.quantize, conversion.export, listings.cache,
)
"""In the order of ``thrifty --help``."""
app.callback()(settings)
for verb in VERBS:
    app.command()(configured(verb))


def main() -> NoReturn:
    """Run the command line: 0 done, 1 the run failed, 2 usage, 3 keep the model as it is."""
    command.begin()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: threads that spin take the time of what else runs
    if not debugging():
        warnings.simplefilter("ignore")  # of libraries: what Thrifty has to say it says itself
    code = guarded(_among_ranks)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    atexit._run_exitfuncs()
    leave(code)  # tearing torch down takes a third of a second, seconds on a busy machine, and serves nobody


def _among_ranks() -> None:
    """The first process of torchrun does what it was told; the others take their parts of its trainings."""
    if int(os.environ.get("WORLD_SIZE") or 1) <= 1:  # nothing of ranks is imported where there are none
        app()
        return
    from thrifty.runs.ranks import Elastic, follow, leading

    here = Elastic.here()
    if here is None:
        app()
    elif here.index:
        raise SystemExit(follow(here))
    else:
        with leading(here):
            app()


def guarded(verb: Callable[..., Any]) -> int:
    """Turn every error that is meant for the user into one message and an exit code."""
    try:
        if not here():
            raise ThriftyError("the current directory was deleted: change to one that exists")
        with ending_refused():
            verb()
    except RunFailed as error:
        _tell(str(error))
        return FAILED
    except ThriftyError as error:
        _tell(str(error))
        return USAGE
    except OSError as error:
        full = "; free some space: thrifty cache --clean frees what the cache holds" if error.errno == errno.ENOSPC else ""
        _tell(f"{error}{full}. What was measured is kept")
        return FAILED
    except KeyboardInterrupt:
        return told_how_to_go_on(None)  # before the verb began
    except SystemExit as leave:
        if isinstance(leave, ExitCalled) or where(leave):  # of the workload's code: all is not well
            _tell(f"{described(leave)}: the workload's code ended the process")
            return FAILED
        return leave.code if isinstance(leave.code, int) else FAILED
    except BaseException as error:
        _tell(f"{described(error)}; for the full traceback: thrifty --debug ...")
        return FAILED
    return DONE


def here() -> bool:
    """Whether the current directory is still there; libraries end the process where it is not."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _tell(message: str) -> None:
    if debugging():
        traceback.print_exc()
    print(f"thrifty: {shortened(message)}", file=sys.stderr)
