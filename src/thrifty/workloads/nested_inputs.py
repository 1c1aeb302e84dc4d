"""Models that are called by names or on nested structures, as models of tensors in order, which is what methods take."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sized
from typing import TYPE_CHECKING, Any, final

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from thrifty.errors import ThriftyError

if TYPE_CHECKING:
    from thrifty.workloads.workload import Workload

Example = tuple[Any, ...] | Mapping[str, Any]


class FlattenError(ThriftyError):
    """An example that cannot be taken apart into named tensors."""


class Flat(nn.Module):
    """forward(tensors in order) = model(*args, **kwargs), these built from the tensors; made by `flatten`.

    A subclass for each list of names gives forward the parameters of those names, from which compilers take them.

    Args:
        model: to call.
        structure: of (args, kwargs).
    """

    names: tuple[str, ...] = ()

    def __init__(self, model: nn.Module, structure: pytree.TreeSpec) -> None:
        super().__init__()
        self.model, self.structure = model, structure

    def forward(self, *tensors: Tensor) -> Any:
        args, kwargs = pytree.tree_unflatten(tensors, self.structure)
        return self.model(*args, **kwargs)


def flatten(model: nn.Module, example: Example) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model of tensors in order, and its example.

    Args:
        model: called as ``model(*example)``, or as ``model(**example)`` where the example is a mapping.
        example: one request; its tensors may lie in nested tuples, lists and dictionaries.

    Returns:
        the model itself where the example is a tuple of tensors, else a `Flat`; and the tensors.

    Raises:
        FlattenError: there are no tensors, other things among them, or two of them get one name.

    >>> import torch
    >>> net = nn.Bilinear(2, 3, 4)
    >>> flat, tensors = flatten(net, {"input2": torch.ones(1, 3), "input1": torch.ones(1, 2)})
    >>> flat.names, torch.equal(flat(*tensors), net(torch.ones(1, 2), torch.ones(1, 3)))
    (('input2', 'input1'), True)
    """
    args, kwargs = ((), dict(example)) if isinstance(example, Mapping) else (tuple(example), {})
    if args and all(isinstance(x, Tensor) for x in args):
        return model, args
    tensors, structure = pytree.tree_flatten((args, kwargs))
    if not tensors or not all(isinstance(x, Tensor) for x in tensors):
        kinds = ", ".join(sorted({type(x).__name__ for x in tensors})) or "nothing"
        raise FlattenError(f"an example must hold only tensors but holds {kinds}: pass the model anything else when it "
                           "is constructed")
    return _class(names_of(model, args, kwargs))(model.eval(), structure), tuple(tensors)


def names_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """A name for each tensor: the key under which it lies, or the parameter of forward to which it goes.

    Raises:
        FlattenError: a name is used twice, or cannot be a parameter's.
    """
    bound = inspect.signature(model.forward).bind_partial(*args).arguments if args else {}
    found = []
    for path, _ in [*pytree.tree_flatten_with_path(bound)[0], *pytree.tree_flatten_with_path(dict(kwargs))[0]]:
        keys = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
        inside = len(keys) > 1 and isinstance(bound.get(keys[0]), Mapping)
        found.append("_".join(keys[1:] if inside else keys))
    for name in found:
        if found.count(name) > 1 or not name.isidentifier():
            raise FlattenError(f"the example's tensor {name!r} must have a name of its own that is an identifier")
    return tuple(found)


@functools.cache
def _class(names: tuple[str, ...]) -> type[Flat]:
    def forward(self: Flat, *tensors: Tensor) -> Any:
        return Flat.forward(self, *tensors)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in ("self", *names)])
    return type("Flat", (Flat,), {"forward": forward, "names": names})


# -- workloads --------------------------------------------------------------------------------------------------


@final
class AloneInOrder(Dataset[tuple[Tensor, ...]]):
    """A data set of inputs alone, mappings of tensors, in the order of the names."""

    def __init__(self, dataset: Dataset[Any], names: tuple[str, ...]) -> None:
        self.dataset, self.names = dataset, names

    def __len__(self) -> int:
        assert isinstance(self.dataset, Sized)
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return in_order(self.dataset[index], self.names, index)


def in_order(inputs: Any, names: tuple[str, ...], index: int) -> tuple[Tensor, ...]:
    """An item's tensors by names.

    Raises:
        FlattenError: the item is no mapping, or lacks one.
    """
    if not isinstance(inputs, Mapping) or not set(names) <= set(inputs):
        given = ", ".join(inputs) if isinstance(inputs, Mapping) else f"a {type(inputs).__name__}"
        raise FlattenError(f"the example has inputs named {', '.join(names)}, so an item's inputs must be a dictionary of these, "
                           f"and item {index} has {given}")
    return tuple(inputs[name] for name in names)


@final
class InOrder(Dataset[tuple[tuple[Tensor, ...], Any]]):
    """A data set whose items' inputs are mappings, with their tensors in the order of the names."""

    def __init__(self, dataset: Dataset[Any], names: tuple[str, ...]) -> None:
        self.dataset, self.names = dataset, names

    def __len__(self) -> int:
        assert isinstance(self.dataset, Sized)
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, ...], Any]:
        inputs, target = self.dataset[index]
        return in_order(inputs, self.names, index), target


def flattened(workload: Workload) -> Workload:
    """A workload whose ``example`` gives mappings of tensors, as one of tensors in order; any other as it is."""
    try:
        example = workload.example(1)
    except (Exception, SystemExit):  # of the user's code: `check_example` tells of it, where that is asked
        return workload
    if not isinstance(example, Mapping) or not all(isinstance(x, Tensor) for x in example.values()):
        return workload
    names, make, draw = tuple(example), workload.model, workload.example

    def ordered(dataset: Dataset[Any] | None) -> Any:
        return None if dataset is None else InOrder(dataset, names)

    return dataclasses.replace(
        workload, model=lambda: flatten(make(), example)[0], example=lambda n: tuple(draw(n)[name] for name in names),
        train=ordered(workload.train), validation=ordered(workload.validation), test=ordered(workload.test),
        unlabelled=None if workload.unlabelled is None else AloneInOrder(workload.unlabelled, names),
    )
