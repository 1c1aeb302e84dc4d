"""Workloads of tiny directories: found, checked, run; the same outputs as transformers; bad ones answered."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import hf_models

import thrifty
from thrifty import Context, check
from thrifty.artifacts import artifact
from thrifty.cli.recipes import workload_reference
from thrifty.compilers.onnxruntime import OnnxRuntime
from thrifty.errors import WorkloadError
from thrifty.workloads import huggingface
from thrifty.workloads.checks import check_data, check_example
from thrifty.workloads.fingerprint import fingerprint
from thrifty.workloads.huggingface.models import quiet
from thrifty.workloads.loading import load_workload
from thrifty.workloads.workload import Workload

LABELS = {"label2id": {"negative": 0, "positive": 1}, "id2label": {0: "negative", 1: "positive"}}
MODELS: dict[str, tuple[Callable[..., Path], Callable[..., Path], str]] = {
    "bert": (hf_models.bert, hf_models.reviews, "text-classification"),
    "bert-embedder": (lambda p: hf_models.bert(p, "BertModel"), hf_models.pairs, "feature-extraction"),
    "llama": (hf_models.llama, hf_models.prose, "causal-lm"),
    "llama-classifier": (lambda p: hf_models.llama(p, "LlamaForSequenceClassification", LABELS), hf_models.reviews,
                         "text-classification"),
    "gpt2": (hf_models.gpt2, hf_models.prose, "causal-lm"),
    "vit": (hf_models.vit, hf_models.pictures, "image-classification"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hf")
    for name, (make, data, _) in MODELS.items():
        data(make(root / name) / "data.jsonl")
    return {name: root / name for name in MODELS}


@pytest.fixture(params=MODELS)
def workload(request: pytest.FixtureRequest, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Workload:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = load_workload(str(folders[request.param]))
    assert f"task={MODELS[request.param][2]}&" in found.source
    return found


def test_a_teacher_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    def directory(name: str, vocabulary: Any) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
        return f"hf:{tmp_path / name}?task=causal-lm"

    ours, same = directory("ours", {"a": 0, "b": 1}), directory("same", {"b": 1, "a": 0, "padding": 2})
    moved, lacks = directory("moved", {"a": 1, "b": 0}), directory("lacks", [["a", -1.0], ["c", -2.0]])
    huggingface.require_same_tokens(same, ours)
    huggingface.require_same_tokens("file.py:workload", ours)
    with pytest.raises(WorkloadError, match="numbers 'a' 1, and the student's numbers it 0"):
        huggingface.require_same_tokens(moved, ours)
    with pytest.raises(WorkloadError, match="has no 'b'"):
        huggingface.require_same_tokens(lacks, ours)


# -- what is found ----------------------------------------------------------------------------------------------


def test_a_directory_is_a_workload(workload: Workload) -> None:
    model = workload.model()
    check_data(workload)
    outputs = check_example(workload, model)
    assert isinstance(outputs, torch.Tensor) and outputs.dtype == torch.float32
    assert workload.reference == "" and all(p.dtype == torch.float32 for p in model.parameters())
    assert [x.shape[0] for x in workload.example(3)] == [3] * len(workload.example(1))
    with torch.no_grad():
        value = workload.quality(lambda inputs: model(*inputs), workload.validation).value
    assert 0 <= value < 20


def test_recipes_are_rehearsed_on_it(workload: Workload) -> None:
    train = "train(adamw) | " if workload.loss is not None else "train(adamw, distill(embedding)) | "
    assert "quantized" in check(workload, f"{train}prune(ratio=0.1) | quantize(w8a8)")


@pytest.mark.parametrize("workload", [
    "bert", "gpt2", "vit",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "llama-classifier", "bert-embedder")),
], indirect=True)
def test_onnx_runtime_takes_it(workload: Workload, tmp_path: Path) -> None:
    model, example = workload.model(), workload.example(1)
    lowered = OnnxRuntime().lower(model, example, tmp_path, Context(example=example, calibration=lambda: iter([example])))
    with torch.no_grad():
        expected = model(*example)
    artifact.write(tmp_path, lowered, {}, [x.numpy() for x in example], [expected.numpy()])
    torch.testing.assert_close(thrifty.load(tmp_path)(*example), expected, atol=1e-4, rtol=1e-4)


def test_outputs_are_those_of_transformers(folders: dict[str, Path]) -> None:
    from PIL import Image

    with quiet() as transformers, torch.no_grad():
        for name, auto in (("bert", "AutoModelForSequenceClassification"),
                           ("llama-classifier", "AutoModelForSequenceClassification")):
            found = load_workload(str(folders[name]))
            tokenizer = transformers.AutoTokenizer.from_pretrained(folders[name])
            theirs = getattr(transformers, auto).from_pretrained(folders[name]).eval()
            line = next(json.loads(row) for row in (folders[name] / "data.jsonl").read_text().splitlines()
                        if json.loads(row)["text"] == found.validation.texts[0])
            alone = theirs(**{k: v for k, v in tokenizer(line["text"], return_tensors="pt").items()
                              if k != "token_type_ids"}).logits
            torch.testing.assert_close(found.model()(*found.example(1)), alone, atol=1e-5, rtol=1e-4)
        gpt2 = load_workload(str(folders["gpt2"]))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folders["gpt2"]).eval()
        (ids,) = gpt2.example(2)
        torch.testing.assert_close(gpt2.model()(ids), theirs(ids).logits, atol=1e-5, rtol=1e-4)
        vit = load_workload(str(folders["vit"]))
        theirs = transformers.AutoModelForImageClassification.from_pretrained(folders["vit"]).eval()
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        processor = ViTImageProcessorPil.from_pretrained(folders["vit"])
        pixels = processor(Image.open(vit.validation.paths[0]).convert("RGB"), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(vit.model()(*vit.example(1)), theirs(pixels).logits, atol=0.05, rtol=0.05)


def test_filling_does_not_change_an_answer(folders: dict[str, Path]) -> None:
    for name in ("bert", "llama-classifier", "bert-embedder"):
        found = load_workload(str(folders[name]))
        ids, mask = found.example(4)
        more = torch.nn.functional.pad
        pad = found.validation.words.pad
        with torch.no_grad():
            model = found.model()
            torch.testing.assert_close(model(more(ids, (0, 9), value=pad), more(mask, (0, 9))), model(ids, mask),
                                       atol=1e-5, rtol=1e-4)


def test_shards_give_the_same_model(folders: dict[str, Path], tmp_path: Path) -> None:
    sharded = hf_models.llama(tmp_path / "llama", max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    whole = load_workload(str(folders["llama"]))
    parts = load_workload(f"hf:{sharded}?data={folders['llama'] / 'data.jsonl'}")
    (ids,) = whole.example(2)
    assert torch.equal(whole.model()(ids), parts.model()(ids))


def test_an_embedder_without_a_pooler_has_none(tmp_path: Path, folders: dict[str, Path]) -> None:
    with quiet() as transformers:
        body = transformers.AutoModel.from_pretrained(folders["bert-embedder"], add_pooling_layer=False)
        body.save_pretrained(tmp_path / "bare")
    shutil.copy(folders["bert-embedder"] / "tokenizer.json", tmp_path / "bare")
    bare = load_workload(f"hf:{tmp_path / 'bare'}?data={folders['bert-embedder'] / 'data.jsonl'}&tokens=16")
    whole = load_workload(str(folders["bert-embedder"]))
    assert not [name for name, _ in bare.model().named_parameters() if "pooler" in name]
    assert torch.equal(bare.model()(*whole.example(2)), whole.model()(*whole.example(2)))


# -- references -------------------------------------------------------------------------------------------------


def test_a_fresh_process_finds_the_same(folders: dict[str, Path]) -> None:
    found = load_workload(str(folders["bert"]))
    assert "tokens=16" in found.source and load_workload(found.source).source == found.source
    code = ("from thrifty.workloads.fingerprint import fingerprint; from thrifty.workloads.loading import load_workload; "
            f"print(fingerprint(load_workload({found.source!r})))")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == fingerprint(found)


def test_the_fingerprint_follows_model_data_and_task(folders: dict[str, Path], tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folders["bert"], tmp_path / "a place with spaces & more"))
    found = load_workload(str(moved))
    seen = {fingerprint(found)}
    assert seen == {fingerprint(load_workload(str(folders["bert"])))}, "where it lies changes nothing"
    assert load_workload(found.source).source == found.source
    for change in (lambda: hf_models.reviews(moved / "data.jsonl", 130), lambda: hf_models.bert(moved, initializer_range=0.1),
                   lambda: (moved / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')):
        change()
        seen.add(fingerprint(load_workload(str(moved))))
    seen.add(fingerprint(load_workload(f"hf:{folders['bert']}?tokens=32")))
    assert len(seen) == 5


def test_options_of_the_command_line_build_the_reference(folders: dict[str, Path], tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders["bert"].parent)
    data = hf_models.reviews(tmp_path / "mine.jsonl", 80)
    text = workload_reference("./bert", "text-classification", data)
    assert load_workload(text).source == f"hf:{folders['bert']}?task=text-classification&data={data}&tokens=16"
    assert workload_reference("digits", None, None) == "digits"
    with pytest.raises(WorkloadError, match="--task and --data go with a Hugging Face directory"):
        workload_reference("digits", "causal-lm", None)


@pytest.mark.parametrize(("query", "words"), [
    ("task=translation", "there is no task 'translation'; those of a Hugging Face directory: text-classification"),
    ("tokens=0", "tokens must be a whole number, 1 or more, but is '0'"),
    ("tokens=65", "tokens must be 1 to 64, which the model takes"),
    ("token=8", "asks for token; known: task, data, tokens"),
    ("data=/no/such.jsonl", "there is no data file /no/such.jsonl"),
    ("task=causal-lm", 'names no token for the start|transformers cannot read'),
])
def test_a_reference_that_cannot_be_used(query: str, words: str, folders: dict[str, Path]) -> None:
    with pytest.raises(WorkloadError, match=words):
        load_workload(f"hf:{folders['bert']}?{query}")


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.fixture
def bert(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["bert"], tmp_path / "bert"))


def test_an_architecture_that_may_be_for_anything_needs_a_task(bert: Path) -> None:
    config = json.loads((bert / "config.json").read_text())
    for named in ([], ["BertForMaskedLM"], ["T5ForConditionalGeneration"]):
        (bert / "config.json").write_text(json.dumps({**config, "architectures": named}))
        with pytest.raises(WorkloadError, match=r"Name the task: --task text-classification \| causal-lm"):
            load_workload(str(bert))
    load_workload(f"hf:{bert}?task=text-classification")


def test_weights_that_lack_the_head_are_refused(folders: dict[str, Path]) -> None:
    found = load_workload(f"hf:{folders['bert-embedder']}?task=text-classification&data={folders['bert'] / 'data.jsonl'}")
    with pytest.raises(WorkloadError, match=r"lack classifier\.bias, .*it was not trained for this task"):
        found.model()


@pytest.mark.parametrize(("label", "words"), [
    (2, '"label" is 2, which this model does not have; it has 0 to 1, or one of negative, positive'),
    (-1, '"label" is -1'), ("neutral", "\"label\" is 'neutral'"),
])
def test_a_label_that_the_model_does_not_have(label: Any, words: str, bert: Path) -> None:
    with (bert / "data.jsonl").open("a") as file:
        file.write(json.dumps({"text": "good", "label": label}) + "\n")
    with pytest.raises(WorkloadError) as caught:
        load_workload(str(bert))
    assert f"data.jsonl:121: {words}" in str(caught.value)


def test_a_missing_tokenizer_is_answered(bert: Path) -> None:
    (bert / "tokenizer.json").unlink()
    with pytest.raises(WorkloadError, match="has no tokenizer.json; only fast tokenizers are read"):
        load_workload(str(bert))


def test_an_image_outside_or_damaged_is_answered_with_its_line(folders: dict[str, Path], tmp_path: Path) -> None:
    vit = Path(shutil.copytree(folders["vit"], tmp_path / "vit"))
    good = (vit / "data.jsonl").read_text()
    (vit / "images" / "bad.png").write_text("text")
    for name, words in (("../secret.png", "is outside"), ("images/none.png", "there is no image"),
                        ("images/bad.png", "no PNG or JPEG image")):
        (vit / "data.jsonl").write_text(good + json.dumps({"image": name, "label": 0}) + "\n")
        with pytest.raises(WorkloadError, match=rf"data\.jsonl:61: .*{words}.*A right line"):
            load_workload(str(vit))


def test_too_few_documents_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    few = hf_models.pairs(tmp_path / "few.jsonl", 30)
    with pytest.raises(WorkloadError, match="different documents, among which every query finds its own"):
        load_workload(f"hf:{folders['bert-embedder']}?data={few}")


def test_pooling_is_as_the_directory_says(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["bert-embedder"], tmp_path / "pooled"))
    (folder / "1_Pooling").mkdir()
    for mode, pooling in (("cls_token", "cls"), ("mean_tokens", "mean")):
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
        assert load_workload(str(folder)).model().pooling == pooling
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(WorkloadError, match="pools by max_tokens; supported: mean_tokens, cls_token"):
        load_workload(str(folder))


# -- whole runs -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_recipe_runs_from_end_to_end(folders: dict[str, Path], tmp_path: Path) -> None:
    text = huggingface.reference(str(folders["bert"]), "text-classification")
    trial = thrifty.run(text, "train(adamw(lr=0.003), steps=100) | compile(onnxruntime)", study=tmp_path / "study", pairs=1)
    assert trial.status == "done", trial.error
    assert trial.quality is not None and trial.quality.value > trial.quality.baseline + 0.2
    assert trial.artifact is not None
    found = load_workload(text)
    from thrifty.runs.saving import model_of

    torch.testing.assert_close(thrifty.load(trial.artifact.path)(*found.example(1)),
                               model_of(trial, found)(*found.example(1)), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_minilm_in_the_layout_of_hugging_face(tmp_path: Path) -> None:
    from thrifty.workloads.embedded import minilm
    from thrifty.workloads.embedded.functions import pairs

    rows = [{"query": f.sentence, "document": f.code, "split": split}
            for split in ("validation", "test") for f in pairs(split)[:100]]
    data = hf_models.write_lines(tmp_path / "functions.jsonl", rows)
    found = load_workload(f"hf:{minilm.weights_folder()}?task=feature-extraction&data={data}&tokens=128")
    ours, own = found.model(), minilm.model()
    with torch.no_grad():
        torch.testing.assert_close(ours(*found.example(8)), own(*found.example(8)), atol=1e-5, rtol=1e-4)
        assert found.quality(lambda inputs: ours(*inputs), found.validation).value > 0.9
