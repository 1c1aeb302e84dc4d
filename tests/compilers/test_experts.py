"""Experts of few bits in the operators of ONNX."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from thrifty import OnnxRuntime, Quantize, load
from thrifty.architectures.moe import MoE
from thrifty.artifacts import artifact
from thrifty.recipes.context import Context


@pytest.mark.parametrize(("scheme", "tokens"), [("w4a16", 1), ("w8a16", 9)])
def test_onnxruntime_computes_them(scheme: str, tokens: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(tokens, 64)
    small = Quantize(scheme, **({"group": 32} if scheme == "w4a16" else {}))(nn.Sequential(MoE(64, 32, 4, 2)).eval(), [x])
    lowered = OnnxRuntime().lower(small, (x,), tmp_path, Context(example=(x,), calibration=lambda: iter(()), shapes={}))
    with torch.no_grad():
        want = small(x)
    artifact.write(tmp_path, lowered, {"recipe": "compile(onnxruntime)"}, [x.numpy()], [want.numpy()])
    torch.testing.assert_close(torch.as_tensor(load(tmp_path)(x)), want, rtol=1e-3, atol=1e-4)
