"""State-space layers through every compiler that is here: decomposed, so that each knows their operators."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from thrifty import Compiler, load, lower
from thrifty.architectures.backbone import Backbone
from thrifty.architectures.blocks import Sizes
from thrifty.recipes.registry import method_class


def model() -> Backbone:
    torch.manual_seed(0)
    made = Backbone(40, "mamba2 mlp attention mamba", Sizes(32, heads=4, hidden=48, state=8, head=8, scan_state=4)).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return made


class Whole(torch.nn.Module):
    """Ids alone, as servers get them."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body = body

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.body(ids)  # type: ignore[no-any-return]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("export", "inductor", "xla", "tvm")]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", *SLOW])
def test_what_a_compiler_makes_of_them_computes_the_same(name: str, tmp_path: Path) -> None:
    compiler = method_class(name)()
    assert isinstance(compiler, Compiler)
    if lacks := compiler.missing():
        pytest.skip(lacks)
    net, ids = Whole(model()), torch.randint(40, (1, 70))
    lower(net, compiler, tmp_path / "model", (ids,))
    with torch.no_grad():
        wanted = net(ids)
    got = torch.as_tensor(load(tmp_path / "model", trust_native_code=True)(ids))
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


@pytest.mark.slow
def test_lengths_may_vary(tmp_path: Path) -> None:
    from thrifty import Export

    net = Whole(model())
    lower(net, Export(), tmp_path / "model", (torch.randint(40, (1, 70)),), shapes={0: {1: (2, 200)}})
    engine = load(tmp_path / "model")
    for tokens in (2, 64, 130):
        ids = torch.randint(40, (1, tokens))
        with torch.no_grad():
            wanted = net(ids)
        torch.testing.assert_close(torch.as_tensor(engine(ids)), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
