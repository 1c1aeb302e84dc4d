"""Gradients of a held-out loss with respect to an architecture, through one step of the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


@final
class With(nn.Module):
    """A model that runs with other weights than its own.

    Args:
        model: whose structure and buffers are used.
        weights: by the names of its parameters; the others are its own.
    """

    def __init__(self, model: nn.Module, weights: Weights) -> None:
        super().__init__()
        self.__dict__["model"], self.weights = model, weights  # not a submodule: its parameters are not this one's

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self.__dict__["model"], dict(self.weights), args, kwargs)


def second_order(train: Callable[[Weights], Tensor], held: Callable[[Weights], Tensor], weights: Weights,
                 architecture: Sequence[Tensor], rate: float) -> list[Tensor]:
    """Exact gradients of the held-out loss through one step of gradient descent on the training loss:

        d/da  L_held(w - rate grad_w L_train(w, a), a)

    Args:
        train, held: weights -> scalar loss; both depend on the architecture too.
        weights: at which the step begins; they require gradients.
        architecture: tensors that the gradients are of.
        rate: of the step.

    Returns:
        a gradient for each of ``architecture``; zeros for what neither loss depends on.

    Source: "DARTS: Differentiable Architecture Search", Liu, Simonyan and Yang 2019, arXiv:1806.09055, equation 6, by double
    backward in place of its finite differences.

    >>> a, w = torch.tensor(2.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    >>> second_order(lambda now: (a * now["w"]) ** 2, lambda now: now["w"], {"w": w}, [a], 0.1)  # d/da (w - 0.2 a^2 w)
    [tensor(-0.8000)]
    """
    loss = train(weights)
    gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True, allow_unused=True)
    stepped = {name: w if gradient is None else w - rate * gradient
               for (name, w), gradient in zip(weights.items(), gradients, strict=True)}
    found = torch.autograd.grad(held(stepped), list(architecture), allow_unused=True)
    return [torch.zeros_like(a) if gradient is None else gradient for a, gradient in zip(architecture, found, strict=True)]
