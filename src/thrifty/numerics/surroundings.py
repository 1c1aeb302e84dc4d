"""What surrounds a model's layers: which of them a forward reaches, and whose weights other code reads by itself."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from thrifty.numerics import graph as graphs
from thrifty.numerics.plain import WEIGHED, why_kept

READ = "other code reads its weight"
FUSED = "torch's fused attention reads its weight"
UNREACHED = "calibration does not reach it"
_LOOKS = frozenset({"dtype", "device", "shape", "ndim", "requires_grad", "layout", "is_cuda", "is_leaf", "is_meta", "is_mps",
                    "is_quantized", "is_sparse", "is_cpu", "names", "grad_fn", "size", "dim", "numel", "is_floating_point",
                    "is_complex", "element_size", "get_device", "is_contiguous", "stride", "__len__", "__hash__", "data_ptr"})
"""What code may ask of a weight without reading its numbers."""


@final
@dataclass
class Surroundings:
    """Args:
        reached: names of the layers that a forward came to.
        read: names of those whose weights other code reads.
    """

    reached: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)


def kept(model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, str]:
    """{layer: why no other may stand in its place} of all layers with weights.

    Args:
        model: in eval mode; it is run on a copy.
        example: inputs that it takes; where there are none, code that reads weights by itself is not noticed.
    """
    found = {name: reason for name, module in model.named_modules() if (reason := why_kept(module))}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and isinstance(getattr(module, "out_proj", None), nn.Linear):
            found[f"{name}.out_proj".removeprefix(".")] = FUSED
    if example:
        looked = look(model, [example])
        found |= {name: found.get(name, READ) for name in looked.read}
    return found


def look(model: nn.Module, batches: Iterable[tuple[Tensor, ...]], wanted: Iterable[str] = ()) -> Surroundings:
    """Run a copy of the model, and see.

    Args:
        model: in eval mode.
        batches: of inputs, taken as long as one of ``wanted`` was not reached; the first always.
        wanted: names of layers.
    """
    twin, missing = copy.deepcopy(model), set(wanted)
    layers = {name: module for name, module in twin.named_modules() if isinstance(module, WEIGHED)}
    found, running, handles = Surroundings(), list[str](), list[Any]()
    for name, module in layers.items():
        if not isinstance(module, graphs.CONVOLUTIONS):  # what stands for a convolution has a weight to look at
            _watch(module, name, running, found.read)
        handles.append(module.register_forward_pre_hook(_entering(name, running, found.reached)))
        handles.append(module.register_forward_hook(_leaving(running), always_call=True))
    for name, module in twin.named_modules():
        if isinstance(module, nn.TransformerEncoder):
            handles.append(module.register_forward_pre_hook(_padded(name, found.read), with_kwargs=True))
    with warnings.catch_warnings(), torch.no_grad(), _Reads(layers, running, found.read):
        warnings.simplefilter("ignore")  # what torch has to say of a layer, it says where the layer is used
        for batch in batches:
            twin(*batch)
            missing -= found.reached
            if not missing:
                break
    return found


def slow(model: nn.Module) -> None:
    """Have transformer layers that hold other than float linear layers compute by their modules, in place.

    torch's fused kernel, which it takes in eval mode, reads the weights by itself.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and not all(
                isinstance(each, nn.Linear) for each in (module.linear1, module.linear2)):
            module.activation_relu_or_gelu = 0


class _Reads(TorchFunctionMode):
    """Notices functions that take a layer's weight while that layer does not run."""

    def __init__(self, layers: Mapping[str, nn.Module], running: list[str], read: set[str]) -> None:
        super().__init__()
        self.running, self.read = running, read
        self.owners: dict[int, set[str]] = {}
        for name, module in layers.items():
            for parameter in module.parameters(recurse=False):
                if parameter.dim() > 1:
                    self.owners.setdefault(id(parameter), set()).add(name)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        name = getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else name
        if name not in _LOOKS:
            for tensor in _inside((args, kwargs or {})):
                names = self.owners.get(id(tensor), set())
                if not names.intersection(self.running):
                    self.read |= names
        return func(*args, **(kwargs or {}))


def _watch(module: nn.Module, name: str, running: list[str], read: set[str]) -> None:
    """Have a layer notice who asks for its matrices, be it for their type alone, while it does not run."""
    matrices = {key for key, p in module._parameters.items() if p is not None and p.dim() > 1}

    class Watched(type(module)):  # type: ignore[misc]
        def __getattr__(self, key: str) -> Any:
            if key in matrices and name not in running:
                read.add(name)
            return super().__getattr__(key)

    module.__class__ = Watched


def _inside(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _inside(part)
    elif isinstance(value, dict):
        yield from _inside(list(value.values()))


def _entering(name: str, running: list[str], reached: set[str]) -> Callable[..., None]:
    def enter(module: nn.Module, inputs: Any) -> None:
        running.append(name)
        reached.add(name)

    return enter


def _leaving(running: list[str]) -> Callable[..., None]:
    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    return leave


def _padded(name: str, read: set[str]) -> Callable[..., None]:
    """Over padded rows the fused stack gives zeros, and what its layers give by themselves is something else."""
    def enter(module: nn.TransformerEncoder, inputs: Any, named: Mapping[str, Any]) -> None:
        mask = named.get("src_key_padding_mask", inputs[2] if len(inputs) > 2 else None)
        if mask is not None and getattr(module, "use_nested_tensor", False):
            for i, _ in enumerate(module.layers):
                read.update(f"{name}.layers.{i}.{part}".removeprefix(".") for part in ("linear1", "linear2"))

    return enter
