from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from thrifty import testing
from thrifty.compilers.capture import LoweringError
from thrifty.compilers.export import Export
from thrifty.compilers.tvm import Tvm
from thrifty.errors import ThriftyError, WorkloadError
from thrifty.recipes.context import Context
from thrifty.recipes.recipe import Recipe
from thrifty.runs.context import outputs_of
from thrifty.runs.rehearsal import rehearse, rehearse_compiler
from thrifty.target import Machine, Target
from thrifty.workloads.workload import Offline


def test_a_rehearsal_finds_what_would_fail_later():
    class Branches(testing.SmallNet):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    branching = dataclasses.replace(testing.workload, model=Branches)
    with pytest.raises(ThriftyError, match=r"torch\.where"):
        rehearse(branching, Recipe.parse("train(epochs=1) | compile(onnxruntime)"), Target(), Machine(), lambda event: None)


@pytest.mark.skipif(Tvm.missing() is not None, reason=str(Tvm.missing()))
def test_a_size_that_the_model_fixes_is_no_fault_of_a_compiler_that_pads():
    class Looks(testing.SmallNet):
        def forward(self, x):
            return torch.cat([super(Looks, self).forward(x[i:i + 1]) for i in range(len(x))])

    workload = dataclasses.replace(testing.workload, model=Looks, scenario=Offline(max_batch=3))
    rehearse_compiler(Tvm(), workload, Looks(), "cpu")
    with pytest.raises(LoweringError, match="the model fixes it"):
        rehearse_compiler(Export(), workload, Looks(), "cpu")


class Featured(testing.SmallNet):
    """Holds what no state_dict does; the same in each model, or another."""

    same = True

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.mix = torch.randn(12, 12, generator=generator if self.same else None)

    def forward(self, x):
        return super().forward(x @ self.mix)


class Drawn(Featured):
    same = False


class Learns(testing.SmallNet):
    """A mean that training moves, kept where no state_dict looks."""

    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(())

    def forward(self, x):
        if self.training:
            self.mean = self.mean + 1
        return super().forward(x) + self.mean * torch.arange(4)


@pytest.mark.parametrize("recipe", ["", "train(epochs=1)", "prune(ratio=0.5)"])
def test_a_checkpoint_answers_as_the_model_did(recipe):
    def rehearsed(model):
        rehearse(dataclasses.replace(testing.workload, model=model), Recipe.parse(recipe), Target(), Machine(),
                 lambda event: None)

    rehearsed(Featured)
    with pytest.raises(WorkloadError, match="gives different outputs than the model did; mix is not in any state_dict"):
        rehearsed(Drawn)


def test_what_training_alone_moves_is_found_too():
    workload = dataclasses.replace(testing.workload, model=Learns)
    with pytest.raises(WorkloadError, match="mean is not in any state_dict"):
        rehearse(workload, Recipe.parse("train(epochs=1)"), Target(), Machine(), lambda event: None)


class Tagger(nn.Module):
    """Every token gets a class; padding is masked, which torch's fast path answers with zeros."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)
        self.head = nn.Linear(16, 2)

    def forward(self, ids):
        return self.head(self.encoder(self.table(ids), src_key_padding_mask=ids == 0))


@pytest.mark.filterwarnings("ignore")
def test_padding_is_compared_on_the_path_that_engines_take(tmp_path):
    ids = torch.randint(1, 20, (8, 6), generator=torch.Generator().manual_seed(0))
    ids[:, 4:] = 0
    model = Tagger().eval()
    with torch.no_grad():
        fast, slow = model(ids), outputs_of(model, (ids,))[0]
    assert not torch.allclose(fast[:, 4:], slow[:, 4:], atol=1e-2) and torch.allclose(fast[:, :4], slow[:, :4], atol=1e-5)
    Export().lower(model, (ids,), tmp_path, Context(example=(ids,), calibration=lambda: iter([(ids,)])))
    with torch.no_grad():
        program = torch.export.load(str(next(tmp_path.glob("*.pt2")))).module()
        torch.testing.assert_close(program(ids), slow, rtol=1e-4, atol=1e-5)
