"""Directories of Mixtral's and Jamba's shape: quantized by a run, served, and generating."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import hf_models
from tests.serve.servers import ask, running
from thrifty import Quantize
from thrifty.artifacts import artifact
from thrifty.artifacts.generator import Generator
from thrifty.cli.app import app, guarded
from thrifty.cli.options import DONE
from thrifty.compilers.generator import lower_generator
from thrifty.compilers.onnxruntime import OnnxRuntime
from thrifty.workloads.loading import load_workload


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "layers"), [("mixtral", {}), ("jamba", {"dt_proj|conv1d": "fp32"})])  # it reads these itself
def test_a_directory_is_quantized_served_and_generates(name: str, layers: dict[str, str], tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    folder = getattr(hf_models, name)(tmp_path / name)
    hf_models.prose(folder / "data.jsonl")
    monkeypatch.chdir(tmp_path)
    words = f"run {name} 'quantize(w4a16, group=32)' --pairs 1 --study study"
    monkeypatch.setattr(sys, "argv", ["thrifty", *shlex.split(words)])
    assert guarded(app) == DONE
    (place,) = (tmp_path / "study" / "artifacts").iterdir()
    inputs, outputs = artifact.example(place)
    with running(place) as (_, port):
        (said,) = [one["name"] for one in json.loads(ask(port, "GET", "/metadata")[2])["inputs"]]
        status, _, answer = ask(port, "POST", "/predict", json.dumps({"inputs": {said: inputs[0].tolist()}}),
                                "application/json")
    assert status == 200
    np.testing.assert_allclose(json.loads(answer)["outputs"]["output0"], outputs[0], rtol=1e-3, atol=1e-3)
    workload = load_workload(str(folder))
    small: Any = Quantize("w4a16", group=32, algorithm="rtn", layers=layers)(workload.model(), [])
    lower_generator(small.body, OnnxRuntime(), tmp_path / "generator", prompt=4, tokens=16)
    prompt = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        wanted = small.body.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None)[0, 5:].tolist()
    assert Generator.load(tmp_path / "generator").generate(prompt[0].tolist(), 6) == wanted
