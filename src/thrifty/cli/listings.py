"""The verbs that list what is here: workloads, methods, compilers, the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from thrifty.cli.options import DONE, FAILED, JsonOption
from thrifty.cli.output import emit


def workloads(as_json: JsonOption = False) -> None:
    """List the embedded workloads.

    Example: thrifty workloads --json
    """
    from thrifty.report import listing
    from thrifty.workloads.embedded import EMBEDDED

    if as_json:
        emit([{"name": name, "description": entry.description, "extra": entry.extra}
              for name, entry in EMBEDDED.items()])
    else:
        listing.print_workloads(EMBEDDED)


def methods(name: Annotated[str | None, typer.Argument(help="Show one method's card.")] = None,
            as_json: JsonOption = False) -> None:
    """List the methods, or show one's card: hyperparameters, what it needs, what it costs.

    Example: thrifty methods prune
    """
    from thrifty.recipes.registry import method_class, names
    from thrifty.report import listing

    chosen = [method_class(each) for each in ([name] if name else names())]
    if as_json:
        rows = [listing.method_json(cls) for cls in chosen]
        emit(rows[0] if name else [{key: row[key] for key in (
            "name", "family", "phase", "benefit", "trade_off", "paper")} for row in rows])
    elif name:
        listing.print_method(chosen[0])
    else:
        listing.print_methods(chosen)


def compilers(check: Annotated[bool, typer.Option("--check", help="Have each compile a tiny net; a minute.")] = False,
              as_json: JsonOption = False) -> None:
    """List the compilers: what is installed, what each serves, what to install, and whether it really works.

    Example: thrifty compilers --check
    """
    from thrifty.compilers.availability import available
    from thrifty.report.artifacts import print_compilers

    found = available(check)
    emit([each.to_json() for each in found]) if as_json else print_compilers(found)
    raise typer.Exit(FAILED if any(each.tried is not None and not each.tried.works for each in found) else DONE)


def cache(clean: Annotated[bool, typer.Option("--clean", help="Remove what exceeds the quota, oldest first.")] = False,
          everything: Annotated[bool, typer.Option("--all", help="With --clean: remove all.")] = False,
          as_json: JsonOption = False) -> None:
    """Show the cache's size and quota, or clean it.

    Example: thrifty cache --clean
    """
    from thrifty.report import listing
    from thrifty.runs import cache as kept

    removed = kept.clean(everything=everything) if clean else None
    usage = kept.usage()
    emit(listing.cache_json(usage, removed)) if as_json else listing.print_cache(usage, removed)
