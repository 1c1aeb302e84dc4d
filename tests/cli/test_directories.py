"""The options of Hugging Face directories, with each verb on a workload."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from tests import hf_models
from thrifty.cli.app import app, guarded
from thrifty.cli.options import DONE, USAGE

TRAINED = "--train train.jsonl --data judged.jsonl --reference 'train(adamw(lr=0.01), epochs=2)'"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory, examples to judge it by, and examples to train it with."""
    root = tmp_path_factory.mktemp("directories")
    hf_models.bert(root / "bert")
    hf_models.reviews(root / "judged.jsonl", 80)
    hf_models.write_lines(root / "train.jsonl", (
        {"text": hf_models.sentence(i, i % 2), "label": i % 2} for i in range(1000, 1100)))
    return root


def told(words: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["thrifty", *shlex.split(words)])
    code = guarded(app)
    return code, *capsys.readouterr()


@pytest.mark.parametrize("words", [
    f"check bert 'train | prune(ratio=0.1)' {TRAINED}",
    f"run bert train {TRAINED} --dry-run",
    f"sweep bert train {TRAINED} --dry-run",
    f"orders bert 'prune(ratio=0.1)' 'quantize(w8a8)' {TRAINED} --dry-run",
    f"explore bert --budget 1m {TRAINED} --dry-run",
    f"tune bert adamw {TRAINED} --dry-run",
])
def test_every_verb_takes_what_trains_a_directory(words: str, place: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = told(words, place, monkeypatch, capsys)
    assert code == DONE, err


def test_what_is_given_is_what_trains(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def reference(options: str) -> str:
        code, out, _ = told(f"run bert train --dry-run --json {options}", place, monkeypatch, capsys)
        assert code == DONE
        return str(json.loads(out)["reference"])

    assert reference(TRAINED) == "train(adamw(lr=0.01), epochs=2)"
    assert reference("--data judged.jsonl --train train.jsonl") == "train(adamw(lr=5e-05), epochs=3, schedule=linear)"
    assert reference("--data judged.jsonl") == ""
    assert reference("--data judged.jsonl --reference 'train(epochs=3)'") == "train(epochs=3)"


@pytest.mark.parametrize(("options", "line", "words"), [
    ("--train bad.jsonl", '{"text": "a", "label": 0}\n{"text": ', "bad.jsonl:2: this is not JSON in UTF-8"),
    ("--train bad.jsonl", "", "bad.jsonl is empty; it holds one JSON object a line"),
    ("--train bad.jsonl", '{"text": "a"}', 'bad.jsonl:1: "label" is missing'),
    ("--train bad.jsonl", '{"text": "a", "label": 2}', 'bad.jsonl:1: "label" is 2, which this model does not have'),
    ("--train none.jsonl", "", "there is no data file"),
    ("--reference 'prune(ratio=0.5)'", "", "the reference recipe of bert, prune(ratio=0.5), trains nothing"),
    ("--reference 'train | compile(export)'", "", "ends in a compiler"),
    ("--task feature-extraction --reference train", "", "feature-extraction has no training loss"),
])
def test_what_cannot_train_is_one_line_and_exit_2(options: str, line: str, words: str, place: Path,
                                                  monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "bad.jsonl").write_text(line)
    code, out, err = told(f"run bert train --dry-run --data judged.jsonl {options}", place, monkeypatch, capsys)
    assert code == USAGE and out == "" and err.count("\n") == 1 and words in err


def test_another_workload_takes_none_of_them(place: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = told("run digits train --train train.jsonl --dry-run", place, monkeypatch, capsys)
    assert code == USAGE and "only a Hugging Face directory accepts train, but there is none at 'digits'" in err
