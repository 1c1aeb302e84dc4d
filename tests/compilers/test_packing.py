"""Weights are packed when a net is compiled: oneDNN's own log says so."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from thrifty import Inductor

CALLS = """
import sys
import torch
from torch import nn
from thrifty import Inductor, load, lower

torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
                    nn.Conv2d(64, 64, 3, stride=2), nn.Flatten()).eval()
x = torch.randn(1, 3, 16, 16)
lower(net, Inductor(), sys.argv[1], (x,), shapes={0: {0: (1, 64)}})
engine = load(sys.argv[1], trust_native_code=True)
engine(x)
print("served", flush=True)
engine(x)
print("many", flush=True)
torch.testing.assert_close(engine(torch.cat(7 * [x])), net(torch.cat(7 * [x])), rtol=1e-4, atol=1e-4)
"""


@pytest.mark.skipif(Inductor.missing() is not None, reason=str(Inductor.missing()))
@pytest.mark.parametrize("isa", ["AVX2", "ALL"])
def test_no_weight_is_packed_at_a_call_whose_batch_was_left_free(isa, tmp_path):
    """Left to itself Inductor packs none there, and on AVX2 the packing takes longer than the products."""
    environment = {**os.environ, "ONEDNN_VERBOSE": "1", "ONEDNN_MAX_CPU_ISA": isa}
    if isa == "AVX2":
        environment["ATEN_CPU_CAPABILITY"] = "avx2"
    done = subprocess.run([sys.executable, "-c", CALLS, str(tmp_path / "model")], capture_output=True, text=True, check=False,
                          env=environment)
    assert done.returncode == 0, done.stderr
    call = done.stdout.partition("served\n")[2].partition("many\n")[0].splitlines()
    assert sum(",exec,cpu,convolution" in line for line in call) == 3
    weights = [line for line in call
               if ",exec,cpu,reorder" in line and line.rpartition(",")[0].endswith(("64x64x3x3", "64x3x3x3"))]
    assert not weights, weights
