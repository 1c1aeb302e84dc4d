"""The blocks of a model: which modules are exchanged, how each is called, and what it reads and gives."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from thrifty.errors import ThriftyError
from thrifty.numerics.flat import tensors_of
from thrifty.recipes.hyperparameters import matches

PLAIN = (type(None), bool, int, float, str)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class _Enough(Exception):
    """A forward pass that has shown what was wanted."""


# -- which --------------------------------------------------------------------------------------------------------


def names(model: nn.Module, pattern: str = "") -> list[str]:
    """Names of the modules that are exchanged.

    Args:
        model: whose.
        pattern: over names; without one, the children of the model, and in their place those of containers that hold more
            than plain layers.

    Raises:
        ThriftyError: nothing matches, or one match stands in another.

    >>> net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2)]))
    >>> names(net)
    ['0', '1.0', '1.1']
    """
    if pattern:
        found = [name for name, _ in model.named_modules() if name and matches(pattern, name)]
        if not found:
            some = ", ".join([name for name, _ in model.named_modules() if name][:8])
            raise ThriftyError(f"blocks={pattern!r} matches no module of the model, which has {some}, ...")
        nested = [(a, b) for a in found for b in found if b.startswith(f"{a}.")]
        if nested:
            raise ThriftyError(f"blocks={pattern!r} matches {nested[0][0]} and {nested[0][1]} inside it: blocks cannot be "
                               "nested; make the pattern narrower")
        return found
    found = list(_walked(model, ""))
    while len(found) == 1 and (inner := list(_walked(model.get_submodule(found[0]), f"{found[0]}."))):
        found = inner  # a module around the model
    return found


def _walked(module: nn.Module, prefix: str) -> Iterator[str]:
    for name, child in module.named_children():
        if not any(True for _ in child.parameters()):
            continue
        if _holds_blocks(child):
            yield from _walked(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _holds_blocks(module: nn.Module) -> bool:
    """Whether blocks stand in it: in a container whatever has weights and is no plain layer; in a module with code of its own
    modules with code of their own, one after the other in a container. A residual block of layers, grouped or not, is one block.
    """
    if isinstance(module, CONTAINERS):
        return any((isinstance(child, CONTAINERS) and _weighs(child)) or _is_own(child) for child in module.children())
    return any(isinstance(inner, CONTAINERS) and any(map(_is_own, inner.children())) for inner in module.modules())


def _is_own(child: nn.Module) -> bool:
    """Whether it has weights, and code that is none of torch's."""
    return not isinstance(child, CONTAINERS) and not type(child).__module__.startswith("torch.nn") and _weighs(child)


def _weighs(child: nn.Module) -> bool:
    return any(True for _ in child.parameters())


