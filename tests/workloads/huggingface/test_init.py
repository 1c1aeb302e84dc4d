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
    "bert",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "vit", "llama", "llama-classifier", "bert-embedder")),
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


@pytest.mark.parametrize(("query", "words"), [
    ("task=translation", "there is no task 'translation'; those of a Hugging Face directory: text-classification"),
    ("tokens=0", "tokens must be a whole number, 1 or more, but is '0'"),
    ("tokens=65", "tokens must be 1 to 64, which the model takes"),
    ("token=8", "asks for token; known: task, data, train, reference, tokens"),
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
    with pytest.raises(WorkloadError, match="has no tokenizer.json; only fast tokenizers are supported"):
        load_workload(str(bert))


def test_an_image_outside_or_damaged_is_answered_with_its_line(folders: dict[str, Path], tmp_path: Path) -> None:
    vit = Path(shutil.copytree(folders["vit"], tmp_path / "vit"))
    good = (vit / "data.jsonl").read_text()
    (vit / "images" / "bad.png").write_text("text")
    for name, words in (("../secret.png", "is outside"), ("images/none.png", "there is no image"),
                        ("images/bad.png", "not a readable PNG or JPEG image")):
        (vit / "data.jsonl").write_text(good + json.dumps({"image": name, "label": 0}) + "\n")
        with pytest.raises(WorkloadError, match=rf"data\.jsonl:61: .*{words}.*A right line"):
            load_workload(str(vit))


def test_too_few_documents_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    few = hf_models.pairs(tmp_path / "few.jsonl", 30)
    with pytest.raises(WorkloadError, match="different documents, so every query finds its own"):
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


# -- training -----------------------------------------------------------------------------------------------------


@pytest.fixture
def lessons(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Makes a file to train with: half the lines of a model's data, told apart from the others by a word more."""
    def made(name: str) -> Path:
        said = [json.loads(line) for line in (folders[name] / "data.jsonl").read_text().splitlines()]
        rows = [{**row, **({"text": f"{row['text']} again"} if "text" in row else {}),
                 **({"file": f"{row['file']}-again"} if "file" in row else {})} for i, row in enumerate(said) if i % 4 < 2]
        return hf_models.write_lines((tmp_path if "text" in said[0] else folders[name]) / "train.jsonl", rows)

    return made


@pytest.mark.parametrize("name", ["bert", "llama", "llama-classifier", "gpt2"])
def test_a_directory_is_trained_with_a_file_of_its_own(name: str, folders: dict[str, Path],
                                                       lessons: Callable[[str], Path]) -> None:
    train = lessons(name)
    found = load_workload(str(folders[name]), train=train)
    assert found.reference == "train(adamw(lr=5e-05), epochs=3, schedule=linear)"
    assert found.train is not None and load_workload(found.source).source == found.source
    assert len(found.validation) + len(found.test) > len(load_workload(str(folders[name])).validation)
    assert "trained" in check(found, found.reference)
    assert "trained" not in check(found, "prune(ratio=0.1)"), "no model comes trained where a reference trains it"
    named = load_workload(str(folders[name]), train=train, reference="train(adamw(lr=0.01), steps=9)")
    assert named.reference == "train(adamw(lr=0.01), steps=9)"
    assert len({fingerprint(one) for one in (load_workload(str(folders[name])), found, named)}) == 3


def test_images_are_trained_with_a_file_of_their_own(folders: dict[str, Path]) -> None:
    """Told apart by their names; without a file of its own, a recipe trains with the data's lines."""
    rows = [json.loads(line) for line in (folders["vit"] / "data.jsonl").read_text().splitlines()]
    train, judged = (hf_models.write_lines(folders["vit"] / f"{name}.jsonl", some)
                     for name, some in (("half", rows[:20]), ("rest", rows[20:])))
    found = load_workload(str(folders["vit"]), train=train, data=judged)
    assert len(found.train) == 20 and found.reference  # type: ignore[arg-type]
    own = load_workload(str(folders["vit"]), reference="train(adamw, epochs=2)")
    assert own.reference == "train(adamw, epochs=2)" and len(own.train) > 20  # type: ignore[arg-type]
    assert "trained" in check(own, "train(adamw) | prune(ratio=0.1)")


def test_a_head_that_the_weights_lack_is_trained(folders: dict[str, Path], lessons: Callable[[str], Path],
                                                 tmp_path: Path) -> None:
    base = hf_models.bert(tmp_path / "base", "BertForMaskedLM", id2label=None, label2id=None)
    found = load_workload(str(base), task="text-classification", data=folders["bert"] / "data.jsonl", train=lessons("bert"))
    model = found.model()
    assert model.body.config.id2label == {0: "negative", 1: "positive"}  # type: ignore[union-attr]
    embedding = "body.bert.embeddings.word_embeddings.weight"
    with quiet() as transformers:
        theirs = transformers.AutoModelForMaskedLM.from_pretrained(base)
    assert torch.equal(model.state_dict()[embedding], theirs.state_dict()["bert.embeddings.word_embeddings.weight"])
    assert "trained" in check(found, "train(adamw)")
    other = load_workload(str(folders["gpt2"]), task="text-classification", data=folders["bert"] / "data.jsonl",
                          train=lessons("bert"))
    assert other.model()(*other.example(1)).shape == (1, 2)


def test_a_body_that_the_weights_lack_is_refused_even_so(folders: dict[str, Path], lessons: Callable[[str], Path],
                                                         tmp_path: Path) -> None:
    base = hf_models.bert(tmp_path / "base", "BertForMaskedLM")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    found = load_workload(str(base), task="text-classification", data=folders["bert"] / "data.jsonl", train=lessons("bert"))
    with pytest.raises(WorkloadError, match=r"lack bert\.encoder\.layer\.2\."):
        found.model()


def test_training_that_cannot_be_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"feature-extraction has no training loss.*distill\(embedding\)"):
        load_workload(str(folders["bert-embedder"]), train=tmp_path / "pairs.jsonl")
    with pytest.raises(WorkloadError, match="feature-extraction has no training loss"):
        load_workload(str(folders["bert-embedder"]), reference="train(adamw)")
    judged = hf_models.write_lines(tmp_path / "judged.jsonl", (
        {"text": hf_models.sentence(i, i % 2), "label": i % 2, "split": ("validation", "test")[i % 3 > 1]} for i in range(9)))
    with pytest.raises(WorkloadError, match=r"judged\.jsonl has no lines to train with, but train\(adamw\) trains: give some"):
        load_workload(str(folders["bert"]), data=judged, reference="train(adamw)")


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
def test_a_new_head_is_trained_by_the_reference(tmp_path: Path) -> None:
    base = hf_models.bert(tmp_path / "base", "BertForMaskedLM", id2label=None, label2id=None)
    rows = [{"text": hf_models.sentence(i, i % 2), "label": ("bad", "good")[i % 2]} for i in range(400)]
    data, train = (hf_models.write_lines(tmp_path / f"{name}.jsonl", some)
                   for name, some in (("data", rows[:160]), ("train", rows[160:])))
    found = load_workload(str(base), task="text-classification", data=data, train=train,
                          reference="train(adamw(lr=0.003), steps=100)")
    trial = thrifty.run(found, f"{found.reference} | compile(onnxruntime)", study=tmp_path / "study", pairs=1)
    assert trial.status == "done", trial.error
    assert trial.quality is not None and trial.quality.value > 0.7
    thrifty.save_hf(tmp_path / "out", trial, found)
    with quiet() as transformers, torch.no_grad():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
        assert model.config.label2id == {"bad": 0, "good": 1}
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        told = [model(**{k: v for k, v in tokenizer(text, return_tensors="pt").items() if k != "token_type_ids"}).logits.argmax()
                for text in found.validation.texts]  # type: ignore[attr-defined]
    hits = sum(int(one) == target for one, target in zip(told, found.validation.targets, strict=True))  # type: ignore[attr-defined]
    assert hits == round(trial.quality.value * len(told))


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
