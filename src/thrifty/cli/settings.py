"""What every verb takes: how much is said, and settings from TOML files, which flags win over."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, final, get_type_hints

import typer

from thrifty.cli.output import SETTINGS, hint, told_how_to_go_on
from thrifty.errors import ThriftyError, in_one_line
from thrifty.report.verbosity import Verbosity
from thrifty.report.words import literal
from thrifty.units import plainly
from thrifty.workloads.blame import DEBUG

FILE, PROJECT = "thrifty.toml", "pyproject.toml"
"""Read in the current directory where no --config is given: the whole of one, [tool.thrifty] of the other."""
FLAGS_ALONE = frozenset({"trust_native_code"})
"""Parameters that no file sets: what lets machine code run is said by who runs it."""

Tables = dict[str, dict[str, Any]]
"""{verb: {parameter: value}}."""


# -- files --------------------------------------------------------------------------------------------------------


@final
class SettingsError(ThriftyError):
    """A file of settings that cannot be read, or that sets what is not there."""


def tables(verbs: Mapping[str, Any], config: Path | None = None) -> tuple[Tables, tuple[Path, ...]]:
    """The settings of every verb, and the files that they come from.

    Args:
        verbs: {name: its command}.
        config: the file to read; thrifty.toml and pyproject.toml of the current directory where None, in which order they win.

    Raises:
        SettingsError: a file cannot be read, or names a verb or an option that there is not.
    """
    if config is not None and not config.is_file():
        raise SettingsError(f"there is no file {config} to read settings from")
    found: Tables = {}
    files: list[Path] = []
    for path in (Path(PROJECT), Path(FILE)) if config is None else (config,):
        if not path.is_file():
            continue
        document = _read(path)
        if path.name == PROJECT:
            document = document.get("tool", {}).get("thrifty")
        if document is None:
            continue
        files.append(path)
        for verb, given in _checked(document, path, verbs):
            found.setdefault(verb, {}).update(given)
    return found, tuple(files)


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path} cannot be read as TOML: {in_one_line(error)}") from error


def _checked(document: Any, path: Path, verbs: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(document, Mapping):
        raise SettingsError(f"{path}: tool.thrifty must be a table with a table for each verb")
    for verb, given in document.items():
        if verb not in verbs:
            raise SettingsError(f"{path} sets [{literal(verb)}], but there is no such verb{_near(verb, verbs)}")
        if not isinstance(given, Mapping):
            raise SettingsError(f"{path}: {verb} must be a table of that verb's options, such as [{verb}]")
        known = {key: each for each in verbs[verb].params for key in _keys(each)}
        yield verb, {known[key].name: _value(value, f"{path}: {verb}.{key}") for key, value in given.items()
                     if _settable(key, known, f"{path}: [{verb}]", verb)}


def _settable(key: str, known: Mapping[str, Any], where: str, verb: str) -> bool:
    key = key.replace("_", "-")
    if key not in known:
        raise SettingsError(f"{where} sets {literal(key)}, but {verb} has no such option{_near(key, known)}")
    if known[key].name in FLAGS_ALONE:
        raise SettingsError(f"{where} sets {key}, which only a flag can set: pass --{key} on the command line")
    return True


def _keys(parameter: Any) -> list[str]:
    """What a file calls a parameter: its long flag's words, or an argument's name."""
    if parameter.name in _EVERYWHERE or parameter.nargs == -1:
        return []
    return [flag[2:] for flag in parameter.opts if flag.startswith("--")] or [parameter.name.replace("_", "-")]


def _value(value: Any, where: str) -> Any:
    if isinstance(value, str | bool | int | float) or (isinstance(value, list) and all(isinstance(x, str) for x in value)):
        return value
    raise SettingsError(f"{where} must be a string, a number, true, false, or a list of strings")


def _near(word: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    return f"; the nearest is {near[0]!r}" if near else ""


# -- the command line ---------------------------------------------------------------------------------------------


def _configured(context: typer.Context, value: Path | None) -> Path | None:
    """Before other options are read, as their values may come from the file."""
    if value is not None:
        root = context.find_root()
        found, context.meta[FILE] = tables(root.command.commands, value)  # type: ignore[attr-defined]
        context.default_map = found if context is root else found.get(context.info_name or "", {})
    return value


_PANEL = "Global options"
VerboseOption = Annotated[bool, typer.Option(
    "--verbose", "-v", help="Print more: what each phase took, names of operators.", rich_help_panel=_PANEL)]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only results and errors.", rich_help_panel=_PANEL)]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show full tracebacks of errors.", rich_help_panel=_PANEL)]
ConfigOption = Annotated[Path | None, typer.Option(
    "--config", metavar="FILE", is_eager=True, callback=_configured, rich_help_panel=_PANEL,
    help=f"Settings in TOML, a table for each verb; {FILE} and tool.thrifty of {PROJECT} by default.")]
_EVERYWHERE = {"verbose": VerboseOption, "quiet": QuietOption, "debug": DebugOption, "config": ConfigOption}
"""The options that stand before a verb or after it."""


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"thrifty {version('thrifty')}")
        raise typer.Exit


def settings(context: typer.Context,
             version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version,
                                                   help="Print the version.", rich_help_panel=_PANEL)] = False,
             verbose: VerboseOption = False, quiet: QuietOption = False, debug: DebugOption = False,
             config: ConfigOption = None) -> None:
    """What stands before the verb."""
    _ask(verbose, quiet, debug)
    if config is None:
        context.default_map, context.meta[FILE] = tables(context.command.commands)  # type: ignore[attr-defined]


def configured(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb that takes the global options too, says which of its settings come from a file, and after Ctrl-C how to go on."""

    @functools.wraps(verb)
    def with_settings(context: typer.Context, verbose: bool, quiet: bool, debug: bool, config: Path | None, **given: Any) -> None:
        _ask(verbose, quiet, debug)
        before = SETTINGS.set(_from_files(context))
        try:
            verb(**given)
        except KeyboardInterrupt:
            raise typer.Exit(told_how_to_go_on(context.info_name)) from None
        finally:
            SETTINGS.reset(before)

    signature, hints = inspect.signature(verb), get_type_hints(verb, include_extras=True)
    taken = {"context": (typer.Context, inspect.Parameter.empty),
             **{name: (hints[name], parameter.default) for name, parameter in signature.parameters.items()},
             **{name: (hint, None if name == "config" else False) for name, hint in _EVERYWHERE.items()}}
    with_settings.__signature__ = signature.replace(parameters=[  # type: ignore[attr-defined]
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        for name, (hint, default) in taken.items()])
    with_settings.__annotations__ = {name: hint for name, (hint, _) in taken.items()}
    return with_settings


def _ask(verbose: bool, quiet: bool, debug: bool) -> None:
    if verbose or quiet:
        (Verbosity.verbose if verbose else Verbosity.quiet).ask()
    if debug:
        os.environ[DEBUG] = "1"  # processes that are started hear of it too
        warnings.simplefilter("default")


def _from_files(context: typer.Context) -> dict[str, Any] | None:
    """The settings that come from files; it is said which, as that explains what nobody typed."""
    given = {key: context.params[parameter.name] for parameter in context.command.params for key in _keys(parameter)[:1]
             if getattr(context.get_parameter_source(parameter.name), "name", "") == "DEFAULT_MAP"}
    files = [str(path) for path in context.meta.get(FILE, ())]
    if not given:
        return None
    values = {key: plainly(value) for key, value in given.items()}
    hint(f"thrifty: settings from {' and '.join(files)}: {', '.join(f'{key} {literal(value)}' for key, value in values.items())}")
    return {"files": files, "values": values}
