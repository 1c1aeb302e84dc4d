from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import hf_models
from thrifty.cli.app import app, guarded
from thrifty.cli.options import DONE, USAGE


def thrifty(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["thrifty", *words])
    return guarded(app)


def test_one_command_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    hf_models.llama(Path("llama"), hidden_size=64)
    hf_models.prose(Path("llama/data.jsonl"))
    assert thrifty(monkeypatch, "quantize", "llama", "-o", "small") == DONE
    assert capsys.readouterr().out == "small\n" and Path("small/config.json").is_file()
    assert thrifty(monkeypatch, "export", "llama", "--to", "openvino", "-o", "served") == DONE
    assert capsys.readouterr().out == "served\n" and Path("served/artifact.json").is_file()
    assert thrifty(monkeypatch, "export", "digits", "-o", "other") == USAGE
    told = capsys.readouterr()
    assert told.err.startswith("thrifty: 'digits' is not a Hugging Face directory") and told.err.count("\n") == 1
