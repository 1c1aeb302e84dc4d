"""The documentation: every code block, executed in the order of its page; every method's card, compared with the method.

A block of `console` shows commands after `$ ` and what they print; `...` stands for anything. A block of `bash` whose first
line is a comment such as `# takes minutes` is not executed: it says so to the reader, and its commands are only checked.
"""

from __future__ import annotations

import dataclasses
import doctest
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import commands
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.method import Method
from thrifty.recipes.registry import BUILT_IN, method_class

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SLOW = {f"docs/how-to/{name}.md" for name in (
    "explore", "generate-text", "hugging-face", "load-without-thrifty", "read-the-page", "segmentation", "tabular-regression",
    "time-series", "train-on-several-processes", "tune-optimizers", "verify-an-artifact")} | {
    f"docs/methods/{name}.md" for name in ("adamw8bit", "inductor", "quantize", "tvm", "xla")}
"""Pages that take long: `make test-all` runs them. The tutorial is in `make test`."""
MARK = re.compile(r"# (takes (a|two|five|an)? ?(minutes?|hours?)|serves until Ctrl-C|needs .+)")
"""The first line of a `bash` block that is not executed, and why."""
THE_TUTORIALS = "`study/` here\nis [the tutorial's]", "`study/` here is\n[the tutorial's]", "`study/` here is [the tutorial's]"
DRY = {"run", "sweep", "explore", "tune", "orders"}
HELPED = {"bench", "best", "check", "plan", "serve", "show", "report", "tag", "note"}
"""Verbs that have no dry run: where a block is marked, --help says whether their options are there."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its attributes, its text and the line where it begins."""

    language: str
    attributes: dict[str, str]
    text: str
    line: int

    @property
    def marked(self) -> bool:
        """Whether its commands are checked and not executed."""
        return self.language == "bash" and MARK.fullmatch(self.text.partition("\n")[0]) is not None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in re.finditer(r"^```(\w+)([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        attributes = dict(pair.split("=", 1) for pair in found[2].split())
        yield Block(found[1], attributes, found[3], text.count("\n", 0, found.start()) + 1)


@pytest.fixture(scope="session")
def tutorial_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trials of the tutorial's workload, screened: what pages that begin after the tutorial take up."""
    place = tmp_path_factory.mktemp("tutorial")
    shutil.copy(ROOT / "examples" / "rows.py", place)
    trained = "train(adamw(lr=1e-2), epochs=3)"
    for recipe in (f"{trained} | quantize(w8a8) | compile(onnxruntime)", f"{trained} | compile(onnxruntime)"):
        done = thrifty(["run", "rows.py", recipe, "--pairs", "1", "--study", "study"], place)
        assert done.returncode == 0, done.stdout + done.stderr
    return place / "study"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [
    pytest.param(page, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
    for page in PAGES for name in [str(page.relative_to(ROOT))]])
def test_every_code_block_works(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(tmp_path)
    if any(words in page.read_text() for words in THE_TUTORIALS):
        shutil.copytree(request.getfixturevalue("tutorial_study"), tmp_path / "study")
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(page):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        if block.language == "python":
            # As many lines before it as in the page: a traceback names the page's line.
            code = compile("\n" * block.line + block.text, str(page), "exec")
            if name := block.attributes.get("file"):
                (tmp_path / name).write_text(block.text)
            else:
                exec(code, namespace)
        elif block.language == "bash":
            for command in block.text.splitlines():
                if words := shlex.split(command, comments=True):
                    assert "thrifty" in words, f"{where}: only thrifty's commands can be executed"
                    assert_works(words[words.index("thrifty") + 1:], tmp_path, block.marked, where)
        elif block.language == "console":
            for command, expected in dialogue(block.text):
                assert_prints(command, expected, tmp_path, where)
        elif block.language == "json":
            json.loads(block.text)
        else:
            raise AssertionError(f"{where}: nobody executes {block.language}; indent it by four spaces")


def thrifty(words: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    return commands.thrifty(words, place, {**os.environ, "COLUMNS": "200", "TERM": "dumb", "PYTHONPATH": str(ROOT / "src")})


def assert_works(words: list[str], place: Path, marked: bool, where: str) -> None:
    """The command ends with exit code 0; where its block is marked, it is well-formed."""
    if marked and words[0] in DRY:
        words = [*words, "--dry-run"] if place_of_examples(words, place) else [words[0], "--help"]
    elif marked and words[0] in HELPED:
        words = [words[0], "--help"]
    done = thrifty(words, place)
    missing = "is not installed: pip install" in done.stderr  # an extra's; all that is read before was accepted
    assert done.returncode == 0 or missing, f"{where}: thrifty {shlex.join(words)}\n{done.stdout}{done.stderr}"


def place_of_examples(words: list[str], place: Path) -> bool:
    """Whether the workload is there: embedded, or a file or folder that the page wrote."""
    return not words[1].startswith("./") or (place / words[1]).exists()


def dialogue(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a block of `console`, each with what it prints."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        yield command, expected


def assert_prints(command: str, expected: str, place: Path, where: str) -> None:
    words = shlex.split(command)
    assert words[0] == "thrifty", f"{where}: only thrifty's commands can be executed"
    done = thrifty(words[1:], place)
    loosely = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    agrees = doctest.OutputChecker().check_output(expected, done.stdout + done.stderr, loosely)
    assert agrees, f"{where}: {command}\nprints\n{done.stdout}{done.stderr}\nand not\n{expected}"


def test_what_is_not_executed_says_why() -> None:
    """A comment on a block's first line is one of the reasons, so that no spelling of one goes unseen."""
    for page in PAGES:
        for block in blocks(page):
            first = block.text.partition("\n")[0]
            if block.language == "bash" and first.startswith("#"):
                assert block.marked, f"{page.relative_to(ROOT)}:{block.line}: {first!r} is no reason of MARK"


def test_an_output_that_differs_is_seen(tmp_path: Path) -> None:
    assert_prints("thrifty methods nonesuch", "thrifty: ...nonesuch...", tmp_path, "here")
    with pytest.raises(AssertionError, match="and not"):
        assert_prints("thrifty methods nonesuch", "adamw...", tmp_path, "here")


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


def test_the_tutorials_workload_is_the_example() -> None:
    (block,) = [b for b in blocks(ROOT / "docs" / "tutorial.md") if b.attributes.get("file") == "rows.py"]
    assert (ROOT / "examples" / "rows.py").read_text().endswith(block.text)
