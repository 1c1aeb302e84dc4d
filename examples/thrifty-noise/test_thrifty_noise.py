"""The method keeps every law of Thrifty's conformance kit, and does what its docstring says."""

from __future__ import annotations

import pytest
import torch
from thrifty_noise import WeightNoise, noise
from torch import nn

from thrifty import AdamW, CrossEntropy, NoEffect, Train, TrainingSession, fit, testing


@pytest.mark.parametrize("law", testing.LAWS, ids=lambda law: law.__name__)
def test_it_keeps_the_laws(law):
    law(WeightNoise(bits=3))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_noise_is_as_large_as_rounding(bits):
    weights = torch.randn(8, 4, 3, 3)
    step = weights.flatten(1).abs().amax(1).view(8, 1, 1, 1) / (2 ** (bits - 1) - 1)
    rounding = (weights / step).round() * step - weights
    drawn = torch.stack([noise(weights, bits) for _ in range(500)])
    assert (drawn.abs() <= step / 2).all() and (rounding.abs() <= step / 2 * 1.0001).all()
    assert torch.allclose(drawn.mean(0) / step, torch.zeros(()), atol=0.1)
    assert torch.allclose(drawn.std(0) / step, torch.tensor(12**-0.5).expand(8, 4, 3, 3), atol=0.05)


def test_gradients_are_taken_under_noise_and_applied_to_the_weights_themselves():
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    start = net.weight.detach().clone()
    session = TrainingSession(net, [WeightNoise(bits=2), AdamW(lr=1e-12, weight_decay=0.0)], CrossEntropy(), steps=1)
    seen = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(module.weight.detach().clone()))
    session.step(((torch.randn(8, 4),), torch.randint(2, (8,))))
    assert not torch.equal(seen[0], start)
    assert torch.allclose(net.weight, start, atol=1e-9)


def test_weights_that_were_trained_under_noise_bear_rounding_better():
    plain, noisy = (sum(rounded_accuracy(methods, seed) for seed in range(5)) / 5 for methods in ([], [WeightNoise(bits=2)]))
    assert noisy > plain + 0.03


def rounded_accuracy(methods, seed, bits=2):
    """Of a net on fresh examples, after training and after rounding every row of its weights to the nearest."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    settings = Train(epochs=20)
    net = fit(net, [AdamW(lr=1e-2), *methods], curved(1024, 0), CrossEntropy(), settings=settings, seed=seed).model
    x, y = curved(1024, 1).tensors
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                step = p.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                p.copy_((p / step).round() * step)
        return float((net(x).argmax(-1) == y).double().mean())


def curved(n, seed):
    """n points in eight dimensions, and on which side of a curved surface each is."""
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.TensorDataset(x, (x.sin().sum(1) + x[:, 0] * x[:, 1] > 0).long())


def test_a_model_of_vectors_alone_is_told():
    net = nn.LayerNorm(4)
    data = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.randint(4, (8,)))
    done = fit(net, [WeightNoise()], data, CrossEntropy())
    with pytest.raises(NoEffect, match="share of parameters under noise was 0"):
        done.claims[0][1].checked(done.claims[0][0])
