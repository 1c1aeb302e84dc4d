"""A directory in, a directory or an artifact out, with the answers of the model that came."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from tests import hf_models
from thrifty import Export, OnnxRuntime, load
from thrifty.errors import ThriftyError
from thrifty.recipes.recipe import Recipe
from thrifty.runs.context import calibration
from thrifty.runs.conversion import export_directory, quantize_directory
from thrifty.workloads.huggingface import reference
from thrifty.workloads.loading import load_workload


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("directories")
    hf_models.llama(found / "llama", hidden_size=64)
    hf_models.prose(found / "prose.jsonl")
    hf_models.bert(found / "bert")
    hf_models.reviews(found / "reviews.jsonl")
    return found


def source(place: Path, name: str, data: str) -> str:
    return reference(str(place / name), None, place / data)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize(("scheme", "error"), [
    ("w8a8, algorithm=rtn", 0.03),  # transformers multiplies activations that are not rounded
    ("w4a16, group=32, algorithm=rtn", 1e-4),
])
def test_a_quantized_directory_answers_in_transformers_as_the_method_alone(place: Path, tmp_path: Path, scheme: str,
                                                                           error: float) -> None:
    pytest.importorskip("compressed_tensors")
    text = source(place, "llama", "prose.jsonl")
    out = quantize_directory(text, tmp_path / "out", scheme)
    assert (out / "tokenizer.json").read_bytes() == (place / "llama" / "tokenizer.json").read_bytes()
    assert "quantization_config" in json.loads((out / "config.json").read_bytes())
    workload = load_workload(text)
    (ids,) = workload.example(1)
    (method,) = Recipe.parse(f"quantize({scheme})").methods()
    model = workload.model().eval()
    alone = method(model, calibration(workload, seed=0))
    read = transformers.AutoModelForCausalLM.from_pretrained(
        out, quantization_config=transformers.CompressedTensorsConfig(dequantize=True)).eval()
    with torch.no_grad():
        expected, found, before = alone(ids), read(ids).logits, model(ids)
    assert float((found - expected).norm() / expected.norm()) <= error, "the answers differ"
    assert float((expected - before).norm() / before.norm()) > 0.01, "nothing was rounded"


def test_an_exported_model_answers_as_it_did(place: Path, tmp_path: Path) -> None:
    text = source(place, "bert", "reviews.jsonl")
    out = export_directory(text, tmp_path / "out", OnnxRuntime())
    assert (out / "model.onnx").is_file()
    workload = load_workload(text)
    example = workload.example(1)
    with torch.no_grad():
        torch.testing.assert_close(load(out)(*example), workload.model().eval()(*example), rtol=1e-4, atol=1e-4)
    with pytest.raises(ThriftyError, match="already exists"):
        export_directory(text, out, OnnxRuntime())


def test_half_an_artifact_is_not_left(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise ThriftyError("answers differ")

    monkeypatch.setattr("thrifty.compilers.lower.check_parity", refuse)
    with pytest.raises(ThriftyError, match="answers differ"):
        export_directory(source(place, "bert", "reviews.jsonl"), tmp_path / "out", Export())
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_made_is_told_in_one_line(place: Path, tmp_path: Path) -> None:
    text = source(place, "llama", "prose.jsonl")
    for scheme in ("w8a8) | prune(", "w9a9"):
        with pytest.raises(ThriftyError):
            quantize_directory(text, tmp_path / "out", scheme)
    with pytest.raises(ThriftyError, match="'digits' is not a Hugging Face directory"):
        export_directory("digits", tmp_path / "out", Export())
    assert not (tmp_path / "out").exists()
