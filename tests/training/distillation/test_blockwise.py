"""Blocks distilled by themselves: what is recorded, what is minimized, what is kept, what is refused."""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.training.distillation.blockwise import Example, difference, distil_block, record


class Block(nn.Module):
    """A residual block of two outputs that takes a keyword and writes over what it was given."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        x.mul_(1.5)
        return x + scale * self.down(self.up(x).relu()), torch.zeros(len(x), dtype=torch.int64)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.unused = nn.Linear(6, 8), Block(8, 16), nn.Linear(1, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.block(self.first(x), scale=0.5)[0]


def batches(count: int = 8, rows: int = 16) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(rows, 6, generator=draw), torch.randint(0, 2, (rows,), generator=draw)) for _ in range(count)]


def test_what_is_recorded_is_what_the_block_read_and_gave() -> None:
    net = Net().train()
    examples = record(net, ["block"], batches(), valid=1)["block"]
    assert len(examples) == 8 and net.training
    for example, (x, mask) in zip(examples, batches(), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(example.args[0], net.first(x))  # not what the block wrote over it
            torch.testing.assert_close(example.output[0], net(x, mask))
        assert example.kwargs == {"scale": 0.5} and torch.equal(example.valid, mask.bool())
    with torch.no_grad():
        apart, size = difference(net.block, examples[0])
    assert float(apart) == pytest.approx(0, abs=1e-9) and float(size) > 0


def test_the_difference_is_the_formulas_over_the_places_that_count() -> None:
    torch.manual_seed(0)
    block, valid = nn.Linear(3, 2).double(), torch.tensor([[True, False], [True, True]])
    x, y = torch.randn(2, 2, 3).double(), torch.randn(2, 2, 2).double()
    with torch.no_grad():
        apart, size = difference(block, Example((x,), {}, y, valid))
    expected = sum((float(block(x)[i, t, c].detach()) - float(y[i, t, c])) ** 2
                   for i in range(2) for t in range(2) for c in range(2) if valid[i, t])
    assert float(apart) == pytest.approx(expected, rel=1e-5)
    assert float(size) == pytest.approx(float((y[valid] ** 2).sum()), rel=1e-5)


def test_a_student_comes_near_and_the_original_stays() -> None:
    torch.manual_seed(0)
    net, student = Net(), Block(8, 12)
    examples = record(net, ["block"], batches(16))["block"]
    before = copy.deepcopy(student.state_dict())
    found = distil_block(student, examples, steps=300, lr=1e-2)
    assert found.error < 0.2 * found.error_before and found.steps == 300 and found.flops > 0 and not found.student.training
    assert all(torch.equal(x, before[name]) for name, x in student.state_dict().items())
    held = examples[::4]
    sums = [difference(found.student, example) for example in held]
    assert found.error == pytest.approx(float(sum(a for a, _ in sums) / sum(b for _, b in sums)), rel=1e-5)


def test_the_same_seed_gives_the_same_weights_and_gradients_are_not_needed_around_it() -> None:
    examples = record(Net(), ["block"], batches())["block"]
    student = Block(8, 4).requires_grad_(False)
    with torch.no_grad():
        one, two = (distil_block(student, examples, steps=20, seed=3) for _ in range(2))
    assert one.error == two.error < one.error_before
    assert all(torch.equal(a, b) for a, b in zip(one.student.state_dict().values(), two.student.state_dict().values(),
                                                 strict=True))
    assert not any(p.requires_grad for p in one.student.parameters())


def test_training_never_leaves_a_block_worse_than_it_came() -> None:
    net = Net()
    examples = record(net, ["block"], batches())["block"]
    found = distil_block(net.block, examples, steps=20, lr=10.0)
    assert found.error == found.error_before == pytest.approx(0, abs=1e-9)


def test_seconds_end_a_training() -> None:
    examples = record(Net(), ["block"], batches())["block"]
    began = time.perf_counter()
    found = distil_block(Block(8, 4), examples, seconds=0.3)
    assert time.perf_counter() - began < 20 and found.steps > 1
    assert distil_block(Block(8, 4), examples, seconds=0.0).steps == 0


@pytest.mark.parametrize("student", [nn.Identity(), nn.ReLU(inplace=True)])
def test_a_student_without_parameters_has_an_error_and_takes_no_steps(student: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    examples = record(net, ["1"], [(torch.randn(8, 4),)])["1"]
    assert len(examples) == 1
    found = distil_block(student, examples, steps=10)
    assert found.steps == 0 and found.error == found.error_before > 0
    expected = (student(examples[0].args[0].clone()) - examples[0].output).square().sum() / examples[0].output.square().sum()
    assert found.error == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("call, says", [
    (lambda net: record(net, ["blok"], batches()), "no block 'blok'"),
    (lambda net: record(net, ["unused"], batches()), "unused is not called"),
    (lambda net: record(nn.Sequential(net.block.up, nn.ReLU(), net.block.down, net.block.up), ["0"],
                        [(torch.randn(2, 8),)]), "called several times"),
    (lambda net: distil_block(Block(8, 4), []), "no examples"),
    (lambda net: distil_block(Block(8, 4), record(net, ["block"], batches())["block"], steps=-1), "steps=-1"),
    (lambda net: distil_block(Block(8, 4), record(net, ["block"], batches())["block"], lr=math.nan), "lr=nan"),
])
def test_mistakes_are_told(call: Any, says: str) -> None:
    with pytest.raises(ThriftyError, match=says):
        call(Net())


def test_outputs_of_other_shapes_are_refused() -> None:
    examples = record(Net(), ["first"], batches())["first"]
    with pytest.raises(ThriftyError, match=r"outputs \[\(16, 3\)\] where \[\(16, 8\)\]"):
        distil_block(nn.Linear(6, 3), examples)


def test_outputs_that_are_not_finite_are_refused() -> None:
    examples = [Example((torch.randn(4, 6),), {}, torch.full((4, 8), math.inf))]
    with pytest.raises(ThriftyError, match="before any step"):
        distil_block(nn.Linear(6, 8), examples)
