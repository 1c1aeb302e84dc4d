from __future__ import annotations

import subprocess
import sys
import zipfile

import pytest
import torch
from torch import nn

from tests.compilers.nets import called, conv_net, encoder, error, images, lowered, quantized, texts
from thrifty.compilers.capture import LoweringError
from thrifty.compilers.export import Export

BATCH = {0: {0: (1, 16)}}


def test_float_parity_at_every_batch(tmp_path):
    net, x = conv_net(), images()
    record, engine, _ = lowered(Export(), net, (x[:1],), tmp_path, BATCH)
    assert (record.engine, record.precision, record.portable, record.native) == ("export", "fp32", True, False)
    assert record.inputs[0].shape == (-1, 1, 29, 23)
    assert record.outputs[0].shape == (-1, 7)
    for n in (1, 5, 16):
        assert error(called(engine, x[:n]), net(x[:n])) < 1e-4


def test_it_holds_integers_and_equals_the_simulation(tmp_path):
    net, x = conv_net(width=96), images()
    integer = quantized(net, x)
    record, engine, small = lowered(Export(), integer, (x[:1],), tmp_path / "int8")
    _, _, large = lowered(Export(), net, (x[:1],), tmp_path / "fp32")
    assert record.precision == "int8"
    assert error(called(engine, x[:1]), integer(x[:1])) < 1e-5
    assert small <= 0.27 * large


def test_it_loads_with_torch_alone(tmp_path):
    ids, mask = texts()
    net = encoder()
    lowered(Export(), quantized(net, ids, mask), (ids[:1], mask[:1]), tmp_path)
    code = ("import sys, torch; sys.modules['thrifty'] = None\n"
            f"program = torch.export.load({str(tmp_path / 'model.pt2')!r})\n"
            "out = program.module()(torch.zeros(1, 13, dtype=torch.int64), torch.ones(1, 13, dtype=torch.int64))\n"
            "print(tuple(out.shape))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 13, 48)"


def test_it_tells_nothing_of_this_machine(tmp_path):
    lowered(Export(), conv_net(), (images(1),), tmp_path)
    with zipfile.ZipFile(tmp_path / "model.pt2") as file:
        for name in file.namelist():
            assert b"site-packages" not in file.read(name)
            assert b"nets.py" not in file.read(name)


def test_a_model_that_cannot_be_captured(tmp_path):
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(LoweringError, match=r"cannot capture Branch.*torch\.where"):
        lowered(Export(), Branch(), (torch.ones(1, 3),), tmp_path)


@pytest.mark.parametrize(("shapes", "says"), [
    ({0: {4: (1, 2)}}, "does not have"), ({0: {0: (2, 8)}}, "the example has 1"), ({1: {0: (1, 8)}}, "does not have"),
])
def test_shapes_that_do_not_fit_the_example(tmp_path, shapes, says):
    with pytest.raises(LoweringError, match=says):
        lowered(Export(), conv_net(), (images(1),), tmp_path, shapes)


def test_a_dimension_that_the_model_fixes(tmp_path):
    with pytest.raises(LoweringError, match="shapes"):
        lowered(Export(), conv_net(), (images(1)[:, :, :, :],), tmp_path, {0: {1: (1, 4)}})
