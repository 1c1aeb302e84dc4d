"""The examples, as their guides lead through them: the same text, checked, and explored to an answer."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import thrifty
from tests.test_docs import ROOT, blocks
from tests.test_docs import thrifty as command
from thrifty.workloads.checks import check_data, check_example
from thrifty.workloads.loading import load_workload
from thrifty.workloads.workload import Workload

EXAMPLES = ROOT / "examples"
GUIDES = {"rows": "tutorial.md", **{name: f"how-to/{name.replace('_', '-')}.md" for name in (
    "tabular_regression", "text_classification", "segmentation", "time_series")}}
PACKAGES = {"tabular_regression": {"sklearn"}, "text_classification": {"tokenizers", "transformers"},
            "time_series": {"statsmodels"}}
"""What an example needs beside torch, Thrifty and Python's own library."""
EXPLORED = sorted(GUIDES.keys() - {"rows"})
MOST_LINES = 80


def guide(name: str) -> Path:
    return ROOT / "docs" / GUIDES[name]


def commands(name: str, verb: str) -> list[list[str]]:
    """The guide's commands of a verb, whether its blocks are executed with the pages or only checked there."""
    found = [shlex.split(line.removeprefix("$ ")) for block in blocks(guide(name)) if block.language in ("bash", "console")
             for line in block.text.splitlines() if line.removeprefix("$ ").startswith(f"thrifty {verb} ")]
    return [words[1:] for words in found]


def test_each_example_has_a_guide() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == GUIDES.keys()


@pytest.mark.parametrize("name", GUIDES)
def test_the_guides_file_is_the_example(name: str) -> None:
    (block,) = [block for block in blocks(guide(name)) if block.attributes.get("file") == f"{name}.py"]
    text = (EXAMPLES / f"{name}.py").read_text()
    assert text.endswith(block.text) and (text == block.text or name == "rows")


@pytest.mark.parametrize("name", GUIDES)
def test_an_example_is_short_and_needs_little(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) <= MOST_LINES
    needed = {(node.module if isinstance(node, ast.ImportFrom) else alias.name).partition(".")[0]  # type: ignore[union-attr]
              for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    assert needed - sys.stdlib_module_names - {"torch", "thrifty"} == PACKAGES.get(name, set())


@pytest.mark.parametrize("name", sorted(GUIDES.keys() - {"text_classification"}))
def test_an_example_is_a_workload_that_works(name: str) -> None:
    found = load_workload(str(EXAMPLES / f"{name}.py"))
    check_data(found)
    check_example(found, found.model())
    assert "trained" in thrifty.check(found, "train(epochs=1) | compile(onnxruntime)")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the script of the text classification has run."""
    place = tmp_path_factory.mktemp("bert")
    script = [sys.executable, EXAMPLES / "text_classification.py"]
    done = subprocess.run(script, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = re.fullmatch(r"docs-bert: (\d+) texts train, (\d+) judge\n", done.stdout)
    assert told is not None and int(told[1]) > 1000 and int(told[2]) > 500
    return place


@pytest.mark.slow
def test_the_texts_are_a_workload_that_works(bert: Path) -> None:
    found = load_workload(str(bert / "docs-bert"), train=bert / "train.jsonl", data=bert / "judged.jsonl")
    assert found.reference and len(found.train) > 1000  # type: ignore[arg-type]
    assert "quantized" in thrifty.check(found, "train(epochs=1) | quantize(w8a8) | compile(onnxruntime)")


# -- explorations -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", EXPLORED)
def test_an_example_is_explored_to_an_answer(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The guide's own command. Its answer is a trial that is significantly faster and artifact and all, or the model as it is."""
    place = request.getfixturevalue("bert") if name == "text_classification" else tmp_path
    if place is tmp_path:
        (tmp_path / f"{name}.py").write_text((EXAMPLES / f"{name}.py").read_text())
    (words,) = commands(name, "explore")
    done = command([*words, "--json"], place)
    assert done.returncode in (0, 3), done.stderr
    answer = json.loads(done.stdout)
    (best,) = [words for words in commands(name, "best") if "hf" not in words]
    saved = command(best, place)
    assert saved.returncode == done.returncode, saved.stderr
    if done.returncode == 3:
        assert answer["recommended"] is None and "eep the model as it is" in saved.stdout + saved.stderr
        return
    trial = next(each for each in answer["trials"] if each["id"] == answer["recommended"])
    assert trial["inference"]["speedup"]["low"] > 1
    workload = load_workload(trial_source(words, place))
    assert_answers(place / "model", workload, trial["quality"]["value"])


def trial_source(words: list[str], place: Path) -> str:
    """The workload's reference that an exploration's words name."""
    from thrifty.workloads import huggingface

    given = {flag: words[words.index(f"--{flag}") + 1] for flag in ("train", "data", "reference") if f"--{flag}" in words}
    return huggingface.reference(str(place / words[1]), data=place / given["data"], train=place / given["train"],
                                 recipe=given["reference"]) if given else str(place / words[1])


def assert_answers(saved: Path, workload: Workload, quality: float) -> None:
    """What was saved gives validation's quality where neither the workload nor its training is known."""
    engine: Any = thrifty.load(saved, trust_native_code=True)
    example = workload.example(1)
    assert engine(*example).shape == workload.model()(*example).shape

    def predict(inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return torch.cat([engine(*(x[i : i + 1] for x in inputs)) for i in range(len(inputs[0]))])

    assert workload.quality(predict, workload.validation).value == pytest.approx(quality, abs=1e-3)
