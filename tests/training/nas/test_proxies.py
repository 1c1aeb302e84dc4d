"""Every proxy against its paper's equation, weight by weight and pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.training.nas import proxies
from thrifty.workloads.workload import CrossEntropy


class Net(nn.Module):
    """Small, smooth enough for differences; with a ReLU as a module and one as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.on, self.last = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(self.on(self.norm(self.first(x)))))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(1)
    return Net().double()


@pytest.fixture
def batch() -> tuple[tuple[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (torch.randn(6, 3, generator=generator, dtype=torch.float64),), torch.arange(6) % 4


def mean_loss(model: nn.Module, batch: tuple[tuple[Tensor], Tensor], flat: np.ndarray) -> float:
    torch.nn.utils.vector_to_parameters(torch.from_numpy(flat), model.parameters())
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model.train()(*batch[0]), batch[1]))


def differences(model: nn.Module, batch: tuple[tuple[Tensor], Tensor], at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The gradient of the mean loss, by central differences."""
    found = np.zeros_like(at)
    for i in range(len(at)):
        up, down = at.copy(), at.copy()
        up[i] += step
        down[i] -= step
        found[i] = (mean_loss(model, batch, up) - mean_loss(model, batch, down)) / (2 * step)
    return found


def flat(model: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy().copy()


def test_controls_count(net, batch):
    assert proxies.parameters(net) == 3 * 5 + 5 + 2 * 5 + 5 * 4
    assert proxies.flops(net, batch[0]) == 2 * 6 * (3 * 5 + 5 * 4)


def test_grad_norm_and_snip_are_those_of_differences(net, batch):
    weights = flat(net)
    found = proxies.grad_norm(net, batch, CrossEntropy()), proxies.snip(net, batch, CrossEntropy())
    gradient = differences(Net().double(), batch, weights)
    assert found[0] == pytest.approx(math.sqrt((gradient**2).sum()), rel=1e-5)
    assert found[1] == pytest.approx(np.abs(weights * gradient).sum(), rel=1e-5)


def test_grasp_is_that_of_differences_of_gradients(net, batch):
    weights, model = flat(net), Net().double()
    found = proxies.grasp(net, batch, CrossEntropy())
    gradient, step = differences(model, batch, weights), 1e-4
    product = (differences(model, batch, weights + step * gradient) - differences(model, batch, weights - step * gradient)) / (
        2 * step)
    assert found == pytest.approx(-(weights * product).sum(), rel=1e-3, abs=1e-6)


def test_synflow_sums_over_paths():
    """Of positive weights R is a sum over paths of products: each weight's part is that of the paths through it."""
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2, bias=False))
    a, b = (net[i].weight.detach().abs().double() for i in (0, 3))
    expected = sum(float(b[o, h] * a[h, i]) for o in range(2) for h in range(3) for i in range(2)) * 2  # two weights a path
    assert proxies.synflow(net, (torch.randn(5, 2),)) == pytest.approx(expected, rel=1e-9)


def test_jacobian_covariance_is_the_papers(net, batch):
    (x,) = batch[0]
    rows = []
    for i in range(len(x)):  # of the sum over the batch: in training, examples reach one another through batch norm
        own = []
        for k in range(x.shape[1]):
            moved = []
            for step in (1e-6, -1e-6):
                y = x.clone()
                y[i, k] += step
                with torch.no_grad():
                    moved.append(float(net.train()(y).sum()))
            own.append((moved[0] - moved[1]) / 2e-6)
        rows.append(own)
    jacobian = np.array(rows)
    jacobian -= jacobian.mean(1, keepdims=True)
    covariance = jacobian @ jacobian.T
    deviation = np.sqrt(np.diag(covariance))
    values = np.linalg.eigvalsh(covariance / np.outer(deviation, deviation))
    # Six examples of three numbers: four eigenvalues are zero, so 1 / k is most of it, and to be compared loosely.
    expected = -(np.log(np.abs(values) + 1e-5) + 1 / (np.abs(values) + 1e-5)).sum()
    assert proxies.jacobian_covariance(net, (x,)) == pytest.approx(expected, rel=1e-3)


def test_naswot_counts_units_that_agree(net, batch):
    with torch.no_grad():
        hidden = net.norm.train()(net.first(*batch[0]))
        codes = torch.cat([hidden > 0, net.last(torch.relu(hidden)) > 0], 1).tolist()
    kernel = [[float(sum(p == q for p, q in zip(a, b, strict=True))) for b in codes] for a in codes]
    sign, expected = np.linalg.slogdet(np.array(kernel))
    if sign == 0:
        pytest.skip("two examples of one code")
    assert proxies.naswot(net, batch[0]) == pytest.approx(expected)


def test_naswot_wants_relus():
    with pytest.raises(ThriftyError, match="this model has none"):
        proxies.naswot(nn.Linear(2, 2), (torch.randn(3, 2),))


@pytest.mark.parametrize("name", ["grad_norm", "snip", "grasp", "synflow", "jacobian_covariance", "naswot", "flops"])
def test_the_model_stays_as_it_is(net, batch, name):
    before = {key: x.clone() for key, x in net.state_dict().items()}
    labelled = name in ("grad_norm", "snip", "grasp")
    getattr(proxies, name)(net, *((batch, CrossEntropy()) if labelled else (batch[0],)))
    assert net.training and all(torch.equal(x, before[key]) for key, x in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
