"""The dependency graph, against torch-pruning's where that works and against masking everywhere."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.posttraining.pruning.cutting import masked, shrink, slices
from thrifty.posttraining.pruning.dependency import Place, dependencies
from thrifty.workloads.embedded.digits import DigitsNet


class Branches(nn.Module):
    """Two branches that are concatenated, a residual sum, a depthwise convolution, and a head over a flattening."""

    def __init__(self, widths: tuple[int, ...], bias: bool, norm: bool, residual: bool, flatten: bool) -> None:
        super().__init__()
        a, b, c, d = widths
        self.residual, self.flatten = residual, flatten
        self.left = nn.Conv2d(2, a, 3, padding=1, bias=bias)
        self.right = nn.Conv2d(2, b, 1, bias=bias)
        self.norm = nn.BatchNorm2d(a + b) if norm else nn.Identity()
        self.depthwise = nn.Conv2d(a + b, a + b, 3, padding=1, groups=a + b, bias=bias)
        self.mix = nn.Conv2d(a + b, c, 1, bias=bias)
        self.again = nn.Conv2d(c, c, 3, padding=1, bias=bias)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(c * 9 if flatten else c, d, bias=bias)
        self.head = nn.Linear(d, 3)
        for module in self.modules():  # batch norm as after training
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(torch.cat([self.left(x), self.right(x).sigmoid()], 1))
        y = self.mix(torch.relu(self.depthwise(y)))
        y = y + torch.nn.functional.gelu(self.again(y)) if self.residual else self.again(y)
        y = self.pool(y)
        y = y.flatten(1) if self.flatten else y.mean((2, 3))
        return self.head(torch.tanh(self.hidden(y)))  # type: ignore[no-any-return]


@settings(max_examples=40)
@given(st.tuples(*[st.integers(2, 7)] * 4), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 999))
def test_a_smaller_model_answers_as_one_whose_removed_channels_nobody_reads(
    widths: tuple[int, ...], bias: bool, norm: bool, residual: bool, flatten: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    model = Branches(widths, bias, norm, residual, flatten).eval()
    example = (torch.randn(2, 2, 6, 6),)
    found = dependencies(model, example)
    assert len(found.groups) == (4 if residual else 5)
    rng = np.random.default_rng(seed)
    cut = {i: sorted(rng.choice(group.size, rng.integers(1, group.size + 1), replace=False).tolist())
           for i, group in enumerate(found.groups)}
    kept = slices(model, found, cut)
    with torch.no_grad():
        smaller = shrink(copy.deepcopy(model), kept)
        torch.testing.assert_close(smaller(*example), masked(model, found, kept)(*example), rtol=1e-5, atol=1e-5)


def test_the_mask_is_the_one_written_by_hand() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    x = torch.randn(4, 3)
    found = dependencies(model, (x,))
    kept = slices(model, found, {0: [0, 3]})
    hidden = torch.relu(x @ model[0].weight.T + model[0].bias) * torch.tensor([1.0, 0, 0, 1, 0])
    expected = hidden @ model[2].weight.T + model[2].bias
    torch.testing.assert_close(masked(model, found, kept)(x), expected)
    torch.testing.assert_close(shrink(model, kept)(x), expected)


@pytest.mark.parametrize("layer", ["stem.0", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.shortcut.0", "blocks.2.conv1"])
def test_a_channel_takes_with_it_what_torch_pruning_says(layer: str) -> None:
    pruning = pytest.importorskip("torch_pruning")
    model = DigitsNet(8, 8).eval()
    example = torch.zeros(1, 1, 28, 28)
    names = {module: name for name, module in model.named_modules()}
    graph = pruning.DependencyGraph().build_dependency(model, example)
    theirs: set[tuple[str, int, tuple[int, ...]]] = set()
    for item, indices in graph.get_pruning_group(model.get_submodule(layer), pruning.prune_conv_out_channels, [3]):
        module, reads = item.target.module, "in_channels" in item.handler.__name__
        if module in names:
            reads = reads and not isinstance(module, nn.BatchNorm2d)
            theirs.add((f"{names[module]}.weight", int(reads), tuple(indices)))
    place = Place(f"{layer}.weight", 0)
    group = next(group for group in dependencies(model, (example,)).groups if place in group.members)
    channel = group.members[place][:, 0].tolist().index(3)
    ours = {(p.tensor, p.dim, tuple(indices[channel].tolist())) for p, indices in group.members.items()}
    assert {part for part in ours if part[0].endswith("weight")} == theirs


class Unsafe(nn.Module):
    """Channels meet a softmax, a reversal and the output: none may go. A norm's may, as a stream's; a split's two by two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))
        self.free, self.out = nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.norm(self.a(x))).softmax(-1)
        x = self.c(x).flip(-1)
        left, right = self.d(x).chunk(2, -1)
        return self.out(self.free(torch.cat([right, left], -1)).relu())  # type: ignore[no-any-return]


def test_what_no_rule_knows_stays() -> None:
    found = dependencies(Unsafe().eval(), (torch.randn(2, 6),))
    assert {(tuple(sorted({p.tensor for p in group.members})), group.kind, group.size) for group in found.groups} == {
        (("a.bias", "a.weight", "b.weight", "norm.bias", "norm.weight"), "residual", 6),
        (("d.bias", "d.weight", "free.weight"), "channels", 3),
        (("free.bias", "free.weight", "out.weight"), "channels", 6),
    }
    assert found.kept[Place("b.weight", 0)] == "a softmax runs over it"
    assert found.kept[Place("c.weight", 0)] == "flip takes it whole"
    assert found.kept[Place("out.weight", 0)] == "it is an output of the model"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.up, self.down = nn.Linear(4, 9), nn.Linear(9, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.down(self.up(self.embedding(ids)).relu()))  # type: ignore[no-any-return]


def test_tied_weights_stay_tied() -> None:
    model, ids = Tied().eval(), torch.arange(6)[None]
    found = dependencies(model, (ids,))
    wide = next(i for i, group in enumerate(found.groups) if group.size == 9)
    kept = slices(model, found, {i: [0, 2] if i != wide else [1, 4, 5] for i in range(len(found.groups))})
    expected = masked(model, found, kept)(ids)
    smaller = shrink(copy.deepcopy(model), kept)
    assert smaller.head.weight is smaller.embedding.weight
    if len(found.groups) == 1:
        torch.testing.assert_close(smaller(ids), expected)


def test_a_model_that_cannot_be_exported_says_so() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ThriftyError, match=r"torch\.export cannot"):
        dependencies(Branching(), (torch.ones(2),))
