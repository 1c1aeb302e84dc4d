"""The house: what a stranger sees first. The linter holds the layers of folders; this holds what it cannot see."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parent.parent / "src"
FILES = sorted(SRC.rglob("*.py"))
LONGEST = 400
JOINING = ("thrifty.recipes.method", "thrifty.recipes.recipe")
"""The one import against the order: `joined`, behind ``Method.__or__``, makes a recipe, which is made of methods."""


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, wherever in it and for whatever purpose."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {inner if (inner := f"{node.module}.{name.name}") in MODULES else node.module for name in node.names}
    return found & MODULES.keys()


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, or none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module):]
        if module in done:
            return []
        for other in sorted(graph[module]):
            if found := walk(other, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in graph if (found := walk(module, []))), [])


def test_the_root_of_the_package_keeps_six_files_at_most():
    assert len(list((SRC / "thrifty").glob("*.py"))) <= 6


def test_no_imports_go_in_a_circle_but_the_one_that_joins_methods():
    graph = {module: imports(path) - {module, "thrifty"} for module, path in MODULES.items()}
    assert circle(graph), "the named circle is gone: take it out of this test"
    graph[JOINING[0]].remove(JOINING[1])
    assert not circle(graph)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_no_file_is_longer_than_a_reader_bears(path):
    assert len(path.read_text().splitlines()) <= LONGEST