# -- how it is called ---------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Form:
    """How a block is called: what stands beside its tensors, as JSON values.

    Args:
        structure: of the arguments.
        constants: {position among the flattened arguments: value} of those that are no tensors.
        count: flattened arguments.
    """

    structure: str
    constants: Mapping[str, Any]
    count: int

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Form:
        """Raises:
            ThriftyError: an argument is neither a tensor nor a plain value.
        """
        leaves, structure = pytree.tree_flatten((args, dict(kwargs)))
        strange = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, (Tensor, *PLAIN))]
        if strange:
            raise ThriftyError(f"it is called with a {strange[0]}, which is neither a tensor nor a plain value")
        constants = {str(i): leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
        return Form(pytree.treespec_dumps(structure), constants, len(leaves))

    @functools.cached_property
    def _spec(self) -> Any:
        return pytree.treespec_loads(self.structure)

    @functools.cached_property
    def simple(self) -> bool:
        """Whether it is called with tensors alone, by position."""
        return self.structure == Form.of((torch.zeros(()),) * self.count, {}).structure and not self.constants

    def arguments(self, tensors: tuple[Tensor, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = iter(tensors)
        leaves = [self.constants[str(i)] if str(i) in self.constants else next(given) for i in range(self.count)]
        found: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(leaves, self._spec)
        return found

    @staticmethod
    def tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        return tuple(leaf for leaf in pytree.tree_flatten((args, dict(kwargs)))[0] if isinstance(leaf, Tensor))


@final
class Apart(nn.Module):
    """A block that is called with its tensors alone, as the form says: what methods, clocks and exporters take."""

    def __init__(self, block: nn.Module, form: Form) -> None:
        super().__init__()
        self.block, self.form = block, form

    def extra_repr(self) -> str:
        return repr(self.form)

    def forward(self, *tensors: Tensor) -> Any:
        args, kwargs = self.form.arguments(tensors)
        return self.block(*args, **kwargs)


@final
class InPlace(nn.Module):
    """What a method made of an `Apart`, called as the block was."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*Form.tensors(args, kwargs))


@final
class LeftOut(nn.Module):
    """Gives what it reads.

    Args:
        wrapped: whether the block that stood here gave a tuple.
    """

    def __init__(self, wrapped: bool) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = Form.tensors(args, kwargs)[0]
        return (x,) if self.wrapped else x


def apart(block: nn.Module, form: Form) -> nn.Module:
    """The block as a module of tensors alone: itself where it is called so. A layer gets a name within: methods exchange what has
    one."""
    return block if form.simple and any(True for _ in block.children()) else Apart(block, form)


def in_place(module: nn.Module, form: Form) -> nn.Module:
    """The reverse of `apart`, after methods changed the module."""
    if isinstance(module, Apart):
        return module.block
    return module if form.simple else InPlace(module)


# -- what it reads and gives --------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Block:
    """A module that can be exchanged.

    Args:
        name: in the model.
        form: how it is called.
        example: its tensors for one request.
        skippable: whether it gives one tensor of the shape of the first that it reads.
        wrapped: whether it gives that in a tuple.
    """

    name: str
    form: Form
    example: tuple[Tensor, ...]
    skippable: bool
    wrapped: bool


def blocks(model: nn.Module, chosen: Iterable[str], example: tuple[Tensor, ...]) -> tuple[list[Block], dict[str, str]]:
    """The blocks that can be exchanged, in the order in which they run.

    Args:
        model: in eval mode.
        chosen: names.
        example: one request.

    Returns:
        them, and {name: why not} of the others.
    """
    chosen = list(chosen)
    calls: dict[str, list[tuple[Any, Any, Any]]] = {name: [] for name in chosen}
    order: list[str] = []
    handles = []
    for name in chosen:
        def heard(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            calls[name].append((args, kwargs, output))
            order.append(name)
        handles.append(model.get_submodule(name).register_forward_hook(heard, with_kwargs=True))
    try:
        with torch.no_grad():
            model(*example)
    finally:
        for handle in handles:
            handle.remove()
    shared = _shared(model)
    left: dict[str, str] = {}
    found: dict[str, Block] = {}
    for name in chosen:
        module = model.get_submodule(name)
        inside = {id(p) for p in module.parameters()}
        if len(calls[name]) != 1:
            left[name] = "it does not run" if not calls[name] else f"it runs {len(calls[name])} times in a request"
        elif any(shared[i] > sum(id(p) == i for _, p in module.named_parameters(remove_duplicate=False)) for i in inside):
            left[name] = "another module has its weights too"
        else:
            args, kwargs, output = calls[name][0]
            try:
                form = Form.of(args, kwargs)
            except ThriftyError as error:
                left[name] = str(error)
                continue
            reads, gives = Form.tensors(args, kwargs), tensors_of(output)
            wrapped = isinstance(output, tuple)
            alike = bool(reads) and len(gives) == 1 and gives[0].shape == reads[0].shape and gives[0].dtype == reads[0].dtype
            found[name] = Block(name, form, tuple(x.detach().clone() for x in reads),
                                alike and (isinstance(output, Tensor) or (wrapped and len(output) == 1)), wrapped)
    return [found[name] for name in dict.fromkeys(order) if name in found], left


def _shared(model: nn.Module) -> Counter[int]:
    return Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))


@final
@dataclass(frozen=True)
class Call:
    """One call of a block `apart` on calibration data, as `Context.distil` takes it.

    Args:
        args: the tensors that it read.
        output: what it gave.
    """

    args: tuple[Tensor, ...]
    output: Any
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    valid: None = None


def calls(model: nn.Module, name: str, batches: Iterable[tuple[Tensor, ...]], most: int) -> list[Call]:
    """Run the model up to a block, batch by batch, and keep what the block read and gave.

    Args:
        model: in eval mode.
        name: of the block.
        batches: of the model's inputs.
        most: numbers in its inputs at which it is enough.
    """
    found: list[Call] = []

    def read(_: nn.Module, args: Any, kwargs: Any) -> None:
        found.append(Call(tuple(x.detach().clone() for x in Form.tensors(args, kwargs)), None))  # before it writes over them

    def gave(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        found[-1] = Call(found[-1].args, pytree.tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, output))
        raise _Enough

    module = model.get_submodule(name)
    handles = [module.register_forward_pre_hook(read, with_kwargs=True), module.register_forward_hook(gave, with_kwargs=True)]
    try:
        with torch.no_grad():
            for batch in batches:
                with contextlib.suppress(_Enough):
                    model(*batch)
                if sum(x.numel() for call in found for x in call.args) >= most:
                    break
    finally:
        for handle in handles:
            handle.remove()
    return found
