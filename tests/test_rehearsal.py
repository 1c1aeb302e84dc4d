from __future__ import annotations

import dataclasses

import pytest

from thrifty import testing
from thrifty.errors import ThriftyError
from thrifty.recipe import Recipe
from thrifty.rehearsal import rehearse
from thrifty.target import Target


def test_a_rehearsal_finds_what_would_fail_later():
    class Branches(testing.SmallNet):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    branching = dataclasses.replace(testing.workload, model=Branches)
    with pytest.raises(ThriftyError, match=r"torch\.where"):
        rehearse(branching, Recipe.parse("train(epochs=1) | compile(onnxruntime)"), Target(), lambda event: None)
