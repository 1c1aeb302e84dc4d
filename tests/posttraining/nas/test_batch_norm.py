"""Statistics of batch norms, taken anew."""

from __future__ import annotations

import torch
from torch import nn

from thrifty.posttraining.nas.batch_norm import ROWS, renew


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.9), nn.Linear(4, 2),
                         nn.BatchNorm1d(2, affine=False), nn.BatchNorm1d(2, track_running_stats=False)).train()


def test_they_are_means_over_batches_of_what_each_norm_reads_in_turn():
    model, x = net(), torch.randn(2 * ROWS, 3)
    found = renew(model, (x,))
    with torch.no_grad():
        first = [model[0](part) for part in x.chunk(2)]
        mean = sum(y.mean(0) for y in first) / 2
        variance = sum(y.var(0) for y in first) / 2
        # Within a batch a norm passes on what it normalized by the batch's own statistics.
        second = [model[3](nn.functional.batch_norm(y, None, None, model[1].weight, model[1].bias, training=True)) for y in first]
    torch.testing.assert_close(found["1.running_mean"], mean)
    torch.testing.assert_close(found["1.running_var"], variance)
    torch.testing.assert_close(found["4.running_mean"], sum(y.mean(0) for y in second) / 2)
    assert set(found) == {"1.running_mean", "1.running_var", "4.running_mean", "4.running_var"}
    torch.testing.assert_close(model.state_dict()["1.running_mean"], found["1.running_mean"])


def test_nothing_else_changes_and_nothing_is_left_in_training():
    model = net()
    before = {name: x.clone() for name, x in model.state_dict().items() if "running" not in name}
    renew(model, (torch.randn(8, 3),))
    assert all(torch.equal(model.state_dict()[name], x) for name, x in before.items())
    assert model[1].momentum == 0.3 and not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_model_without_batch_norms_has_none():
    assert renew(nn.Sequential(nn.LayerNorm(2)), (torch.randn(4, 2),)) == {}
