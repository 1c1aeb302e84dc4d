from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import safetensors.torch
import torch
from torch import nn

from thrifty.errors import NoEffect, ThriftyError
from thrifty.numerics.modules import QuantConv, QuantEdge, QuantEmbedding, QuantLinear
from thrifty.numerics.observers import CalibrationError
from thrifty.posttraining.quantize import Quantize, bytes_a_weight, integer_layers
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import HyperparameterError
from thrifty.recipes.transform import Plan
from thrifty.testing import SmallNet


def images(n: int = 64, channels: int = 1) -> torch.Tensor:
    return torch.randn(n, channels, 12, 12, generator=torch.Generator().manual_seed(0))


def small() -> nn.Module:
    torch.manual_seed(0)
    net = SmallNet().train()
    net(images())
    return net.eval()


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


def test_a_net_becomes_integer_and_stays_close():
    net, x = small(), images()
    before = copy.deepcopy(net.state_dict())
    quantized = Quantize()(net, [x])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())  # the input is untouched
    assert integer_layers(quantized) == 5
    assert bytes_a_weight(quantized) == 1.0
    assert any(isinstance(m, QuantEdge) for m in quantized.modules())
    with torch.no_grad():
        assert error(quantized(x), net(x)) < 0.03
        assert quantized(x[:3]).shape == (3, 4)


def test_the_plan_rebuilds_the_model_from_files(tmp_path):
    net, x = small(), images()
    method = Quantize()
    plan = method.plan(net, Context.of([x]))
    first = method.build(copy.deepcopy(net), plan)
    safetensors.torch.save_file(first.state_dict(), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size < 0.5 * sum(p.numel() * 4 for p in net.parameters())
    values = json.loads(json.dumps(dict(plan.values)))
    torch.manual_seed(7)
    fresh = method.build(SmallNet(), Plan(values, plan.tensors))  # other weights: they are loaded last
    fresh.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert torch.equal(fresh(x), first(x))


def test_bare_sequential():
    net = nn.Sequential(nn.Linear(17, 33), nn.GELU(), nn.Linear(33, 5)).eval()
    x = torch.randn(40, 17, generator=torch.Generator().manual_seed(0))
    quantized = Quantize()(net, [x])
    assert isinstance(quantized[0], QuantLinear)
    assert error(quantized(x), net(x)) < 0.02


def test_a_linear_layer_alone_is_refused_or_quantized():
    with pytest.raises(NoEffect, match="nothing to quantize"):
        Quantize()(nn.Sequential(nn.ReLU()), [torch.randn(4, 4)])


class Looks(nn.Module):
    """A model without a graph that asks for the type of a convolution's weight, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x.to(self.conv.weight.dtype))
        return y if float(x.sum()) > 1e9 else y.flatten(2).mean(2)


def test_a_model_may_ask_for_the_type_of_a_weight():
    torch.manual_seed(0)
    net, x = Looks().eval(), images(16, 3)
    quantized = Quantize()(net, [x])
    assert quantized.conv.weight.dtype == torch.float32 and bytes_a_weight(quantized) == 1.0
    assert error(quantized(x), net(x)) < 0.05


class Branch(nn.Module):
    """Its Python looks at values, so there is no graph: convolutions round their own inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)

    def forward(self, x):
        y = self.conv(x)
        return self.depthwise(y) if float(y.detach().sum()) != 1e9 else y


def test_a_net_that_cannot_be_traced():
    torch.manual_seed(0)
    net, x = Branch().eval(), images(channels=3)
    quantized = Quantize()(net, [x])
    assert [m.rounds for m in quantized.modules() if isinstance(m, QuantConv)] == [True, True]
    assert error(quantized(x), net(x)) < 0.03


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(200, 16), nn.Linear(16, 200, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.table(ids))


def test_tied_tables_stay_one():
    torch.manual_seed(0)
    net, ids = Tied().eval(), torch.arange(120).reshape(4, 30)
    quantized = Quantize()(net, [ids])
    assert isinstance(quantized.table, QuantEmbedding)
    assert quantized.table.weight.data_ptr() == quantized.head.weight.data_ptr()
    assert error(quantized(ids), net(ids)) < 0.05


@pytest.mark.parametrize(("spoil", "says"), [
    (lambda x: x * float("nan"), "NaN"), (lambda x: x * 0 + 1, "constant 1"),
])
def test_calibration_data_that_say_nothing(spoil, says):
    with pytest.raises(CalibrationError, match=f"layer .*{says}"):
        Quantize()(small(), [spoil(images())])


def test_a_layer_that_is_never_reached_stays_float_and_is_named():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return self.used(x) + self.idle(x) if self.training else self.used(x)

    net, told = Idle().eval(), list[str]()
    method, context = Quantize(), dataclasses.replace(Context.of([torch.randn(8, 16)]), progress=told.append)
    plan = method.plan(net, context)
    quantized = method.build(copy.deepcopy(net), plan)
    assert isinstance(quantized.used, QuantLinear) and isinstance(quantized.idle, nn.Linear)
    assert plan.values["left"] == {"idle": "calibration does not reach it"}
    assert any("idle (calibration does not reach it)" in line for line in told)
    assert {row["layer"]: row.get("reason") for row in method.list_layers(quantized, plan)} == {
        "used": None, "idle": "calibration does not reach it"}


def test_bfloat16():
    net, x = small(), images()
    quantized = Quantize("bf16")(net, [x])
    assert bytes_a_weight(quantized) == 2.0
    got = quantized(x)
    assert got.dtype == torch.float32
    assert error(got, net(x)) < 0.03


