"""Inductor inside the user's own process: repeated blocks compiled once for all, CUDA graphs for a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

REPEATED = 3
"""Blocks of one class in a row from which compiling one for all saves more than fusing across them gains."""


def compiled(model: nn.Module, *, regions: bool = True, cuda_graphs: bool = False, dynamic: bool | None = None) -> nn.Module:
    """Compile a model in place, for your own loop; nothing is written, and training works too.

    A row of equal blocks (a transformer's layers) is compiled once, as one graph that all of them share, so that
    compilation takes the time of one block; what stands around them runs as it did. A model without such a row is compiled
    whole.

    Args:
        model: compiled in place; names of parameters and buffers stay.
        regions: False compiles the model whole, which takes longer and fuses across blocks too.
        cuda_graphs: replay CUDA graphs, which a small batch gains most from; inputs must keep their shapes. Whole models
            only, since a graph for each block would copy between them.
        dynamic: as torch.compile has it.

    Returns:
        the same model.

    >>> net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)])
    >>> compiled(net) is net, len(list(blocks(net)))
    (True, 6)
    """
    options: dict[str, Any] = {"mode": "reduce-overhead"} if cuda_graphs else {}
    row = list(blocks(model)) if regions and not cuda_graphs else []
    for module in row or [model]:
        module._compiled_call_impl = torch.compile(_inlined(module), dynamic=dynamic, **options)
    return model


def _inlined(module: nn.Module) -> Callable[..., Any]:
    """The module's call as a function of ours: torch compiles no frame of its own library, which the call of an
    ``nn.Sequential`` or ``nn.TransformerEncoderLayer`` is, but what a function calls it does.
    """
    def call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    return call


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Modules that stand in a row of at least `REPEATED` of one class, the outermost such rows.

    >>> net = nn.Sequential(nn.Embedding(9, 4), nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(3)]))
    >>> [type(block).__name__ for block in blocks(net)]
    ['Sequential', 'Sequential', 'Sequential']
    """
    children = list(model.children())
    kinds = {type(child) for child in children}
    if isinstance(model, nn.Sequential | nn.ModuleList) and len(children) >= REPEATED and len(kinds) == 1:
        yield from children
        return
    for child in children:
        yield from blocks(child)


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Within it, compiled modules run as they were written.

    For passes that a `TorchDispatchMode` looks at. torch.compile does not compile under one, and what it met there it
    never compiles later either: looking at the first step would leave the whole training eager.

    >>> net = compiled(nn.Linear(4, 4))
    >>> with eagerly():
    ...     net(torch.ones(2, 4)).shape
    torch.Size([2, 4])
    """
    with torch.compiler.set_stance("force_eager"):
        yield


def released(model: nn.Module) -> nn.Module:
    """The model as it was before `compiled`."""
    for module in model.modules():
        module._compiled_call_impl = None
    return model
