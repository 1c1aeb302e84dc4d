"""What counts as a norm with a scale."""

from __future__ import annotations

import pytest
from torch import nn

from thrifty.numerics.norms import is_norm


@pytest.mark.parametrize("module", [nn.LayerNorm(3), nn.RMSNorm(3), nn.GroupNorm(1, 3), nn.BatchNorm1d(3),
                                    nn.InstanceNorm2d(3, affine=True)])
def test_all_that_end_in_a_scale_by_channel(module: nn.Module) -> None:
    assert is_norm(module)


def test_a_models_own() -> None:
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    assert is_norm(modeling.LlamaRMSNorm(3))


@pytest.mark.parametrize("module", [nn.Linear(3, 3), nn.LayerNorm(3, elementwise_affine=False), nn.BatchNorm1d(3, affine=False),
                                    nn.LayerNorm((2, 3)), nn.Sequential(nn.LayerNorm(3))])
def test_what_is_none(module: nn.Module) -> None:
    assert not is_norm(module)
