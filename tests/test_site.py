"""The site: built strictly, whole, and showing every public name; pages that are written from the code are as the code is."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import thrifty
from tests import commands

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "thrifty"
REFERENCE = ROOT / "docs" / "reference"

pytest.importorskip("zensical", reason="the group docs is not installed: make docs installs it")


def script(name: str) -> ModuleType:
    """A script of docs/, as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built apart from the tree's own."""
    build = script("build")
    place = tmp_path_factory.mktemp("site")
    build.STAGE, build.SITE = place / "stage", place / "site"
    assert build.main() == 0
    return place / "site"


def test_every_public_name_is_on_the_page_of_the_api(site: Path) -> None:
    shown = set(re.findall(r'id="thrifty\.(\w+)"', (site / "docs" / "reference" / "python.html").read_text()))
    assert shown == set(thrifty.__all__)


def test_every_page_is_in_the_site_and_in_its_navigation(site: Path) -> None:
    linked = {link.removeprefix("./") for link in re.findall(r'href="([^"#]+)', (site / "index.html").read_text())}
    for path in (ROOT / "docs").rglob("*.md"):
        page = str(path.relative_to(ROOT).with_suffix(".html"))
        assert (site / page).is_file()
        assert page in linked, f"{page} is in no navigation"


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        fetched = re.findall(r'<(?:script|img|iframe)[^>]*\bsrc="(https?:)?//[^"]*"|<link[^>]*rel="(?:stylesheet|preconnect|icon)"[^>]*href="https?://',
                             text)
        assert not fetched, f"{page.relative_to(site)} fetches {fetched}"
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*[\"']?https?:", style.read_text())


@pytest.mark.parametrize("text", ["[gone](gone.md)", "[gone](tutorial.md#gone)"])
def test_what_is_broken_ends_the_build(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build = script("build")
    build.STAGE, build.SITE = tmp_path / "stage", tmp_path / "site"
    stage = build.staged

    def broken() -> Path:
        pages = stage()
        (pages / "docs" / "reference" / "python.md").write_text("# Python API\n")  # it takes most of the time
        with open(pages / "docs" / "index.md", "a") as page:
            page.write(f"\n{text}\n")
        return pages

    build.staged = broken
    assert build.main() != 0
    told = capfd.readouterr().out
    assert "gone" in told and "1 issue found" in told
    assert not build.SITE.exists()


def test_docstrings_become_what_the_builder_reads() -> None:
    house = script("docstrings")
    assert house.fenced("Adds.\n\n>>> 1 + 1\n2\n\nThat is all.") == "Adds.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nThat is all."
    assert house.fenced("No example.") == "No example."
    assert house.split("Args:\n    low, high: the\n        range") == "Args:\n    low: the\n        range\n    high: as ``low``"


def test_pages_written_from_the_code_are_fresh() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "reference.py", "--check"], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nmake tables writes them"


def test_every_verb_and_option_is_on_the_page_of_the_command_line() -> None:
    page = (REFERENCE / "cli.md").read_text()
    helped = commands.thrifty(["--help"]).stdout
    verbs = re.findall(r"^## `thrifty (\w+)`", page, re.MULTILINE)
    assert verbs and all(re.search(rf"\b{verb}\b", helped) for verb in verbs)
    for verb in ("explore", "serve"):
        helped = commands.thrifty([verb, "--help"]).stdout
        section = page.partition(f"## `thrifty {verb}`\n")[2].partition("\n## ")[0]
        assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", helped)) - {"--help"} == set(
            re.findall(r"(?<![\w-])--[a-z][\w-]*", "".join(line for line in section.splitlines() if line.startswith("| `-"))))


# -- environment variables --------------------------------------------------------------------------------------


def is_environment(node: ast.AST, names: set[str]) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr == "environ") or (isinstance(node, ast.Name) and node.id in names)


def read_variables(tree: ast.Module) -> set[str]:
    """Variables that a module reads: `environ.get(X)`, `environ[X]`, `X in environ`, `getenv(X)`, under other names too."""
    constants = {target.id: node.value.value for node in ast.walk(tree) if isinstance(node, ast.Assign)
                 and isinstance(node.value, ast.Constant) for target in node.targets if isinstance(target, ast.Name)}
    aliases = {target.id for node in ast.walk(tree) if isinstance(node, ast.Assign) and is_environment(node.value, set())
               for target in node.targets if isinstance(target, ast.Name)}
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            if (node.func.attr == "get" and is_environment(node.func.value, aliases)) or node.func.attr == "getenv":
                found.append(node.args[0])
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and is_environment(node.value, aliases):
            found.append(node.slice)
        elif isinstance(node, ast.Compare) and any(is_environment(right, aliases) for right in node.comparators):
            found.append(node.left)
    return {constants[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node) for node in found}


def test_reads_are_found() -> None:
    code = ("import os\nNAME = 'A'\nhere = os.environ\nos.environ.get(NAME)\nhere['B']\n'C' in here\nos.getenv('D')\n"
            "os.environ['E'] = ''")
    assert read_variables(ast.parse(code)) == {"A", "B", "C", "D"}


def test_the_page_lists_the_environment_variables_that_are_read() -> None:
    read = set().union(*(read_variables(ast.parse(path.read_text())) for path in SRC.rglob("*.py")))
    tables = (REFERENCE / "environment.md").read_text().partition("## Set for")[0]
    rows = re.findall(r"^\| (`.*?) \|", tables, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(read)


# -- words ------------------------------------------------------------------------------------------------------


def test_words_that_the_house_does_not_say_are_found(tmp_path: Path) -> None:
    words = script("words")
    page = tmp_path / "page.md"
    page.write_text("# Page\n\nIt meets the bars, `the bars` in code aside. Of these, one.\n\n"
                    "```python\nbars = 'the bars'\n```\n")
    assert list(words.complaints(words.prose(page), words.EVERYWHERE)) == [
        '3: "Of ": no sentence begins with "Of"', '3: "the bars": constraint']
    module = tmp_path / "module.py"
    module.write_text('"""A module.\n\nIts speed-up is learnt.\n"""\nbars = 1  # the bars\n')
    assert [told.partition(":")[0] for told in words.complaints(words.said(module), words.EVERYWHERE)] == ["3", "3"]
