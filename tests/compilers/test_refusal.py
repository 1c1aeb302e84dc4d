from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.compilers.nets import lowered
from thrifty.compilers import refusal
from thrifty.compilers.capture import LoweringError
from thrifty.compilers.refusal import cannot_express, refuse_bfloat16_lstm
from thrifty.recipes.registry import method_class


class Special(nn.Module):
    def forward(self, x):
        return torch.special.airy_ai(torch.relu(x))


@pytest.mark.parametrize(("compiler", "others"), [
    ("onnxruntime", r"compile\(openvino\) or compile\(inductor\)"),
    ("openvino", r"compile\(onnxruntime\) or compile\(inductor\)"),
    pytest.param("xla", r"compile\(onnxruntime\) or compile\(inductor\)", marks=pytest.mark.slow),
])
def test_every_backend_names_the_operator_that_it_lacks(compiler, others, tmp_path):
    if says := method_class(compiler).missing():
        pytest.skip(says)
    with pytest.raises(LoweringError, match=rf"cannot express this model: it has no aten.special_airy_ai\S*; try {others}$"):
        lowered(method_class(compiler)(), Special(), (torch.ones(2, 3),), tmp_path)


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_lstm_in_bfloat16_is_refused_where_the_processor_has_none(monkeypatch, dtype, has):
    monkeypatch.setattr(refusal, "onednn_has_bfloat16", lambda: has)
    model = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 4)).to(dtype)
    if dtype == torch.float32 or has:
        refuse_bfloat16_lstm(model, "Inductor", "openvino")
    else:
        with pytest.raises(LoweringError, match=r"no LSTM in bfloat16 on this processor \('1'\); .* compile\(openvino\)$"):
            refuse_bfloat16_lstm(model, "Inductor", "openvino")


def test_the_innermost_reason_and_its_place():
    try:
        try:
            raise NotImplementedError("histc of one value\nand more")
        except NotImplementedError as inner:
            raise RuntimeError("Error when translating node %h[target=torch.ops.aten.histc.default](args = (%x,))") from inner
    except RuntimeError as error:
        says = str(cannot_express("ONNX", error, "xla"))
    assert says == "ONNX cannot express this model: histc of one value (at aten.histc.default); try compile(xla)"


def test_an_error_without_words():
    assert "AssertionError; try compile(xla)" in str(cannot_express("ONNX", AssertionError(), "xla"))
