from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from thrifty.numerics.grouped import rtn
from thrifty.numerics.packed import PackedConv, PackedRecurrent
from thrifty.posttraining.quantization.listing import layers
from thrifty.posttraining.quantize import Quantize, bytes_a_weight
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import HyperparameterError

WIDTHS = {"w8a16": 0.45, "w4a16": 0.4, "w3a16": 0.4}
"""Share of the float file that a small net's file takes at most, its graph counted."""


class Recurrent(nn.Module):
    def __init__(self, kind, width=128, **options):
        super().__init__()
        self.layer = kind(48, width, batch_first=True, **options)
        self.head = nn.Linear(width * (2 if options.get("bidirectional") else 1), 5)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Beside(nn.Module):
    """A recurrent layer with projections beside a product."""

    def __init__(self):
        super().__init__()
        self.r, self.h = nn.LSTM(48, 64, proj_size=16), nn.Linear(48, 64)

    def forward(self, x):
        return self.r(x)[0].sum(-1) + self.h(x).sum(-1)


class Convolutional(nn.Module):
    """Strides, groups, dilation, both dimensions; rows of 27 weights, which no group divides."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 64, 3, stride=2, padding=1), nn.Conv2d(64, 128, 3, padding=1, groups=2)
        self.c, self.head = nn.Conv1d(128, 96, 3, dilation=2, bias=False), nn.Linear(96, 6)

    def forward(self, x):
        return self.head(self.c(torch.relu(self.b(torch.relu(self.a(x)))).flatten(2)).mean(-1))


def made(net, *sizes):
    torch.manual_seed(0)
    return net().eval().requires_grad_(False), torch.randn(sizes)


NETS = {
    "gru": lambda: made(lambda: Recurrent(nn.GRU), 16, 5, 48),
    "lstm": lambda: made(lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), 16, 5, 48),
    "gru without biases": lambda: made(lambda: Recurrent(nn.GRU, 33, num_layers=2, bias=False), 16, 5, 48),
    "conv": lambda: made(Convolutional, 8, 3, 12, 12),
}


def in_few_bits(net, scheme, x):
    group = {} if scheme == "w8a16" else {"group": 32}
    return Quantize(scheme, algorithm="rtn", layers={"head": "w8a16"}, **group)(net, [x])


def by_hand(net, scheme):
    """The float model on weights that are rounded one group at a time, in float64."""
    net, most = copy.deepcopy(net), {"w8a16": 8, "w4a16": 4, "w3a16": 3}[scheme]
    for name, weight in net.named_parameters():
        if weight.dim() < 2:
            continue
        flat = weight.data.flatten(1).double()
        bits, group = (most, 32) if most < 8 and flat.shape[1] % 32 == 0 and "head" not in name else (8, flat.shape[1])
        parts = flat.reshape(len(flat), -1, group)
        low, high = parts.amin(2, True).clamp_max(0), parts.amax(2, True).clamp_min(0)
        step = (high - low) / (2**bits - 1)
        zero = torch.round(-low / step)
        q = torch.clamp(torch.round(parts / step) + zero, 0, 2**bits - 1)
        weight.data = ((q - zero) * step).reshape(weight.shape).float()
    return net


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16", "w3a16"])
@pytest.mark.parametrize("name", NETS)
def test_it_computes_what_the_float_layer_does_on_rounded_weights(name, scheme):
    net, x = NETS[name]()
    integer = in_few_bits(net, scheme, x)
    assert not any(type(m) in (nn.GRU, nn.LSTM, nn.Conv1d, nn.Conv2d) for m in integer.modules())
    torch.testing.assert_close(integer(x), by_hand(net, scheme)(x), atol=2e-4, rtol=2e-3)
    whole = {"w8a16": 1.0, "w4a16": 0.5, "w3a16": 0.375}[scheme] if name == "lstm" else 1.0  # elsewhere rows may stay whole
    assert bytes_a_weight(integer) < whole + 0.3
    assert bytes_a_weight(net) == 4.0
    exported = torch.export.export(integer, (x,)).module()
    torch.testing.assert_close(exported(x), integer(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_states_and_packed_sequences(kind):
    torch.manual_seed(0)
    layer = kind(7, 9, num_layers=2).eval()
    integer = PackedRecurrent(layer, {n: rtn(p.detach(), 8, p.shape[1]) for n, p in layer.named_parameters() if p.dim() > 1})
    for name, held in integer.held.items():
        layer.get_parameter(name).data = held()
    x, zeros = torch.randn(5, 3, 7), torch.rand(2, 3, 9)
    state = zeros if kind is nn.GRU else (zeros, zeros - 1)
    torch.testing.assert_close(integer(x, state), layer(x, state))
    torch.testing.assert_close(copy.deepcopy(integer)(x[:, 0]), layer(x[:, 0]))
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3, 2]))
    torch.testing.assert_close(integer(packed)[0].data, layer(packed)[0].data)


def test_a_clean_process_gives_the_same(tmp_path):
    net, x = NETS["lstm"]()
    method = Quantize("w4a16", group=32, algorithm="rtn", layers={"head": "w8a16"})
    plan = method.plan(net, Context.of([x]))
    integer = method.build(copy.deepcopy(net), plan)
    tensors = {f"state.{k}": v for k, v in integer.state_dict().items()} | {f"plan.{k}": v for k, v in plan.tensors.items()}
    save_file({k: v.clone() for k, v in tensors.items()} | {"x": x, "y": integer(x)}, tmp_path / "all.safetensors")
    (tmp_path / "plan.json").write_text(json.dumps(dict(plan.values)))
    script = ("import json, sys, torch\nfrom safetensors.torch import load_file\nfrom tests.numerics.test_packed import *\n"
              "from thrifty.recipes.transform import Plan\n"
              "held = load_file(sys.argv[1] + '/all.safetensors')\n"
              "cut = lambda part: {k[len(part):]: v for k, v in held.items() if k.startswith(part)}\n"
              "plan = Plan(json.loads(open(sys.argv[1] + '/plan.json').read()), cut('plan.'))\n"
              "torch.manual_seed(9)\nfresh = Recurrent(nn.LSTM, num_layers=2, bidirectional=True).eval()\n"
              "net = Quantize('w4a16', group=32, algorithm='rtn', layers={'head': 'w8a16'}).build(fresh, plan)\n"
              "net.load_state_dict(cut('state.'))\nassert torch.equal(net(held['x']), held['y'])\n")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_stays_float_is_listed_or_refused(vnni):
    net, x = NETS["gru"]()
    method = Quantize()
    plan = method.plan(net, Context.of([x]))
    listed = {row["layer"]: row["scheme"] for row in layers(method.build(copy.deepcopy(net), plan), plan)}
    assert listed == {"layer": "fp32", "head": "w8a8"}
    with pytest.raises(HyperparameterError, match="'layer', a recurrent layer"):
        Quantize(layers={"layer": "w8a8"})(net, [x])
    torch.manual_seed(0)
    projected, told = Beside().eval(), []
    with pytest.raises(HyperparameterError, match="not with proj_size"):
        Quantize("w8a16", layers={"r": "w8a16"})(projected, [x])
    Quantize("w8a16", algorithm="rtn").plan(projected, dataclasses.replace(Context.of([x]), progress=told.append))
    assert any("r (it has projections)" in line for line in told)


def test_layers_are_listed_by_their_bits():
    net, x = NETS["conv"]()
    method = Quantize("w4a16", group=32, algorithm="rtn", layers={"head": "w8a16"})
    plan = method.plan(net, Context.of([x]))
    integer = method.build(copy.deepcopy(net), plan)
    listed = {row["layer"]: (row["scheme"], row["bytes"]) for row in layers(integer, plan)}
    assert listed["a"] == ("w8a16", 64 * (27 + 5) + 64 * 4)
    assert listed["c"] == ("w4a16", 96 * 384 // 2 + 96 * 12 * 5)
    assert isinstance(integer.b, PackedConv) and integer.b.weight.shape == net.b.weight.shape
