"""A method is added in three places: its file, a line of the registry, its card. The example's method, in a copy of the tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAME = "weight_noise"
FILE = Path("src/thrifty/training/qat/weight_noise.py")
REGISTRY = Path("src/thrifty/recipes/registry.py")
CARD = Path("docs/methods/weight_noise.md")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a method is added to."""
    for folder in ("src", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def python(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python whose Thrifty is the copy."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=tree,
                          env={**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"})


def texts(tree: Path) -> dict[Path, bytes]:
    return {path.relative_to(tree): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def add(tree: Path, *places: Path) -> None:
    """Add the method in some of the three places."""
    example = ROOT / "examples" / "thrifty-noise"
    if FILE in places:
        shutil.copy(example / "thrifty_noise.py", tree / FILE)
    if REGISTRY in places:
        text = (tree / REGISTRY).read_text()
        line = '    "qat": "thrifty.training.qat.qat:Qat",\n'
        assert text.count(line) == 1
        (tree / REGISTRY).write_text(
            text.replace(line, f'{line}    "{NAME}": "thrifty.training.qat.weight_noise:WeightNoise",\n'))
    if CARD in places:
        shutil.copy(example / "README.md", tree / CARD)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_method_is_added_in_three_places(tree: Path) -> None:
    before = texts(tree)
    add(tree, FILE, REGISTRY, CARD)

    checked = python(tree, "docs/tables.py", "--check")
    assert checked.returncode == 1, checked.stderr
    assert "README.md is stale" in checked.stdout and "docs/index.md is stale" in checked.stdout
    assert python(tree, "docs/tables.py").returncode == 0
    assert python(tree, "docs/tables.py", "--check").returncode == 0
    row = f"| `{NAME}` | qat | [weights trained under the noise of rounding]({CARD}) |\n"
    assert row in (tree / "README.md").read_text()
    assert f"  - qat: [qat](methods/qat.md), [{NAME}](methods/{NAME}.md)\n" in (tree / "docs" / "index.md").read_text()

    listed = python(tree, "-m", "thrifty", "methods", "--json")
    assert NAME in [method["name"] for method in json.loads(listed.stdout)], listed.stderr

    kit = python(tree, "-c", "from thrifty import testing\nfrom thrifty.recipes.registry import method_class\n"
                             f"for law in testing.LAWS:\n    law(method_class({NAME!r})(bits=3))\n    print(law.__name__)")
    assert kit.returncode == 0, kit.stdout + kit.stderr

    after = texts(tree)
    written = {Path("README.md"), Path("docs/index.md")}
    assert {path for path in after if after[path] != before.get(path)} == {FILE, REGISTRY, CARD} | written
    assert len(after[REGISTRY].splitlines()) == len(before[REGISTRY].splitlines()) + 1


def test_a_method_without_a_card_is_told(tree: Path) -> None:
    add(tree, FILE, REGISTRY)
    done = python(tree, "docs/tables.py")
    assert done.returncode == 1
    assert f"{NAME} is registered and has no page: write " in done.stderr and str(CARD) in done.stderr


@pytest.mark.slow
def test_a_card_whose_heading_says_nothing_is_told(tree: Path) -> None:
    add(tree, FILE, REGISTRY)
    (tree / CARD).write_text(f"# `{NAME}`\n\nIt adds noise.\n")
    before = texts(tree)
    done = python(tree, "docs/tables.py")
    assert done.returncode == 1
    assert f"its heading is to be '# `{NAME}`: what it is, in a few words'" in done.stderr
    assert texts(tree) == before, "nothing is written by halves"
