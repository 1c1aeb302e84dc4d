"""The text by which a directory's workload is found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests import hf_models

from thrifty.errors import WorkloadError
from thrifty.workloads import huggingface
from thrifty.workloads.huggingface.source import Reference
from thrifty.workloads.loading import load_workload


def test_what_is_given_comes_back_from_the_text(tmp_path: Path) -> None:
    recipe = 'train(adamw(lr=3e-05), distill(teacher="train(adamw, epochs=3)"), epochs=2)'
    known = Reference(tmp_path / "a & b?", "causal-lm", tmp_path / "d.jsonl", 64, tmp_path / "t=1.jsonl", recipe)
    assert Reference.parse(str(known)) == known
    assert Reference.parse(f"hf:{tmp_path}") == Reference(tmp_path, "", tmp_path / "data.jsonl")


def test_paths_are_taken_from_where_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    text = huggingface.reference("model", data="d.jsonl", train="t.jsonl", recipe=" train(adamw) ")
    assert Reference.parse(text) == Reference(tmp_path / "model", "", tmp_path / "d.jsonl", None, tmp_path / "t.jsonl",
                                              "train(adamw)")


def test_options_build_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = hf_models.reviews(hf_models.bert(tmp_path / "bert") / "mine.jsonl", 80)
    text = huggingface.reference("./bert", "text-classification", data)
    assert load_workload(text).source == f"hf:{tmp_path}/bert?task=text-classification&data={data}&tokens=16"
    assert huggingface.reference("digits") == "digits"
    with pytest.raises(WorkloadError, match="only a Hugging Face directory accepts task and train, but there is none at "
                                            "'digits'"):
        huggingface.reference("digits", "causal-lm", train="t.jsonl")


def test_a_teacher_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    def directory(name: str, vocabulary: Any) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
        return f"hf:{tmp_path / name}?task=causal-lm"

    ours, same = directory("ours", {"a": 0, "b": 1}), directory("same", {"b": 1, "a": 0, "padding": 2})
    moved, lacks = directory("moved", {"a": 1, "b": 0}), directory("lacks", [["a", -1.0], ["c", -2.0]])
    huggingface.require_same_tokens(same, ours)
    huggingface.require_same_tokens("file.py:workload", ours)
    with pytest.raises(WorkloadError, match="numbers 'a' 1, but the student's numbers it 0"):
        huggingface.require_same_tokens(moved, ours)
    with pytest.raises(WorkloadError, match="has no 'b'"):
        huggingface.require_same_tokens(lacks, ours)
