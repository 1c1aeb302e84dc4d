"""Zero-cost proxies: what an architecture may be worth, from one batch at initialization; and size, which they must beat.

All are higher where the architecture is taken to be better. None changes the model: each works on a copy in training mode, so
batch norms normalize by the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from thrifty.errors import ThriftyError
from thrifty.numerics.flat import tensors_of
from thrifty.posttraining.elements import parameters as parameters
from thrifty.training.flops import count_flops
from thrifty.workloads.workload import Batch, Loss

STABILIZER = 1e-5
"""The k of `jacobian_covariance`."""
RELUS: frozenset[Any] = frozenset({nn.functional.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})


# -- controls -----------------------------------------------------------------------------------------------------


def flops(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """FLOPs of one forward pass, 2 a multiply-add: a control.

    >>> flops(nn.Linear(4, 3), (torch.zeros(2, 4),))
    48.0
    """
    with torch.no_grad():
        return count_flops(lambda: copy.deepcopy(model).eval()(*inputs))[1].flops


# -- gradients of the loss ----------------------------------------------------------------------------------------


def grad_norm(model: nn.Module, batch: Batch, loss: Loss) -> float:
    """||dL/dw||_2 over all weights, L the mean loss of a batch.

    Args:
        model: at initialization.
        batch: (inputs, target).
        loss: as workloads have it.

    Paper: "Zero-Cost Proxies for Lightweight NAS", Abdelfattah et al. 2021, arXiv:2101.08134.
    """
    return sum(float(g.double().square().sum()) for _, g in _gradients(model, batch, loss)) ** 0.5


def snip(model: nn.Module, batch: Batch, loss: Loss) -> float:
    """sum |w dL/dw| over all weights, L the mean loss of a batch: how much the loss hangs on the connections.

    Paper: "SNIP: Single-shot Network Pruning based on Connection Sensitivity", Lee et al. 2018, arXiv:1810.02340.
    """
    return sum(float((w * g).double().abs().sum()) for w, g in _gradients(model, batch, loss))


def grasp(model: nn.Module, batch: Batch, loss: Loss) -> float:
    """-sum w (H g) over all weights, g and H the gradient and Hessian of the mean loss of a batch.

    Paper: "Picking Winning Tickets Before Training by Preserving Gradient Flow", Wang et al. 2020, arXiv:2002.07376.
    """
    with torch.enable_grad():
        weights, value = _mean_loss(model, batch, loss)
        first = torch.autograd.grad(value, weights, create_graph=True, allow_unused=True, materialize_grads=True)
        flow = torch.stack([(g * g.detach()).sum() for g in first]).sum()
        second = torch.autograd.grad(flow, weights, allow_unused=True, materialize_grads=True)
    return -sum(float((w.detach() * h.detach()).double().sum()) for w, h in zip(weights, second, strict=True))


def _mean_loss(model: nn.Module, batch: Batch, loss: Loss) -> tuple[list[nn.Parameter], Tensor]:
    model = copy.deepcopy(model).train().requires_grad_(True)
    total, weight = loss(model(*batch[0]), batch)
    return list(model.parameters()), total / weight


def _gradients(model: nn.Module, batch: Batch, loss: Loss) -> Iterator[tuple[Tensor, Tensor]]:
    """(weight, gradient of the mean loss) of every parameter."""
    with torch.enable_grad():
        weights, value = _mean_loss(model, batch, loss)
        found = torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True)
    for weight, gradient in zip(weights, found, strict=True):
        yield weight.detach(), gradient


# -- without labels -------------------------------------------------------------------------------------------------


def synflow(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """sum w dR/dw over all weights, R the sum of outputs where every weight is its absolute value and inputs are ones.

    Batch norms are left out, which would undo what the absolute values say; in float64, since R grows with the product of
    layers. No data is looked at.

    Args:
        model: at initialization.
        inputs: whose shapes are taken, and the first request alone.

    Paper: "Pruning neural networks without any data by iteratively conserving synaptic flow", Tanaka et al. 2020,
    arXiv:2006.05467; without batch norms after "Zero-Cost Proxies for Lightweight NAS", arXiv:2101.08134.
    """
    model = copy.deepcopy(model).double().train().requires_grad_(True)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, nn.Identity())
    with torch.no_grad():
        for weight in model.parameters():
            weight.abs_()
    with torch.enable_grad():
        total = torch.stack([y.sum() for y in tensors_of(model(*(torch.ones_like(x[:1], dtype=torch.float64) for x in inputs)))])
        weights = list(model.parameters())
        found = torch.autograd.grad(total.sum(), weights, allow_unused=True, materialize_grads=True)
    return sum(float((w.detach() * g).sum()) for w, g in zip(weights, found, strict=True))


def jacobian_covariance(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """-sum over i of log(v_i + k) + 1 / (v_i + k), v the eigenvalues of the correlation matrix of the examples' Jacobians.

    The Jacobian of an example is the gradient of the sum of outputs with respect to it. Those of examples that the
    architecture tells apart do not correlate.

    Args:
        model: at initialization.
        inputs: of one batch, of float tensors; the Jacobian is with respect to the first.

    Paper: "Neural Architecture Search without Training", Mellor et al. 2020, arXiv:2006.04647v1.
    """
    model = copy.deepcopy(model).train()
    x = inputs[0].detach().clone().requires_grad_(True)
    with torch.enable_grad():
        total = torch.stack([y.sum() for y in tensors_of(model(x, *inputs[1:]))]).sum()
        (jacobian,) = torch.autograd.grad(total, x)
    values = torch.linalg.eigvalsh(torch.corrcoef(jacobian.flatten(1).double()).nan_to_num())
    return -float((torch.log(values + STABILIZER) + 1 / (values + STABILIZER)).sum())


def naswot(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """log |K|, K_ij the number of rectified linear units that are on for both examples i and j, or off for both.

    Args:
        model: at initialization, with ReLUs.
        inputs: of one batch.

    Raises:
        ThriftyError: the model has no ReLU.

    Paper: "Neural Architecture Search without Training", Mellor et al. 2021, arXiv:2006.04647v3.
    """
    with torch.no_grad(), _Codes() as codes:
        copy.deepcopy(model).train()(*inputs)
    if codes.agreeing is None:
        raise ThriftyError("naswot compares which ReLUs are active, but this model has none: use another proxy")
    return float(torch.linalg.slogdet(codes.agreeing)[1])


@final
class _Codes(TorchFunctionMode):
    """Counts, for each pair of examples, the ReLUs that agree."""

    def __init__(self) -> None:
        super().__init__()
        self.agreeing: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in RELUS:
            on = (out > 0).flatten(1).double()
            both = on @ on.T + (1 - on) @ (1 - on).T
            self.agreeing = both if self.agreeing is None else self.agreeing + both
        return out