def test_the_rest_in_bfloat16():
    net = nn.Sequential(nn.Embedding(50, 32), nn.LayerNorm(32), nn.Linear(32, 8)).eval()
    ids = torch.arange(48).reshape(4, 12)
    quantized = Quantize(rest="bf16")(net, [ids])
    assert next(quantized.parameters()).dtype == torch.bfloat16
    assert error(quantized(ids), net(ids)) < 0.05


def test_static_grids_and_a_bfloat16_rest_are_refused():
    with pytest.raises(HyperparameterError, match="without convolutions"):
        Quantize(rest="bf16")(small(), [images()])


# -- what is left float, and named ------------------------------------------------------------------------------


class Scaled(nn.Conv2d):
    def forward(self, x):
        return super().forward(3 * x)


class Odd(nn.Module):
    """One layer of each kind that cannot be exchanged, among those that can."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.conv = Scaled(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.norm, self.up = nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 8, 2)
        self.hooked, self.head, self.aux = nn.Linear(8, 32), nn.Linear(32, 16), nn.Linear(32, 16)
        self.wave = nn.Linear(8, 32, dtype=torch.cfloat)
        self.hooked.register_forward_hook(lambda module, inputs, output: output * 0.02)

    def forward(self, x, gate=None):
        h = torch.relu(self.conv(torch.relu(self.own(x))))
        if gate is not None:
            h = h * gate
        h = self.up(torch.relu(self.norm(self.normed(h)))).mean((2, 3))
        h = self.hooked(h) + self.wave(h.cfloat()).real
        return self.head(h) + self.aux(h) if self.training else self.head(h)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "fp8"])
def test_what_cannot_be_exchanged_is_left_float_and_named(scheme):
    torch.manual_seed(0)
    net, x, told = Odd().eval(), images(), list[str]()
    method, context = Quantize(scheme), dataclasses.replace(Context.of(x.split(32)), progress=told.append)
    with torch.no_grad():
        plan = method.plan(net, context)
        quantized = method.build(copy.deepcopy(net), plan)
        assert error(quantized(x), net(x)) < (0.05 if scheme == "fp8" else 0.02)
    left = plan.values["left"]
    assert left["own"] == "a subclass that computes in its own way" and left["hooked"] == "has hooks, which read its values"
    assert left["wave"] == "complex weights" and left["up"] == "no low-precision layer replaces ConvTranspose2d"
    assert ("aux" in left) == (scheme != "fp8") and "normed" not in left.keys() - ({"normed"} if scheme == "fp8" else set())
    assert any(line.startswith("left float: ") and "own (a subclass" in line for line in told)
    rows = {row["layer"]: row for row in method.list_layers(quantized, plan)}
    assert rows["own"]["scheme"] == "fp32" and rows["own"]["reason"] == left["own"] and "reason" not in rows["head"]


def test_a_pattern_for_what_must_stay_float_is_refused_with_the_reason():
    with pytest.raises(HyperparameterError, match="'hooked', which stays float: has hooks"):
        Quantize(layers={"hooked": "w8a8"})(Odd(), [images()])
    assert isinstance(Quantize(layers={"hooked": "fp32"})(Odd(), [images()]), nn.Module)


@pytest.mark.parametrize("scheme", ["bf16", "w8a8"])
def test_bfloat16_refuses_complex_weights(scheme):
    net = nn.Sequential(nn.Linear(16, 16, dtype=torch.cfloat))
    with pytest.raises(ThriftyError, match="'0.weight' is complex, and bfloat16 has no imaginary parts"):
        Quantize(scheme, rest="bf16")(net, [torch.randn(8, 16, dtype=torch.cfloat)])


def test_bfloat16_refuses_what_torch_cannot_run_in_it():
    net = nn.Sequential(nn.Conv3d(1, 4, 3), nn.AvgPool3d(2))
    with pytest.raises(ThriftyError, match="cannot run this model in bfloat16: .*avg_pool3d"):
        Quantize("bf16").plan(net.eval(), Context.of([torch.randn(4, 1, 6, 6, 6)]))


def test_a_bfloat16_rest_is_refused_where_the_models_own_code_asks_for_another_type():
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 8)
            self.b.register_full_backward_hook(lambda *given: None)  # which keeps it float

        def forward(self, x):
            h = self.a(x)
            return self.b(h if h.dtype == torch.float32 else h.float())

    with pytest.raises(ThriftyError, match="rest=bf16.*: torch cannot run this model in bfloat16: .*dtype"):
        Quantize("w4a16", rest="bf16", group=32)(Asks(), [torch.randn(16, 32)])


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16", "fp8"])
def test_a_transformer_layer_of_torch_runs_quantized(scheme):
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(32, 4, 128, batch_first=True).eval()
    x = torch.randn(16, 5, 32)
    quantized = Quantize(scheme, group=32 if scheme == "w4a16" else 128)(net, x.split(8))
    assert not isinstance(quantized.linear1, nn.Linear) and not isinstance(quantized.linear2, nn.Linear)
    with torch.no_grad():
        assert error(quantized(x), net(x)) < 0.1


def test_a_model_that_traces_into_something_else_is_quantized_without_a_graph():
    class Typed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x):
            h = torch.relu(self.a(x))
            return self.b(h if isinstance(h, torch.Tensor) else 1 - h)

    torch.manual_seed(0)
    net, told = Typed().eval(), list[str]()
    plan = Quantize().plan(net, dataclasses.replace(Context.of([images()]), progress=told.append))
    assert not plan.values["traced"] and any("without a graph" in line for line in told)
    with torch.no_grad():
        assert error(Quantize().build(copy.deepcopy(net), plan)(images()), net(images())) < 0.03
