from __future__ import annotations

import dataclasses

import pytest
import torch

from thrifty import testing
from thrifty.compilers.capture import LoweringError
from thrifty.compilers.export import Export
from thrifty.compilers.tvm import Tvm
from thrifty.errors import ThriftyError
from thrifty.recipes.recipe import Recipe
from thrifty.runs.rehearsal import rehearse, rehearse_compiler
from thrifty.target import Target
from thrifty.workloads.workload import Offline


def test_a_rehearsal_finds_what_would_fail_later():
    class Branches(testing.SmallNet):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    branching = dataclasses.replace(testing.workload, model=Branches)
    with pytest.raises(ThriftyError, match=r"torch\.where"):
        rehearse(branching, Recipe.parse("train(epochs=1) | compile(onnxruntime)"), Target(), lambda event: None)


@pytest.mark.skipif(Tvm.missing() is not None, reason=str(Tvm.missing()))
def test_a_size_that_the_model_fixes_is_no_fault_of_a_compiler_that_pads():
    class Looks(testing.SmallNet):
        def forward(self, x):
            return torch.cat([super(Looks, self).forward(x[i:i + 1]) for i in range(len(x))])

    workload = dataclasses.replace(testing.workload, model=Looks, scenario=Offline(max_batch=3))
    rehearse_compiler(Tvm(), workload, Looks())
    with pytest.raises(LoweringError, match="the model fixes it"):
        rehearse_compiler(Export(), workload, Looks())
