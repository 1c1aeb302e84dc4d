"""Activations computed twice: the same gradients, less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from thrifty import AdamW, CrossEntropy
from thrifty.errors import ThriftyError
from thrifty.recipes.phases import Train
from thrifty.training.checkpointing import recompute
from thrifty.training.session import TrainingSession


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, 4 * width), nn.BatchNorm1d(4 * width), nn.GELU(), nn.Dropout(0.3),
                                  nn.Linear(4 * width, width))

    def forward(self, x):
        return x + self.body(x)


def stack(width: int = 8, depth: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), nn.Sequential(*(Block(width) for _ in range(depth))), nn.Linear(width, 3))


def batch(n: int = 16):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(n, 5, generator=generator),), torch.randint(0, 3, (n,), generator=generator)


def gradients(model):
    torch.manual_seed(4)
    (x,), y = batch()
    nn.functional.cross_entropy(model(x), y).backward()
    return [p.grad.clone() for p in model.parameters()], [b.clone() for b in model.buffers()]


@pytest.mark.parametrize("kind", ["blocks", "selective"])
def test_gradients_and_running_statistics_are_the_same_bit_by_bit(kind):
    plain = stack()
    again = recompute(copy.deepcopy(plain), kind)
    (want, kept), (got, buffers) = gradients(plain), gradients(again)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept, buffers, strict=True))


class Kept:
    """Bytes that autograd keeps for the backward pass."""

    def __init__(self) -> None:
        self.bytes = 0

    def __enter__(self):
        def pack(x):
            self.bytes += x.nbytes
            return x

        self.hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


def test_less_is_kept():
    def kept(kind):
        model = recompute(stack(width=32), kind)
        parameters = {p.data_ptr() for p in model.parameters()}
        with Kept() as seen:
            loss = model(batch(64)[0][0]).sum()
        loss.backward()
        assert parameters
        return seen.bytes

    assert kept("blocks") < 0.2 * kept("none")


def test_names_stay_and_it_can_be_undone():
    model = stack()
    names = list(model.state_dict())
    recompute(model, "blocks")
    assert list(model.state_dict()) == names
    assert all("forward" in vars(block) for block in model[1])
    recompute(model, "none")
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_model_without_a_row_is_refused():
    with pytest.raises(ThriftyError, match="sequences of equal blocks"):
        recompute(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "blocks")
    recompute(nn.Linear(2, 2), "none")


@pytest.mark.parametrize("settings", [{"checkpointing": "blocks"}, {"checkpointing": "selective"}, {"compiled": True},
                                      {"compiled": True, "checkpointing": "blocks"}, {"accumulate": 4}], ids=str)
def test_a_training_with_a_setting_learns_the_same(settings):
    """Dropout off, batch norm off: then micro-batches, compilation and recomputation change rounding alone."""
    def run(**given):
        model = stack()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for block in model[1]:
            block.body[1] = nn.Identity()
        session = TrainingSession(model, [AdamW(lr=0.01)], CrossEntropy(), steps=4, settings=Train(**given))
        losses = [float(session.step(batch(16))) for _ in range(4)]
        return losses, session.finish()

    (plain, want), (losses, got) = run(), run(**settings)
    assert losses == pytest.approx(plain, rel=1e-5)
    for a, b in zip(want.parameters(), got.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert not any("forward" in vars(module) or module._compiled_call_impl for module in got.modules())
