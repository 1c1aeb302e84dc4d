"""Short blockwise distillation: a changed block learns to give what the block gave, on what the block read."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from thrifty.numerics.flat import tensors_of
from thrifty.posttraining.nas.blocks import Flow

RATE = 1e-3
"""Of Adam, falling to zero along a cosine."""


def error(module: nn.Module, given: Flow) -> float:
    """sum |y - y_block|^2 / sum |y_block - mean|^2 over all batches, its mean over the outputs that are numbers."""
    scales = _scales(given)
    lost = torch.zeros(len(scales))
    with torch.no_grad():
        for inputs, outputs in zip(given.inputs, given.outputs, strict=True):
            lost += torch.stack(_errors(module, inputs, outputs))
    return float((lost / torch.stack(scales)).mean()) if scales else 0.0


def matched(module: nn.Module, given: Flow, held: Flow, steps: int, rate: float = RATE) -> nn.Module:
    """The module after so many steps of Adam on the relative squared error of its outputs, a batch a step, in turn.

        L = sum |y - y_block|^2 / sum |y_block - mean|^2

    Batch norms keep their statistics. Where it did not bring the outputs closer on batches that it was not trained on, the
    module stays as it was.

    Args:
        module: in eval mode; not changed.
        given: what the block read and gave.
        held: more of it, to judge by.
        steps: 0 gives the module itself.
        rate: the first learning rate.

    Source: "Puzzle: Distillation-Based NAS for Inference-Optimized LLMs", Bercovich et al. 2024, arXiv:2411.19146, section 3.1.
    """
    trained = copy.deepcopy(module)
    for parameter in trained.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    parameters = [p for p in trained.parameters() if p.requires_grad]
    scales = _scales(given)
    if not (steps and parameters and scales):
        return module
    optimizer = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    with torch.enable_grad():
        for step in range(steps):
            i = step % len(given.inputs)
            losses = _errors(trained, given.inputs[i], given.outputs[i])
            loss = torch.stack([loss * len(given.inputs) / scale for loss, scale in zip(losses, scales, strict=True)]).mean()
            if not loss.isfinite():
                return module
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    for parameter, own in zip(trained.parameters(), module.parameters(), strict=True):
        parameter.requires_grad_(own.requires_grad)
        parameter.grad = None
    return trained if error(trained, held) < error(module, held) else module


def _numbers(tensors: tuple[Tensor, ...] | list[Tensor]) -> list[Tensor]:
    return [x.float() for x in tensors if x.is_floating_point()]


def _scales(given: Flow) -> list[Tensor]:
    """Variance of each output over all batches, summed."""
    columns = zip(*map(_numbers, given.outputs), strict=True)
    return [torch.stack([(x - x.mean(0)).square().sum() for x in column]).sum().clamp_min(1e-12) for column in columns]


def _errors(module: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> list[Tensor]:
    found = _numbers(tensors_of(module(*inputs)))
    return [(a - b).square().sum() for a, b in zip(found, _numbers(outputs), strict=True)]
