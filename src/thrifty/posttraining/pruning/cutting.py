"""Channels leave: slices of tensors, the smaller model, and the model of full size that it must agree with."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from thrifty.errors import ThriftyError
from thrifty.numerics.flat import tensors_of
from thrifty.posttraining.pruning.dependency import Dependencies, Place

Cut = Mapping[int, Sequence[int]]
"""{group's position: the channels that stay, ascending}."""
Stays = Mapping[Place, Sequence[int]]
"""{dimension of a parameter or buffer: indices that stay, ascending}."""
EPSILONS = ("eps", "variance_epsilon")
"""What norms call the number that they add to a mean of squares."""


def slices(model: nn.Module, found: Dependencies, cut: Cut) -> dict[Place, list[int]]:
    """{place: indices that stay, ascending} of every dimension that shrinks."""
    gone: dict[Place, set[int]] = defaultdict(set)
    for i, kept in cut.items():
        staying = set(kept)
        leaving = [c for c in range(found.groups[i].size) if c not in staying]
        for place, indices in found.groups[i].members.items():
            gone[place].update(indices[leaving].reshape(-1).tolist())
    shapes = {name: tensor.shape for name, tensor in named_tensors(model)}
    return {place: [k for k in range(shapes[place.tensor][place.dim]) if k not in lost]
            for place, lost in gone.items()}


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def rescaled(model: nn.Module, found: Dependencies, stays: Stays) -> dict[str, float]:
    """{weight of a norm: sqrt(all / kept)} of norms that run over fewer channels.

    A norm divides by the root of a mean over n channels. Over the n' that stay, the others being near zero, the mean is
    n / n' times as large: sqrt(n / n') on the weight, and n / n' on the epsilon, give what the wide norm gave, and exactly so
    for a root mean square.
    """
    shapes = {name: tensor.shape for name, tensor in model.named_parameters()}
    return {place.tensor: (shapes[place.tensor][0] / len(kept)) ** 0.5 for place, kept in stays.items()
            if place.tensor in found.norms and len(shapes.get(place.tensor, ())) == 1}


# -- the smaller model ------------------------------------------------------------------------------------------


def shrink(model: nn.Module, stays: Stays, scales: Mapping[str, float] | None = None) -> nn.Module:
    """Slice tensors of a model in place, wherever they stand, and tell modules of their new widths.

    Args:
        model: changed in place.
        stays: {dimension of a parameter or buffer: indices that stay}.
        scales: {parameter: factor}, see `rescaled`.

    Raises:
        ThriftyError: the model does not have such a tensor.
    """
    cuts: dict[str, list[tuple[int, Sequence[int]]]] = defaultdict(list)
    for place, kept in stays.items():
        cuts[place.tensor].append((place.dim, kept))
    smaller: dict[int, Tensor] = {}
    factors: dict[int, float] = {}
    before = dict(named_tensors(model))
    for name, parts in cuts.items():
        if name not in before:
            raise ThriftyError(f"the plan prunes {name}, which this model does not have: it was made for another model")
        tensor = before[name].detach()
        for dim, kept in parts:
            if kept and (dim >= tensor.ndim or max(kept) >= tensor.shape[dim]):
                raise ThriftyError(f"the plan does not fit {name} of shape {tuple(before[name].shape)}: it was made "
                                   "for another model")
            tensor = tensor.index_select(dim, torch.tensor(list(kept), device=tensor.device))
        if scales and name in scales:
            tensor = tensor * scales[name]
            factors[id(before[name])] = scales[name]
        smaller[id(before[name])] = (nn.Parameter(tensor, requires_grad=before[name].requires_grad)
                                     if isinstance(before[name], nn.Parameter) else tensor)
    for module in model.modules():  # a tied tensor is replaced in every place by the same new one
        changed, wider = False, 1.0
        own: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for store in own:
            for key, value in store.items():
                if id(value) in smaller:
                    wider = max(wider, factors.get(id(value), 1.0) ** 2)
                    store[key] = smaller[id(value)]
                    changed = True
        if changed:
            _tell(module)
            for key in EPSILONS:
                if wider > 1 and isinstance(vars(module).get(key), float):
                    setattr(module, key, getattr(module, key) * wider)
    return model


def _tell(module: Any) -> None:
    """Bring a module's own record of its widths up to date: printing, exporting and groups depend on it."""
    match module:
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            module.in_channels, module.out_channels = module.weight.shape[:2]
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            if module.groups > 1:  # whole groups leave
                module.groups = module.groups * module.weight.shape[0] // module.out_channels
            module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
        case nn.Embedding():
            module.embedding_dim = module.weight.shape[1]
        case nn.LayerNorm() | nn.RMSNorm():
            module.normalized_shape = tuple(module.weight.shape)
        case nn.modules.batchnorm._BatchNorm():
            width = module.weight if module.weight is not None else module.running_mean
            module.num_features = len(width) if width is not None else module.num_features
        case _ if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # of transformers: [in, out]
            module.nx, module.nf = module.weight.shape


# -- the model of full size that it must agree with ---------------------------------------------------------------


def masked(model: nn.Module, found: Dependencies, kept: Stays) -> nn.Module:
    """A copy of the model, of the same size, with zeros wherever a removed channel would be read.

    Where a layer norm runs over them, its mean and variance are of the channels that stay.
    """
    model = copy.deepcopy(model)
    tensors = dict(named_tensors(model))
    with torch.no_grad():
        for place, staying in kept.items():
            if place in found.reads:
                tensors[place.tensor].index_fill_(place.dim, _lost(tensors[place.tensor], place.dim, staying), 0)
        norms = _silence(found, kept, tensors)
    return _LookingPast(model, norms) if norms else model


def _lost(tensor: Tensor, dim: int, staying: Sequence[int]) -> Tensor:
    lost = torch.ones(tensor.shape[dim], dtype=torch.bool)
    lost[list(staying)] = False
    return lost.nonzero()[:, 0].to(tensor.device)


def _silence(found: Dependencies, kept: Stays, tensors: Mapping[str, Tensor]) -> dict[int, list[int]]:
    """Zero what writes the removed channels of a residual stream too, since norms see them.

    Returns:
        {id of a norm's weight: channels that stay}.
    """
    normed = {place for group in found.groups if group.kind == "residual" for place in group.members}
    norms: dict[int, list[int]] = {}
    for place, staying in kept.items():
        if place in normed and place.tensor in found.norms:
            norms[id(tensors[place.tensor])] = list(staying)
        elif place in normed:
            tensors[place.tensor].index_fill_(place.dim, _lost(tensors[place.tensor], place.dim, staying), 0)
    return norms


@final
class _LookingPast(nn.Module):
    """A model whose layer norms take mean and variance over the channels that stay; the others become zero."""

    def __init__(self, model: nn.Module, norms: Mapping[int, list[int]]) -> None:
        super().__init__()
        self.model, self.norms = model, norms

    def forward(self, *inputs: Tensor) -> Any:
        with _Restricted(self.norms):
            return self.model(*inputs)


class _Restricted(TorchFunctionMode):
    def __init__(self, norms: Mapping[int, list[int]]) -> None:
        super().__init__()
        self.norms = norms

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args, strict=False)) | (kwargs or {})
        if func is not nn.functional.layer_norm or id(given.get("weight")) not in self.norms:
            return func(*args, **(kwargs or {}))
        x, weight, bias = given["input"], given["weight"], given.get("bias")
        kept, out = self.norms[id(weight)], torch.zeros_like(x)
        wider = x.shape[-1] / len(kept)
        out[..., kept] = nn.functional.layer_norm(x[..., kept], (len(kept),), weight[kept] * wider**0.5,
                                                  None if bias is None else bias[kept], given.get("eps", 1e-5) * wider)
        return out


def agree(small: nn.Module, whole: nn.Module, example: tuple[Tensor, ...]) -> bool:
    """Whether the smaller model runs, and gives what the masked one gives."""
    try:
        found = tensors_of(small(*example))
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError):
        return False
    expected = tensors_of(whole(*example))
    return len(found) == len(expected) and all(a.shape == b.shape and _close(a, b)
                                               for a, b in zip(found, expected, strict=True) if b.numel())


def _close(a: Tensor, b: Tensor) -> bool:
    if a.is_complex() != b.is_complex():
        return False
    a, b = (torch.view_as_real(x) if x.is_complex() else x for x in (a, b))
    return torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-3 * float(b.abs().max()), equal_nan=True)
