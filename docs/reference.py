"""Writes docs/reference/python.md and docs/reference/cli.md, from the public names and from the command line itself.

    python docs/reference.py            # rewrites them
    python docs/reference.py --check    # names those that are stale; the exit code is then 1
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import typer

import thrifty

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "reference"
TYPES = {
    "Stage": "What a training method touches, which sets its place in a training: structure, numerics, ..., optimizer.",
    "Event": "What a run, a search or a measurement reports: a phase began, a step, a charge, a trial ended, ...",
    "Listener": "A function that is called with each `Event`.",
}
"""Public names that are types without a docstring of their own."""
WRITTEN = "<!-- Written by docs/reference.py: run `make tables`. -->"


def groups() -> dict[str, list[str]]:
    """The public names under the comments that head them in ``thrifty/__init__.py``."""
    found: dict[str, list[str]] = {}
    table = Path(thrifty.__file__).read_text().partition("_NAMES = {")[2].partition("\n}")[0]
    for line in table.splitlines():
        text = line.strip()
        if text.startswith("#"):
            names = found.setdefault(text.removeprefix("# "), [])
        elif text:
            names += text.split('"')[3].split()
    return found


def first_sentence(value: Any) -> str:
    """The first paragraph of a docstring of ours, in one line; empty for a bare type."""
    module = getattr(value, "__module__", "")
    if not str(module).startswith("thrifty"):
        return ""
    paragraph = (inspect.getdoc(value) or "").partition("\n\n")[0]
    return re.sub(r"``([^`]+)``", r"`\1`", " ".join(paragraph.split())).replace("|", "\\|")


def python_page() -> str:
    """Every public name with the first paragraph of its docstring; the site adds the rest, by docs/build.py."""
    parts = ["# Python API", WRITTEN,
             "Everything here is imported from `thrifty`; other modules are not public. `help(thrifty.run)` prints arguments,\n"
             "what is returned and raised, and an example. The rendered site (`make docs`) shows the same under each name."]
    for heading, names in groups().items():
        rows = [f"| `{name}` | {TYPES.get(name) or first_sentence(getattr(thrifty, name))} |" for name in names]
        parts += [f"## {heading[0].upper()}{heading[1:]}", "\n".join(["| name | what it is |", "| --- | --- |", *rows])]
    return "\n\n".join(parts) + "\n"


def text_of(words: str | None) -> str:
    """A help text as Markdown, for the cell of a table."""
    return " ".join((words or "").split()).replace("|", "\\|").replace("<", "&lt;")


def default_of(option: Any) -> str:
    """The default of an option, as one types it; empty for flags that are off and options that have none."""
    value = getattr(option.default, "value", option.default)
    return "required" if option.required else "" if value is None or value is False or value == () else f"`{value}`"


def options_table(options: list[Any]) -> str:
    rows = []
    for option in options:
        names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
        rows.append(f"| {names} | {default_of(option)} | {text_of(option.help)} |")
    return "\n".join(["| option | default | what it does |", "| --- | --- | --- |", *rows])


def shown(argument: Any) -> str:
    """An argument's name in the usage line."""
    return re.sub(r"[\[\]]", "", str(argument.metavar or argument.name.upper()))


def verb_section(name: str, verb: Any) -> list[str]:
    """What ``thrifty VERB --help`` says."""
    arguments = [param for param in verb.params if param.param_type_name == "argument"]
    options = [param for param in verb.params if param.param_type_name == "option" and not param.hidden]
    said, _, example = inspect.cleandoc(verb.help).partition("Example: ")
    places = [shown(param) if param.required else f"[{shown(param)}]" for param in arguments]
    usage = " ".join(["thrifty", name, *places, "[OPTIONS]"])
    parts = [f"## `thrifty {name}`", said.strip(), f"    {usage}"]
    if example:
        parts += ["For example:", "\n".join(f"    {line.strip()}" for line in example.strip().splitlines())]
    parts += ["\n".join(f"- `{shown(param)}`: {text_of(param.help)}" for param in arguments)]
    return [part for part in [*parts, options_table(options) if options else ""] if part]


def cli_page() -> str:
    """Every verb with its arguments and options."""
    from thrifty.cli.app import app

    command: Any = typer.main.get_command(app)
    parts = ["# Command line", WRITTEN,
             "What `thrifty --help` and `thrifty VERB --help` print. `python -m thrifty` is the same program. What `--json`\n"
             "prints and the exit codes are in [JSON](json.md)."]
    if command.params:
        parts += ["Before the verb:", options_table(command.params)]
    for name, verb in command.commands.items():
        parts += verb_section(name, verb)
    return "\n\n".join(parts) + "\n"


PAGES = {"python.md": python_page, "cli.md": cli_page}


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the reference of the Python API and of the command line.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a page is stale")
    check, stale = parser.parse_args().check, False
    for name, make in PAGES.items():
        path, fresh = OUT / name, make()
        if path.is_file() and path.read_text() == fresh:
            continue
        stale = True
        if check:
            print(f"docs/reference/{name} is stale: run python docs/reference.py")
        else:
            path.write_text(fresh)
            print(f"wrote docs/reference/{name}")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
