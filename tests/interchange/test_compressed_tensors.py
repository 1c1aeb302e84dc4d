"""Directories of compressed-tensors: as its package writes them, as transformers reads them, and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import hf_models
from torch import Tensor, nn

from thrifty.errors import WorkloadError
from thrifty.interchange.compressed_tensors import export_compressed_tensors, import_compressed_tensors
from thrifty.interchange.layers import InterchangeError
from thrifty.numerics.modules import GroupedLinear, InBfloat16, QuantLinear
from thrifty.posttraining.quantize import Quantize
from thrifty.workloads.huggingface.models import ImageLogits, TextLogits, TokenLogits, load_body, quiet
from thrifty.workloads.loading import load_workload

IDS = torch.randint(0, 90, (4, 12), generator=torch.Generator().manual_seed(0))
VECTORS = "o_proj|down_proj"
RECIPES = {
    "w4a16 g32": Quantize("w4a16", group=32, algorithm="rtn"),
    "w4a16 g128": Quantize("w4a16", group=128, algorithm="hqq"),
    "w4a16 gptq, the head float": Quantize("w4a16", group=32, algorithm="gptq", layers={"lm_head": "fp32"}),
    "w8a16": Quantize("w8a16", algorithm="rtn"),
    "w8a8": Quantize("w8a8", algorithm="rtn"),
    "w4a8": Quantize("w4a8", algorithm="rtn"),
    "mixed": Quantize("w4a16", group=32, algorithm="rtn", layers={"q_proj|k_proj|v_proj": "w8a8", "lm_head": "w8a16"}),
    "awq into norms": Quantize("w4a16", group=32, algorithm="awq", layers={VECTORS: "fp32"}),
    "smoothquant into norms": Quantize("w8a8", layers={VECTORS: "w8a16"}),
    "the rest in bf16": Quantize("w4a16", group=32, algorithm="rtn", rest="bf16"),
}
SIZES = {"hidden_size": 128, "intermediate_size": 256}


def qwen(path: Path) -> Path:
    """With biases, and one table for the first layer and the last."""
    return _made(path, "Qwen2", num_key_value_heads=2, tie_word_embeddings=True, **SIZES)


def opt(path: Path) -> Path:
    """With LayerNorm, biases everywhere and one table."""
    return _made(path, "OPT", hidden_size=128, ffn_dim=256, word_embed_proj_dim=128)


def _made(path: Path, kind: str, **config: Any) -> Path:
    with quiet() as transformers:
        torch.manual_seed(0)
        made = getattr(transformers, f"{kind}Config")(
            vocab_size=90, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64, init_std=0.2,
            initializer_range=0.2, bos_token_id=0, eos_token_id=0, pad_token_id=0, **config)
        return hf_models.save(getattr(transformers, f"{kind}ForCausalLM")(made).eval(), path)


FLOAT = {"llama": lambda path: hf_models.llama(path, config=SIZES), "qwen2": qwen, "opt": opt}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("float")
    return {name: make(place / name) for name, make in FLOAT.items()}


def quantized(source: Path, recipe: str) -> nn.Module:
    return RECIPES[recipe](TokenLogits(load_body(source, "AutoModelForCausalLM")), [IDS])


@torch.no_grad()
def answers(model: nn.Module) -> Tensor:
    return model(IDS)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm())


# -- back ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "recipe"), [
    *(("llama", recipe) for recipe in RECIPES),
    ("qwen2", "w4a16 g32"), ("qwen2", "w8a8"), ("opt", "w4a16 g128"), ("opt", "w8a8")])
def test_what_is_written_is_read_again_and_written_alike(name: str, recipe: str, sources: dict[str, Path],
                                                         tmp_path: Path) -> None:
    model = quantized(sources[name], recipe)
    first = export_compressed_tensors(model, tmp_path / "first")
    again = import_compressed_tensors(first)
    assert distance(answers(model), answers(again)) <= (2e-5 if "norms" in recipe else 1e-6)
    assert isinstance(again, InBfloat16) == ("bf16" in recipe)
    kinds = [sum(isinstance(m, kind) for m in model.modules()) for kind in (GroupedLinear, QuantLinear)]
    tied = name != "llama" and kinds[0] > 0  # the head that shares a table is float in the directory
    found = [sum(isinstance(m, kind) for m in again.modules()) for kind in (GroupedLinear, QuantLinear)]
    assert found == [kinds[0] - tied, kinds[1]] and sum(found)
    assert ("lm_head" in json.loads((first / "config.json").read_text())["quantization_config"]["ignore"]) == (
        tied or "head float" in recipe)
    second = export_compressed_tensors(again, tmp_path / "second")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_an_imported_model_is_compiled(sources: dict[str, Path], tmp_path: Path) -> None:
    from tests.compilers.nets import called, lowered

    from thrifty.compilers.export import Export

    module = import_compressed_tensors(export_compressed_tensors(quantized(sources["llama"], "w4a16 g32"), tmp_path / "out"))
    (tmp_path / "engine").mkdir()
    _, engine, _ = lowered(Export(), module, (IDS,), tmp_path / "engine")
    assert distance(answers(module), called(engine, IDS)) < 1e-5


def test_encoders_too(tmp_path: Path) -> None:
    source = hf_models.bert(tmp_path / "bert")
    mask = torch.ones_like(IDS)
    body = TextLogits(load_body(source, "AutoModelForSequenceClassification"))
    model = Quantize("w4a16", group=32, algorithm="rtn")(body, [(IDS % 40, mask)])
    again = import_compressed_tensors(export_compressed_tensors(model, tmp_path / "out"))
    torch.testing.assert_close(again(IDS % 40, mask), model(IDS % 40, mask), atol=1e-6, rtol=1e-6)


# -- as others read and write it ----------------------------------------------------------------------------------


def as_transformers(directory: Path, **options: Any) -> nn.Module:
    pytest.importorskip("compressed_tensors")
    with quiet() as transformers:
        if options:
            options = {"quantization_config": transformers.CompressedTensorsConfig(**options)}
        return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="auto", local_files_only=True, **options).eval()


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize(("name", "recipe"), [
    ("llama", "w4a16 g32"), ("llama", "w4a16 g128"), ("llama", "w8a16"), ("llama", "w4a16 gptq, the head float"),
    ("llama", "awq into norms"), ("qwen2", "w4a16 g32"), ("opt", "w4a16 g128")])
def test_transformers_answers_the_same(name: str, recipe: str, sources: dict[str, Path], tmp_path: Path) -> None:
    model = quantized(sources[name], recipe)
    read = as_transformers(export_compressed_tensors(model, tmp_path / "out"), dequantize=True)
    with torch.no_grad():
        torch.testing.assert_close(read(IDS).logits, answers(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("group", [32, 128])
def test_transformers_reads_symmetric_grids_as_they_are(group: int, sources: dict[str, Path], tmp_path: Path) -> None:
    model = quantized(sources["llama"], f"w4a16 g{group}")
    for layer in model.modules():
        if isinstance(layer, GroupedLinear):
            layer.zero.fill_(2 ** (layer.bits - 1))
    out = export_compressed_tensors(model, tmp_path / "out")
    assert not [name for name in load_file(out / "model.safetensors") if "zero_point" in name]
    with torch.no_grad():
        torch.testing.assert_close(as_transformers(out)(IDS).logits, answers(model), atol=1e-4, rtol=1e-4)


def package_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """As the package rounds tokens: 255 steps from -m to m, in -128..127."""
    scale = x.float().abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127.5
    return torch.round((x.float() / scale).clamp(-128, 127)), scale


@pytest.mark.parametrize(("name", "recipe"), [("llama", "w8a8"), ("llama", "w4a8"), ("qwen2", "w8a8"), ("opt", "w8a8")])
@torch.no_grad()
def test_transformers_multiplies_the_same_integers(name: str, recipe: str, sources: dict[str, Path], tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole models without rounding of tokens; each layer with it, on transformers' grid, whose ties lie at every peak."""
    model = quantized(sources[name], recipe)
    read = as_transformers(export_compressed_tensors(model, tmp_path / "out"))
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    layers = {layer: module for layer, module in model.body.named_modules() if isinstance(module, QuantLinear)}
    handles = [read.get_submodule(layer).register_forward_hook(
        lambda _, inputs, output, layer=layer: seen.update({layer: (inputs[0], output)})) for layer in layers]
    read(IDS)
    for handle in handles:
        handle.remove()
    monkeypatch.setattr("thrifty.numerics.modules.per_token", package_tokens)
    for layer, (x, y) in seen.items():
        if x.dim() == 3:  # where OPT flattens tokens, the package takes one scale for all
            assert distance(y, layers[layer](x)) < 1e-5
    monkeypatch.setattr("thrifty.numerics.modules.per_token", lambda x: (x, torch.ones(())))
    for module in read.modules():
        module.quantization_enabled = False
    assert seen.keys() == layers.keys()
    torch.testing.assert_close(read(IDS).logits, model(IDS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("recipe", ["w4a16 g32", "w8a8"])
def test_the_package_writes_the_same_files(recipe: str, sources: dict[str, Path], tmp_path: Path) -> None:
    """Its own quantization to nearest with our scales, by its own compressor, gives our tensors and our config."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    ours = export_compressed_tensors(quantized(sources["llama"], recipe), tmp_path / "ours")
    config = json.loads((ours / "config.json").read_text())["quantization_config"]
    model = load_body(sources["llama"], "AutoModelForCausalLM")
    apply_quantization_config(model, QuantizationConfig.model_validate({**config, "quantization_status": "frozen"}))
    mine = quantized(sources["llama"], recipe).body
    for name, module in model.named_modules():
        if hasattr(module, "quantization_scheme"):
            layer = mine.get_submodule(name)
            module.weight_scale.data = layer.scale.reshape(module.weight_scale.shape).clone()
            if isinstance(layer, GroupedLinear):
                module.weight_zero_point.data = (layer.zero.int() - 2 ** (layer.bits - 1)).to(torch.int8)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "theirs")
    compressor.update_config(str(tmp_path / "theirs"))
    found, expected = load_file(ours / "model.safetensors"), load_file(tmp_path / "theirs" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if name != "model.embed_tokens.weight":  # ours was in int8
            assert torch.equal(found[name], tensor), name
            assert found[name].dtype == tensor.dtype
    theirs = json.loads((tmp_path / "theirs" / "config.json").read_text())["quantization_config"]
    assert config.items() <= theirs.items()


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recipe", "said"), [
    (Quantize("w8a8"), "divides its inputs by a vector.*algorithm=rtn"),
    (Quantize("w4a16", group=32, algorithm="awq"), "divides its inputs by a vector.*algorithm=gptq or hqq"),
    (Quantize("w3a16", group=32, algorithm="rtn"), "weights of 3 bits.*w4a16"),
    (Quantize("w8a8", algorithm="rtn", activations="static"), "one scale, which cannot be written.*activations=static"),
    (Quantize("bf16"), "no quantized linear layer"),
    (Quantize("fp8"), "in float8, which cannot be written"),
])
def test_models_that_do_not_fit_are_refused(recipe: Quantize, said: str, sources: dict[str, Path], tmp_path: Path) -> None:
    model = recipe(TokenLogits(load_body(sources["llama"], "AutoModelForCausalLM")), [IDS])
    with pytest.raises(InterchangeError, match=said):
        export_compressed_tensors(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_models_of_other_kinds_are_refused(tmp_path: Path) -> None:
    body = load_body(hf_models.gpt2(tmp_path / "gpt2"), "AutoModelForCausalLM")
    with pytest.raises(InterchangeError, match="GPT2LMHeadModel stores its linear layers transposed"):
        export_compressed_tensors(Quantize("w8a8", algorithm="rtn")(TokenLogits(body), [IDS]), tmp_path / "out")
    body = load_body(hf_models.vit(tmp_path / "vit"), "AutoModelForImageClassification")
    model = Quantize("w4a16", group=32, algorithm="rtn")(ImageLogits(body), [torch.randn(2, 3, 16, 16)])
    with pytest.raises(InterchangeError, match="ViTForImageClassification is not a model of single texts"):
        export_compressed_tensors(model, tmp_path / "out")
    with pytest.raises(WorkloadError, match="no transformers model"):
        export_compressed_tensors(nn.Linear(2, 2), tmp_path / "out")


def test_a_model_that_computes_more_than_its_class_is_not_kept(sources: dict[str, Path], tmp_path: Path) -> None:
    model = quantized(sources["llama"], "w8a8")
    for layer in model.body.model.layers:
        layer.mlp.act_fn = nn.ReLU()
    with pytest.raises(InterchangeError, match="gives different outputs"):
        export_compressed_tensors(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InterchangeError, match="not empty"):
        export_compressed_tensors(quantized(sources["llama"], "w8a8"), sources["llama"])


@pytest.fixture(scope="module")
def directory(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_compressed_tensors(quantized(sources["llama"], "w4a16 g32"), tmp_path_factory.mktemp("ct") / "out")


def damaged(directory: Path, place: Path, change: Any) -> Path:
    shutil.copytree(directory, place)
    tensors = load_file(place / "model.safetensors")
    change(tensors)
    save_file(tensors, place / "model.safetensors")
    return place


@pytest.mark.parametrize(("change", "said"), [
    (lambda t: t.pop("model.norm.weight"), "the weights lack model.norm.weight"),
    (lambda t: t.pop("model.layers.0.mlp.up_proj.weight_packed"), "has no weight_packed"),
    (lambda t: t.pop("model.layers.0.mlp.up_proj.weight_scale"), "the weights lack model.layers.0.mlp.up_proj.weight"),
    (lambda t: t.update(more=torch.ones(1)), "the weights contain more"),
    (lambda t: t.update({"more.weight_scale": torch.ones(1)}), "'more' is stored as integers"),
    (lambda t: t.update({"model.norm.weight": torch.ones(1)}), r"model.norm.weight is float32 \[1\]"),
    (lambda t: t.update({"model.norm.weight": torch.ones(128, dtype=torch.int8)}), "model.norm.weight is int8"),
])
def test_damaged_weights_are_named(change: Any, said: str, directory: Path, tmp_path: Path) -> None:
    with pytest.raises(InterchangeError, match=said):
        import_compressed_tensors(damaged(directory, tmp_path / "in", change))


def header(text: bytes, size: int | None = None) -> bytes:
    return (len(text) if size is None else size).to_bytes(8, "little") + text


@pytest.mark.parametrize("head", [b"", b"\xff" * 8, header(b"{}", 2**40), header(b"[]"),
                                  header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,900]}}')])
def test_hostile_weights_are_refused(head: bytes, directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "in")
    (tmp_path / "in" / "model.safetensors").write_bytes(head)
    with pytest.raises(InterchangeError, match="model.safetensors is not a safetensors file, or is damaged"):
        import_compressed_tensors(tmp_path / "in")


def test_other_directories_are_refused(directory: Path, sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InterchangeError, match="weights are floating point"):
        import_compressed_tensors(sources["llama"])
    with pytest.raises(WorkloadError, match="no directory"):
        import_compressed_tensors(tmp_path / "nowhere")
    shutil.copytree(directory, tmp_path / "code")
    config = json.loads((directory / "config.json").read_text())
    (tmp_path / "code" / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(WorkloadError, match="auto_map"):
        import_compressed_tensors(tmp_path / "code")
    shutil.copytree(directory, tmp_path / "kind")
    (tmp_path / "kind" / "config.json").write_text(json.dumps({**config, "model_type": "nothing"}))
    with pytest.raises(InterchangeError, match="transformers cannot load"):
        import_compressed_tensors(tmp_path / "kind")


def test_a_workload_starts_from_floating_point(directory: Path) -> None:
    with pytest.raises(WorkloadError, match=r"already quantized \(compressed-tensors\).*thrifty.import_compressed_tensors"):
        load_workload(str(directory))
