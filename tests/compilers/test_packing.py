"""Weights of convolutions are packed when a net is compiled: oneDNN's own log says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from tests.compilers.nets import called, error, lowered
from thrifty import Inductor
from thrifty.compilers.packing import packed_for

pytestmark = pytest.mark.skipif(Inductor.missing() is not None, reason=str(Inductor.missing()))


class Parted(nn.Module):
    """Where an order of channels that is reckoned wrongly shows: one channel, one pixel, no bias, sums, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, stride=2, padding=1, bias=False)
        self.a, self.b = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 1, bias=False)
        self.gate = nn.Conv2d(32, 32, 1)
        self.one, self.up = nn.Conv2d(32, 1, 3, bias=False), nn.ConvTranspose2d(1, 4, 2, stride=2)
        self.last = nn.Conv2d(1, 8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.stem(x)
        y = torch.relu(self.b(torch.relu(self.a(y))) + y)
        y = self.one(y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True))))
        return self.last(y).flatten(1), self.up(y)


@pytest.mark.slow
def test_packed_for_a_free_batch_a_net_answers_as_before(tmp_path):
    torch.manual_seed(0)
    net, x = Parted().eval().requires_grad_(False), torch.randn(7, 1, 21, 18)
    record, engine, _ = lowered(Inductor(), net, (x[:1],), tmp_path, {0: {0: (1, 16)}})
    assert record.inputs[0].shape == (-1, 1, 21, 18)
    for n in (1, 2, 7):
        assert error(called(engine, x[:n]), net(x[:n])[0]) < 1e-5
        up = engine.arrays(engine.run(engine.native([x[:n].numpy()])))[1]
        assert error(torch.from_numpy(up), net(x[:n])[1]) < 1e-5


def test_torch_is_left_as_it_was():
    from torch._inductor import mkldnn_ir
    from torch._inductor.fx_passes import mkldnn_fusion

    before = mkldnn_fusion.has_free_symbols, mkldnn_ir.is_contiguous_storage_and_layout
    with packed_for(1):
        assert mkldnn_fusion.has_free_symbols is not before[0]
    assert (mkldnn_fusion.has_free_symbols, mkldnn_ir.is_contiguous_storage_and_layout) == before


def test_where_torch_has_changed_nothing_is_packed(monkeypatch):
    from torch._inductor.fx_passes import mkldnn_fusion

    monkeypatch.delattr(mkldnn_fusion, "MkldnnDeviceOpBase")
    before = mkldnn_fusion.has_free_symbols
    with packed_for(1):
        assert mkldnn_fusion.has_free_symbols is before


CALLS = """
import json, sys, tempfile
import torch
from torch import nn
from thrifty import Inductor, load, lower

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
                    nn.Conv2d(64, 128, 3, stride=2), nn.Flatten(), nn.Linear(6272, 8)).eval()
x = torch.randn(8, 1, 16, 16)
for n, free in json.loads(sys.argv[1]):
    shapes = {0: {0: (1, 64)}} if free else None
    torch.set_num_threads(2)  # of the process that compiles: what serves has one, and packs for itself
    with tempfile.TemporaryDirectory() as place:
        lower(net, Inductor(), place + "/model", (x[:n],), shapes=shapes)
        engine = load(place + "/model", threads=n % 2 + 1, trust_native_code=True)  # two where one is served: it keeps its own
        engine(x[:n])
        print("call", n, free, flush=True)
        answer = engine(x[:n])
        print("done", flush=True)
        torch.testing.assert_close(answer, net(x[:n]), rtol=1e-4, atol=1e-4)
"""
WEIGHTS = ("64x1x3x3", "64x64x3x3", "128x64x3x3")


ALL = ((1, False), (1, True), (8, True))
"""(requests in one call, whether their number was left free when compiled)."""


@pytest.mark.parametrize(("isa", "cases"), [("ALL", [(1, True)]), pytest.param("AVX2", ALL, marks=pytest.mark.slow),
                                            pytest.param("ALL", ALL, marks=pytest.mark.slow)])
def test_no_weight_is_packed_at_a_call(isa, cases):
    """Left to itself Inductor packs none where the batch is free, and on AVX2 packing can take longer than the products."""
    environment = {**os.environ, "ONEDNN_VERBOSE": "1", "ONEDNN_MAX_CPU_ISA": isa}
    if isa == "AVX2":
        environment["ATEN_CPU_CAPABILITY"] = "avx2"
    done = subprocess.run([sys.executable, "-c", CALLS, json.dumps(cases)], capture_output=True, text=True, check=False,
                          env=environment)
    assert done.returncode == 0, done.stderr
    calls = [part.partition("done\n")[0].splitlines() for part in done.stdout.split("\ncall ")[1:]]
    assert len(calls) == len(cases)
    for what, *lines in calls:
        assert sum(",exec,cpu,convolution" in line for line in lines) == 3, what
        packed = [line for line in lines if ",exec,cpu,reorder" in line and line.rpartition(",")[0].endswith(WEIGHTS)]
        assert not packed, (what, packed)
