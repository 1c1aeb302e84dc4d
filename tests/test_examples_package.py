"""`examples/thrifty-noise`, a package that registers a method of its own, as it is where it was installed."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_docs import blocks, hyperparameter_rows
from thrifty import testing

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "examples" / "thrifty-noise"
PROJECT = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
METHODS = PROJECT["entry-points"]["thrifty.methods"]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a fresh Python to which the package is an installed distribution: its module, and what pip notes beside it."""
    site = tmp_path_factory.mktemp("site")
    for file in PACKAGE.glob("*.py"):
        shutil.copy(file, site)
    noted = site / f"{PROJECT['name'].replace('-', '_')}-{PROJECT['version']}.dist-info"
    noted.mkdir()
    (noted / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {PROJECT['name']}\nVersion: {PROJECT['version']}\n")
    (noted / "entry_points.txt").write_text(
        "\n".join(["[thrifty.methods]", *(f"{name} = {place}" for name, place in METHODS.items())]))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(site), str(ROOT / "src")])
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=site,
                              env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "TERM": "dumb"})
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
        return done

    return run


def test_its_method_is_listed_beside_ours(python: Run) -> None:
    listed = {row["name"]: row for row in json.loads(python("-m", "thrifty", "methods", "--json").stdout)}
    assert set(METHODS) < set(listed) and "quantize" in listed
    (row,) = (listed[name] for name in METHODS)
    assert row["family"] == "qat" and row["trade_off"] and "arXiv" in row["paper"]


@pytest.mark.parametrize("recipe", [
    "train(adamw, weight_noise, epochs=1)",
    pytest.param("train(weight_noise(bits=3), bf16, steps=2, accumulate=2) | quantize(w4a16, group=32) | compile(export)",
                 marks=pytest.mark.slow),
])
def test_a_recipe_with_its_method_is_checked(python: Run, recipe: str) -> None:
    python("-m", "thrifty", "check", "thrifty.testing:workload", recipe)
    python("-c", f"from thrifty import Recipe; assert str(Recipe.parse({recipe!r})) == {recipe!r}")


@pytest.mark.parametrize(("first", "second"), [
    ("qat", "weight_noise"), pytest.param("weight_noise", "qat", marks=pytest.mark.slow),
    pytest.param("lora", "weight_noise", marks=pytest.mark.slow)])
def test_what_does_not_go_with_it_is_told_by_properties(python: Run, first: str, second: str) -> None:
    """The method names no other, and no other knows of it."""
    text = f"train(adamw) | train({first}, {second})"
    python("-c", "import pytest, thrifty\nwith pytest.raises(thrifty.ThriftyError, match='requires a model without'):\n"
                 f"    thrifty.check('thrifty.testing:workload', {text!r})")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_its_own_tests_hold_every_law_of_the_kit(python: Run) -> None:
    out = python("-m", "pytest", "-v", "-p", "no:cacheprovider", "--doctest-modules", ".").stdout
    passed = re.findall(r"^(\S+) PASSED", out, re.MULTILINE)
    for law in testing.LAWS:
        assert any(f"[{law.__name__}]" in test for test in passed), f"{law.__name__} did not run\n{out}"
    assert "skipped" not in out


@pytest.mark.slow
def test_its_page_agrees_with_it(python: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGE))
    (place,) = METHODS.values()
    module, _, name = place.partition(":")
    text = (PACKAGE / "README.md").read_text()
    for row in hyperparameter_rows(getattr(importlib.import_module(module), name)):
        assert row in text, f"README.md lacks the row {row}"
    (example,) = (block.text for block in blocks(PACKAGE / "README.md") if block.language == "python")
    python("-c", example)
    (recipe,) = re.findall(r'thrifty check digits "(.+)"', text)
    python("-c", f"from thrifty import Recipe; Recipe.parse({recipe!r})")
