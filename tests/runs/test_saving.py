"""A trial's model again; as a directory of transformers, loaded by transformers itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from tests import hf_models
from tests.studies.test_store import trial as some_trial
from thrifty.interchange.compressed_tensors import import_compressed_tensors
from thrifty.recipes.recipe import Recipe
from thrifty.runs import cache, checkpoint
from thrifty.runs.execution import Execution
from thrifty.runs.job import Job, checkpoint_key
from thrifty.runs.saving import SavingError, model_of, save, save_hf
from thrifty.studies.trial import Trial
from thrifty.target import Target
from thrifty.workloads.fingerprint import fingerprint
from thrifty.workloads.huggingface.models import quiet
from thrifty.workloads.loading import load_workload
from thrifty.workloads.workload import Workload

TRAIN = "train(adamw(lr=0.01), steps=6)"


def trial_of(workload: Workload, recipe: str) -> Trial:
    """A trial whose phases really ran, in this process; what is measured of an engine is left out."""
    target, whole = Target(), fingerprint(workload)
    Execution(Job(workload.source, whole, recipe, 0, target, lower=False), lambda event: None).outcome()
    return some_trial("a1", workload=workload.name, workload_hash=whole, recipe=recipe, target=target.to_json())


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    folder = hf_models.bert(tmp_path_factory.mktemp("hf") / "bert")
    hf_models.reviews(folder / "data.jsonl")
    return load_workload(str(folder))


def answers(folder: Path, auto: str, **inputs: torch.Tensor) -> torch.Tensor:
    """What transformers itself gives, in the dtype of the file."""
    with quiet() as transformers, torch.no_grad():
        model = getattr(transformers, auto).from_pretrained(folder, dtype="auto", local_files_only=True).eval()
        return model(**inputs).logits.float()


def expected(workload: Workload, trial: Trial) -> torch.Tensor:
    with torch.no_grad():
        return model_of(trial, workload)(*workload.example(6))


@pytest.mark.parametrize(("recipe", "bound"), [
    (TRAIN, 0.0),
    ("quantize(bf16)", 0.0),
    (f"{TRAIN} | prune(ratio=0.3) | {TRAIN}", 1e-5),
])
def test_transformers_loads_what_is_saved(recipe: str, bound: float, bert: Workload, tmp_path: Path) -> None:
    trial = trial_of(bert, recipe)
    saved = save_hf(tmp_path / "out", trial, bert)
    ids, mask = bert.example(6)
    found = answers(saved, "AutoModelForSequenceClassification", input_ids=ids, attention_mask=mask)
    assert float((found - expected(bert, trial)).abs().max()) <= bound
    original = Path(bert.source.removeprefix("hf:").partition("?")[0])
    assert (saved / "tokenizer.json").read_bytes() == (original / "tokenizer.json").read_bytes()
    card = (saved / "README.md").read_text()
    assert f"recipe: {json.dumps(recipe)}" in card and "BertForSequenceClassification" in card
    assert not list(tmp_path.glob(".*"))
    again = load_workload(f"hf:{saved}?data={original / 'data.jsonl'}")
    assert len(again.validation) == len(bert.validation)
    before = torch.cat([p.flatten() for p in bert.model().parameters()])
    after = torch.cat([p.flatten() for p in again.model().parameters()])
    assert before.shape != after.shape or not torch.equal(before, after)


def test_pruned_widths_are_named_in_the_config_or_filled_with_zeros(bert: Workload, tmp_path: Path) -> None:
    trial = trial_of(bert, "prune(ratio=0.3)")
    model = model_of(trial, bert)
    widths = [layer.intermediate.dense.out_features for layer in model.body.bert.encoder.layer]
    pooled = model.body.bert.pooler.dense.out_features
    saved = save_hf(tmp_path / "out", trial, bert)
    assert json.loads((saved / "config.json").read_text())["intermediate_size"] == max(widths) < 64
    assert pooled < 32, "the pooler was pruned too, and no config can say so"


@pytest.mark.parametrize(("make", "auto"), [
    (hf_models.llama, "AutoModelForCausalLM"),
    pytest.param(hf_models.gpt2, "AutoModelForCausalLM", marks=pytest.mark.slow),
    pytest.param(hf_models.vit, "AutoModelForImageClassification", marks=pytest.mark.slow),
])
def test_other_architectures_come_back_pruned(make, auto, tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    images = auto.endswith("ImageClassification")
    (hf_models.pictures if images else hf_models.prose)(folder / "data.jsonl")
    beside = folder / ("preprocessor_config.json" if images else "generation_config.json")
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "max_new_tokens": 7}))
    workload = load_workload(str(folder))
    trial = trial_of(workload, "prune(ratio=0.2)")
    saved = save_hf(tmp_path / "out", trial, workload)
    (inputs,) = workload.example(6)
    found = answers(saved, auto, **{"pixel_values" if images else "input_ids": inputs})
    torch.testing.assert_close(found, expected(workload, trial), atol=1e-5, rtol=1e-4)
    assert (saved / beside.name).read_bytes() == beside.read_bytes()
    config = json.loads((saved / "config.json").read_text())
    assert (config.get("n_inner") or config.get("intermediate_size")) < (128 if make is hf_models.gpt2 else 64)


def test_a_phase_that_does_not_fit_is_named(bert: Workload, tmp_path: Path) -> None:
    with pytest.raises(SavingError, match=r"^quantize\(w8a8\) does not fit the format.*--format artifact"):
        save_hf(tmp_path / "out", trial_of(bert, f"{TRAIN} | quantize"), bert)
    assert not list(tmp_path.iterdir())


def test_a_quantized_trial_is_saved_for_vllm(tmp_path: Path) -> None:
    folder = hf_models.llama(tmp_path / "llama")
    hf_models.prose(folder / "data.jsonl")
    workload = load_workload(str(folder))
    trial = trial_of(workload, "quantize(w4a16, group=32, algorithm=rtn)")
    save(tmp_path / "out", trial, "compressed-tensors", workload.source)
    (ids,) = workload.example(4)
    with torch.no_grad():
        torch.testing.assert_close(import_compressed_tensors(tmp_path / "out")(ids), model_of(trial, workload)(ids))
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert "LlamaForCausalLM" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(SavingError, match="where its workload is"):
        save(tmp_path / "other", trial, "compressed-tensors", None)


def test_a_model_that_computes_otherwise_is_not_kept(bert: Workload, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    trial = trial_of(bert, TRAIN)
    state, model = checkpoint.load(  # weights of the same shapes behind another activation
        cache.lookup("checkpoints", checkpoint_key(
            Job(bert.source, trial.workload_hash, TRAIN, 0, Target()), Recipe.parse(TRAIN))), bert.model())
    for layer in model.body.bert.encoder.layer:
        layer.intermediate.intermediate_act_fn = torch.nn.ReLU()
    monkeypatch.setattr("thrifty.runs.saving._left", lambda *_: (state, model))
    with pytest.raises(SavingError, match="gives different outputs"):
        save_hf(tmp_path / "out", trial, bert)
    assert not list(tmp_path.iterdir())


def test_bad_requests_are_answered_before_anything_runs(bert: Workload, tmp_path: Path) -> None:
    trial = trial_of(bert, TRAIN)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(SavingError, match="not empty"):
        save_hf(tmp_path / "full", trial, bert)
    with pytest.raises(SavingError, match="failed and left no model: no memory"):
        model_of(dataclasses.replace(trial, status="failed", error="no memory"), bert)
    with pytest.raises(SavingError, match="has changed since"):
        model_of(dataclasses.replace(trial, workload_hash="0" * 64), bert)
    digits = load_workload("thrifty.testing:workload")
    with pytest.raises(SavingError, match="no transformers model"):
        save_hf(tmp_path / "out", trial_of(digits, "prune(ratio=0.3)"), digits)


@pytest.mark.slow
def test_what_the_cache_lost_is_run_again(bert: Workload) -> None:
    recipe = "train(adamw(lr=0.01), steps=5)"
    trial = trial_of(bert, recipe)
    first = expected(bert, trial)
    cache.clean(everything=True)
    # The process of a run has all threads and this one has one: sums run in another order.
    torch.testing.assert_close(expected(bert, trial), first, atol=1e-3, rtol=1e-3)
