"""Weights of few bits on whole models: every algorithm, every scheme, bad data, bad layers."""

from __future__ import annotations

import copy
import json

import pytest
import safetensors.torch
import torch
from torch import nn

from thrifty import Quantize, testing
from thrifty.errors import NoEffect, ThriftyError
from thrifty.numerics.grouped import output_error
from thrifty.numerics.modules import GroupedEmbedding, GroupedLinear, QuantEmbedding, QuantLinear
from thrifty.numerics.observers import CalibrationError
from thrifty.numerics.packed import PackedConv
from thrifty.posttraining.quantization.probes import bytes_a_weight
from thrifty.posttraining.quantization.reads import Reads
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import HyperparameterError
from thrifty.recipes.transform import Plan

ALGORITHMS = ("rtn", "gptq", "awq", "hqq")


class Net(nn.Module):
    """Two layers that read one tensor, one behind them, and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 64)
        self.query, self.key = nn.Linear(64, 64, bias=False), nn.Linear(64, 64)
        self.out = nn.Linear(64, 32)

    def forward(self, ids):
        x = torch.tanh(self.table(ids))
        return self.out(torch.tanh(self.query(x) * self.key(x)) + x)


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def ids(seed: int = 0, n: int = 24) -> torch.Tensor:
    return torch.randint(60, (n, 10), generator=torch.Generator().manual_seed(seed))


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).detach().norm() / want.detach().norm())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("scheme", "most"), [("w8a16", 0.02), ("w4a16", 0.25), ("w3a16", 0.5)])
def test_every_scheme_by_every_algorithm(scheme, most, algorithm):
    model, data = net(), [ids(), ids(1)]
    quantized = Quantize(scheme, algorithm=algorithm, group=128 if scheme == "w8a16" else 32)(model, data)
    assert sum(isinstance(m, GroupedLinear) for m in quantized.modules()) == 3
    assert isinstance(quantized.table, QuantEmbedding)
    assert error(quantized(data[0]), model(data[0])) < most
    assert bytes_a_weight(quantized) < (1.4 if scheme == "w8a16" else 1.1)


def test_what_looks_at_data_loses_less_than_what_does_not():
    model, data = net(), [ids(), ids(1)]
    lost = {name: error(Quantize("w3a16", group=32, algorithm=name, layers={"table": "fp32"})(model, data)(data[0]),
                        model(data[0])) for name in ALGORITHMS}
    assert lost["gptq"] < lost["awq"] < lost["rtn"]
    assert lost["hqq"] < lost["rtn"]


@pytest.mark.parametrize("algorithm", ["gptq", "awq"])
@pytest.mark.parametrize("scheme", ["w4a16", "w3a16"])
def test_every_layer_of_a_trained_model_loses_less_than_by_rounding_to_nearest(algorithm, scheme):
    model = testing.trained().eval()
    batches, held = ([x.tensors[0]] for x in (testing.stripes(256, 0), testing.stripes(256, 5)))
    plans = {name: Quantize(scheme, group=32, algorithm=name)(model, batches) for name in (algorithm, "rtn")}
    for name in ("head.0", "head.2"):
        weight = model.get_submodule(name).weight.detach()
        others = {key: dequantized(made.get_submodule(name)) for key, made in plans.items()}
        for data in (batches, held):
            moment = Reads.of(name, read_by(model, name, data)).moment
            assert output_error(weight, others[algorithm], moment) < output_error(weight, others["rtn"], moment)


def dequantized(layer: nn.Module) -> torch.Tensor:
    assert isinstance(layer, GroupedLinear)
    return layer.dequantized() if layer.smooth is None else layer.dequantized() / layer.smooth


def read_by(model: nn.Module, name: str, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    kept: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, x: kept.append(x[0].detach()))
    for batch in batches:
        model(batch)
    handle.remove()
    return kept


def test_hqq_and_rtn_need_no_data():
    model = net()
    for algorithm in ("rtn", "hqq"):
        method = Quantize("w4a16", group=32, algorithm=algorithm)
        assert not method.calibrated
        assert error(method(model)(ids()), model(ids())) < 0.3
    assert Quantize("w4a16").calibrated and Quantize("w4a16", algorithm="hqq", layers={"out": "w8a8"}).calibrated
    with pytest.raises(ThriftyError, match="calibration data is empty"):
        Quantize("w4a16")(model)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_plan_rebuilds_the_model_from_files(tmp_path, algorithm):
    model, method = net(), Quantize("w3a16", group=64, algorithm=algorithm)
    plan = method.plan(model, Context.of([ids()]))
    first = method.build(copy.deepcopy(model), plan)
    safetensors.torch.save_file(first.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(5)
    fresh = method.build(Net(), Plan(json.loads(json.dumps(dict(plan.values))), plan.tensors))
    fresh.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert torch.equal(fresh(ids(3)), first(ids(3)))


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16", "w3a16"])
def test_rtn_equals_torchaos(scheme):
    primitives = pytest.importorskip("torchao.quantization.quant_primitives")
    model, bits = net(), int(scheme[1])
    layer = Quantize(scheme, group=128 if scheme == "w8a16" else 32, algorithm="rtn")(model).out
    weight, block = model.out.weight.detach(), (1, 64 if bits == 8 else 32)
    scale, zero = primitives.choose_qparams_affine(
        weight, primitives.MappingType.ASYMMETRIC, block, torch.int32, 0, 2**bits - 1, eps=1e-12,
        scale_dtype=torch.float32, zero_point_dtype=torch.int32)
    q = primitives.quantize_affine(weight, block, scale, zero, torch.int32, 0, 2**bits - 1)
    theirs = primitives.dequantize_affine(q, block, scale, zero, torch.int32, 0, 2**bits - 1)
    torch.testing.assert_close(layer.dequantized(), theirs, rtol=1e-6, atol=1e-7)


def test_schemes_of_some_layers():
    model = net()
    quantized = Quantize("w4a16", group=32, layers={"query|key": "w8a8", "out": "fp32", "table": "fp32"})(model, [ids()])
    kinds = {name: type(module) for name, module in quantized.named_children()}
    assert kinds == {"table": nn.Embedding, "query": QuantLinear, "key": QuantLinear, "out": nn.Linear}
    assert torch.equal(quantized.query.smooth, quantized.key.smooth)


def test_what_is_tied_stays_tied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.inner, self.head = nn.Embedding(60, 64), nn.Linear(64, 64), nn.Linear(64, 60, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids):
            return self.head(self.inner(self.table(ids)))

    torch.manual_seed(0)
    model = Tied().eval()
    for algorithm in ALGORITHMS:
        quantized = Quantize("w4a16", group=32, algorithm=algorithm)(model, [ids()])
        assert isinstance(quantized.table, GroupedEmbedding) and quantized.head.bits == 8
        assert quantized.table.packed.data_ptr() == quantized.head.packed.data_ptr()
        assert quantized.head.smooth is None
        assert error(quantized(ids()), model(ids())) < 0.2


def test_layers_under_other_names():
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(60, 64), pytorch_utils.Conv1D(96, 64), nn.Tanh(), nn.Linear(96, 8)).eval()
    for scheme, group in (("w8a8", 128), ("w4a16", 32)):
        quantized = Quantize(scheme, group=group)(model, [ids()])
        assert error(quantized(ids()), model(ids())) < 0.2
        assert type(quantized[1]) is (QuantLinear if scheme == "w8a8" else GroupedLinear)


def test_a_bfloat16_rest():
    model = net()
    quantized = Quantize("w4a16", group=32, rest="bf16")(model, [ids()])
    assert quantized.module.out.packed.dtype == torch.uint8
    assert error(quantized(ids()), model(ids())) < 0.3


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "says"), [
    ({"scheme": "w8a8", "algorithm": "gptq"}, "weight-only schemes"),
    ({"scheme": "w4a16", "algorithm": "smoothquant"}, "integer schemes"),
    ({"scheme": "w8a8", "group": 64}, "omit group"),
    ({"scheme": "w4a16", "activations": "static"}, "omit activations"),
    ({"scheme": "bf16", "layers": {"out": "fp32"}}, "whole model"),
    ({"scheme": "w4a16", "group": 32, "layers": {"qery": "fp32"}}, "nearest: query"),
    ({"scheme": "w4a16", "group": 32, "layers": {"table": "w3a16"}}, "an embedding"),
])
def test_settings_that_do_not_go_together(settings, says):
    with pytest.raises(HyperparameterError, match=says):
        Quantize(**settings)(net(), [ids()])


def test_a_group_that_does_not_divide_names_those_that_would():
    with pytest.raises(ThriftyError, match="'query' reads 64 inputs, which groups of 128 do not divide; groups of 32 or 64"):
        Quantize("w4a16")(net(), [ids()])
    with pytest.raises(ThriftyError, match="do not divide; nor does any of 32, 64, 128: give the layer a scheme without groups"):
        Quantize("w4a16")(nn.Sequential(nn.Linear(40, 40)), [torch.randn(9, 40)])


def test_convolutions_are_rounded_beside_products():
    model = testing.trained()
    data = [testing.stripes(32, 0).tensors[0]]
    quantized = Quantize("w4a16", group=32)(model, data)
    assert type(quantized.stem[0]) is PackedConv and type(quantized.head[0]) is GroupedLinear
    kept = Quantize("w4a16", group=32, layers={r"stem\.0": "fp32"})(model, data)
    assert type(kept.stem[0]) is nn.Conv2d


def test_a_model_that_is_quantized_already():
    quantized = Quantize("w4a16", group=32, layers={"out": "fp32"})(net(), [ids()])
    with pytest.raises(ThriftyError, match="'table' is already quantized"):
        Quantize("w8a8")(quantized, [ids()])


def test_layers_that_would_grow_stay_float_and_are_told_of():
    told: list[str] = []
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 1)).eval()
    data = torch.randn(32, 64)
    context = Context((data[:1],), lambda: iter([(data,)]), progress=told.append)
    for scheme in ("w8a8", "w4a16"):
        method = Quantize(scheme, group=64 if scheme == "w4a16" else 128)
        assert type(method.build(copy.deepcopy(model), method.plan(model, context))[1]) is nn.Linear
        assert any("left float" in text and "1" in text for text in told)
    with pytest.raises(NoEffect, match="scales would outweigh"):
        Quantize("w8a8")(nn.Sequential(nn.Linear(64, 1)), [data])


@pytest.mark.parametrize("algorithm", ["gptq", "awq"])
@pytest.mark.parametrize(("data", "says"), [
    (torch.full((16, 64), float("nan")), "NaN or infinity"),
    (torch.full((16, 64), float("inf")), "NaN or infinity"),
    (torch.zeros(16, 64), "constant 0"),
    (torch.randn(3, 64), "saw 3 rows"),
])
def test_data_that_say_nothing(algorithm, data, says):
    with pytest.raises(CalibrationError, match=f"layer '0' saw.*{says}|{says}"):
        Quantize("w4a16", group=32, algorithm=algorithm)(nn.Sequential(nn.Linear(64, 64)), [data])


@pytest.mark.parametrize("algorithm", ["gptq", "awq"])
def test_inputs_that_never_vary(algorithm):
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    x[:, :32] = 0.0
    x[:, 32] = 1.0
    model = nn.Sequential(nn.Linear(64, 48)).eval()
    quantized = Quantize("w4a16", group=32, algorithm=algorithm)(model, [x])
    assert error(quantized(x), model(x)) < 0.2


def test_layers_that_data_do_not_reach_are_named():
    model = net()
    model.idle = nn.Linear(64, 64)
    assert isinstance(Quantize("w4a16", group=32)(model, [ids()]).idle, nn.Linear)
    assert Quantize("w4a16", group=32).plan(model, Context.of([ids()])).values["left"]["idle"] == (
        "calibration does not reach it")
    assert isinstance(Quantize("w4a16", group=32, layers={"idle": "fp32"})(model, [ids()]).idle, nn.Linear)
    assert isinstance(Quantize("w4a16", group=32, algorithm="hqq")(model, [ids()]).idle, GroupedLinear)  # it needs no data
