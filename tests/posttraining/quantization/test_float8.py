"""The scheme fp8: which layers, that it is kept in one byte a weight, that it stays close, and what it refuses."""

from __future__ import annotations

import copy
import json

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from thrifty import Quantize
from thrifty.artifacts import artifact
from thrifty.compilers.auto import candidates
from thrifty.compilers.export import Export
from thrifty.errors import RecipeError, ThriftyError
from thrifty.numerics.modules import Float8Linear, GroupedLinear, InBfloat16, QuantEmbedding, QuantLinear
from thrifty.posttraining.quantization.listing import layers
from thrifty.posttraining.quantization.probes import bytes_a_weight, float8_layers
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import HyperparameterError
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.transform import Plan


class Words(nn.Module):
    """An embedding that a head shares, and layers between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.inner = nn.Embedding(50, 32), nn.Sequential(nn.Linear(32, 65), nn.GELU(), nn.Linear(65, 32))
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(x + self.inner(x))  # type: ignore[no-any-return]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 33), nn.ReLU(), nn.Linear(33, 5)).eval()


def images() -> Tensor:
    return torch.randn(64, 3, 12, generator=torch.Generator().manual_seed(1))


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("rest", ["fp32", "bf16"])
def test_linear_layers_become_float8_without_data_and_stay_close(rest: str) -> None:
    model, x = net(), images()
    found = Quantize("fp8", rest=rest)(model)
    inner = found.module if isinstance(found, InBfloat16) else found
    assert [type(inner[i]) for i in (0, 3, 5)] == [nn.Conv1d, Float8Linear, Float8Linear]
    assert float8_layers(found) == 2 and {inner[i].weight.dtype for i in (3, 5)} == {torch.float8_e4m3fn}
    with torch.no_grad():
        assert 0.003 < error(found(x), model(x)) < 0.06


def test_it_is_built_again_from_files_a_byte_a_weight(tmp_path) -> None:
    method, model, x = Quantize("fp8"), net(), images()
    plan = method.plan(model, Context.of([x]))
    first = method.build(copy.deepcopy(model), plan)
    safetensors.torch.save_file(first.state_dict(), tmp_path / "model.safetensors")
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert state["3.weight"].dtype == torch.float8_e4m3fn
    torch.manual_seed(7)
    fresh = net()
    for parameter in fresh.parameters():
        nn.init.normal_(parameter)
    again = method.build(fresh, Plan(json.loads(json.dumps(dict(plan.values))), plan.tensors))
    again.load_state_dict(state)
    assert torch.equal(again(x), first(x))
    assert bytes_a_weight(nn.Sequential(first[3], first[5])) == 1.0
    assert {row["layer"]: row["scheme"] for row in layers(first, plan)} == {"0": "fp32", "3": "fp8", "5": "fp8"}


def test_an_exported_artifact_answers_the_same(tmp_path) -> None:
    found, x = Quantize("fp8")(net()), images()[:2]
    record = Export().lower(found, (x,), tmp_path, Context.of([x]))
    assert record.precision == "fp8"
    artifact.write(tmp_path, record, {}, [x.numpy()], [found(x).numpy()])
    assert torch.equal(artifact.load(tmp_path)(x), found(x))


def test_embeddings_and_what_shares_their_weight_stay_float() -> None:
    model, ids = Words(), torch.arange(12).reshape(3, 4)
    found = Quantize("fp8")(model)
    assert type(found.table) is nn.Embedding and found.head.weight is found.table.weight and float8_layers(found) == 2
    assert error(found(ids), model(ids).detach()) < 0.05
    with pytest.raises(HyperparameterError, match="'head', whose weight is shared with an embedding"):
        Quantize("w8a8", layers={"head": "fp8"})(model, [ids])
    with pytest.raises(HyperparameterError, match="an embedding, which is quantized to int8"):
        Quantize("fp8", layers={"table": "fp8"})(model)


def test_layers_may_be_of_other_schemes() -> None:
    model, ids = Words(), torch.arange(12).reshape(3, 4)
    assert Quantize("fp8", layers={"0": "w8a8"}).provides >= {"float8-products", "integer-products"}
    calibrated = {each: Quantize("fp8", layers={"0": each}, algorithm="rtn").calibrated for each in ("w8a8", "w8a16", "fp32")}
    assert calibrated == {"w8a8": True, "w8a16": False, "fp32": False}
    found = Quantize("fp8", layers={"0": "w8a16", "table": "w8a8"})(model, [ids])
    assert [type(found.inner[i]) for i in (0, 2)] == [GroupedLinear, Float8Linear]
    assert isinstance(found.table, QuantEmbedding) and error(found(ids), model(ids).detach()) < 0.06


def test_float8_of_one_layer_is_written_in_a_recipe() -> None:
    recipe = Recipe.parse("quantize(w8a8, layers={'3': fp8})")
    assert Recipe.parse(str(recipe)) == recipe
    (method,), model, x = recipe, net(), images()
    found = method(model, [x])
    assert isinstance(found.get_submodule("3"), Float8Linear) and isinstance(found.get_submodule("5"), QuantLinear)
    assert error(found(x), model(x).detach()) < 0.06


@pytest.mark.parametrize("algorithm", ["gptq", "awq", "hqq", "smoothquant", "adaround"])
def test_float8_is_rounded_to_the_nearest_alone(algorithm: str) -> None:
    with pytest.raises(HyperparameterError, match="fp8 rtn"):
        Quantize("fp8", algorithm=algorithm)(net(), [images()])


def test_training_takes_integers_alone() -> None:
    with pytest.raises(RecipeError, match="scheme must be one of w8a8"):
        Recipe.parse("train(qat(fp8))")


def test_it_is_quantized_once() -> None:
    with pytest.raises(ThriftyError, match="layer '3' is already quantized"):
        Quantize("fp8")(Quantize("fp8")(net()))


def test_a_race_is_of_those_that_take_float8() -> None:
    assert set(candidates(Quantize("fp8")(net()), "cuda")) <= {"inductor", "export"}
