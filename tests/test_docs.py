"""Every code block of the documentation, executed; every method's card, compared with the method."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from thrifty.recipes.compiler import Compiler
from thrifty.recipes.method import Method
from thrifty.recipes.registry import BUILT_IN, method_class
from thrifty.workloads.checks import check_data, check_example
from thrifty.workloads.loading import load_workload

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
NEED_ARGUMENTS_OF_A_STUDY = {"bench", "best", "serve", "show", "report"}
"""Verbs whose arguments exist only after a real run, or that do not end: their options are checked by --help."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its attributes, its text and the line where it begins."""

    language: str
    attributes: dict[str, str]
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in re.finditer(r"^```(\w+)([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        attributes = dict(pair.split("=", 1) for pair in found[2].split())
        yield Block(found[1], attributes, found[3], text.count("\n", 0, found.start()) + 1)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_code_block_works(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(page):
        if block.language == "python":
            # As many lines before it as in the page: a traceback names the page's line.
            code = compile("\n" * block.line + block.text, str(page), "exec")
            if name := block.attributes.get("file"):
                (tmp_path / name).write_text(block.text)
            else:
                exec(code, namespace)
        elif block.language == "bash":
            for command in block.text.splitlines():
                words = shlex.split(command, comments=True)
                assert words[0] == "thrifty", f"{page.name}:{block.line}: only thrifty's commands can be checked"
                assert_accepted(words[1:])
        elif block.language == "json":
            json.loads(block.text)
        else:
            raise AssertionError(f"{page.name}:{block.line}: nobody executes {block.language}; indent it by four spaces")


def assert_accepted(words: list[str]) -> None:
    """The command is well-formed: nothing long runs."""
    if words[0] in ("run", "sweep", "explore", "tune"):
        words = [*words, "--dry-run"]
    elif words[0] in NEED_ARGUMENTS_OF_A_STUDY:
        words = [words[0], "--help"]
    done = subprocess.run([sys.executable, "-m", "thrifty", *words], capture_output=True, text=True, check=False,
                          env={**os.environ, "COLUMNS": "200", "TERM": "dumb"})
    missing = "is not installed: pip install" in done.stderr  # an extra's; all that is read before was accepted
    assert done.returncode == 0 or missing, f"thrifty {shlex.join(words)}\n{done.stdout}{done.stderr}"


def permitted(spec: dataclasses.Field[Any]) -> str:
    """What a card says of a hyperparameter's values."""
    if "options" in spec.metadata:
        said = ", ".join(f"`{word}`" for word in spec.metadata["options"])
    elif "range" in spec.metadata:
        said = f"{'whole numbers' if str(spec.type).startswith('int') else 'numbers'} in {spec.metadata['range']}"
        said += "".join(f", or `{word}`" for word in spec.metadata["words"])
    elif "recipe" in spec.metadata:
        said = "a recipe's text"
    elif "pattern" in spec.metadata:
        said = "a regular expression"
    elif "sizes" in spec.metadata:
        said = "whole numbers of 1 or more"
    elif "recipes" in spec.metadata:
        said = "recipes' texts"
    elif "read" in spec.metadata:
        said = spec.metadata["permitted"]
    elif "table" in spec.metadata:
        words = ", ".join(f"`{word}`" for word in spec.metadata["table"])
        said = f"patterns, each with {words}" if words else "layers, each with a layer"
    elif "workload" in spec.metadata:
        said = "a workload's reference"
    else:
        said = "`True`, `False`"
    return said + (", or `None`" if "None" in str(spec.type) else "")


def hyperparameter_rows(cls: type[Method]) -> list[str]:
    """The first three columns of the card's table, a row a hyperparameter."""
    rows = []
    for spec in dataclasses.fields(cls):
        default = spec.default if "options" in spec.metadata else repr(spec.default).replace("|", "\\|")  # a table's own bars
        rows.append(f"| `{spec.name}` | `{default}` | {permitted(spec)} |")
    return rows


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_every_method_has_a_card_that_agrees_with_it(name: str) -> None:
    cls, page = method_class(name), ROOT / "docs" / "methods" / f"{name}.md"
    text = page.read_text()
    assert text.startswith(f"# `{f'compile({name})' if issubclass(cls, Compiler) else name}`")
    for heading in ("## When it pays", "## What it costs", "## Hyperparameters", "## Example", "## Source"):
        assert heading in text, f"{page.name} has no {heading!r}"
    assert f"`{cls.card.family}`" in text
    for row in hyperparameter_rows(cls):
        assert row in text, f"{page.name} lacks the row {row}"
    listed = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert listed == [spec.name for spec in dataclasses.fields(cls)]
    assert any(block.language == "python" for block in blocks(page))


def test_the_lists_of_methods_are_those_of_the_registry() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "tables.py", "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nmake tables writes them"


def test_links_between_pages_lead_somewhere() -> None:
    written_by_the_demo = {"frontier.svg"}
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            if "://" not in target and Path(target).name not in written_by_the_demo:
                assert (page.parent / target).is_file(), f"{page.relative_to(ROOT)} links to {target}, which is not there"


def test_what_pages_and_examples_import_is_public() -> None:
    """Blocks that are indented, which nobody executes, among them."""
    examples = [*(ROOT / "examples").rglob("*.py"), *(ROOT / "examples").rglob("*.md")]
    found = {(path, module) for path in [*PAGES, *examples]
             for module in re.findall(r"^ *(?:from|import) (thrifty\.[\w.]+)", path.read_text(), re.MULTILINE)}
    assert not found, sorted(f"{path.name}: {module}" for path, module in found)


def test_the_tree_in_the_readme_is_the_one_that_is_there() -> None:
    """Each folder once, in the order of the layers that the linter holds."""
    section = (ROOT / "README.md").read_text().partition("## The tree")[2].partition("\n## ")[0]
    listed = re.findall(r"^ {6}(\S+)  ", section, re.MULTILINE)
    package = ROOT / "src" / "thrifty"
    there = {f"{path.name}/" if path.is_dir() else path.name for path in package.iterdir()} - {"__pycache__/", "py.typed"}
    assert set(listed) == there and len(listed) == len(there)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    order = [name.strip() for layer in layers for name in layer.split("|")]
    assert [name.removesuffix("/").removesuffix(".py") for name in listed if not name.startswith("__")] == order


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_a_workload_that_works(path: Path) -> None:
    found = load_workload(str(path))
    check_data(found)
    check_example(found, found.model())


def test_the_tutorials_workload_is_the_example() -> None:
    (block,) = [b for b in blocks(ROOT / "docs" / "tutorial.md") if b.attributes.get("file") == "rows.py"]
    assert (ROOT / "examples" / "rows.py").read_text().endswith(block.text)
