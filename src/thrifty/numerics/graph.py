"""The graph of a convolutional net: batch norms to fold, and the edges that an integer engine keeps as bytes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse_conv_bn_eval  # type: ignore[attr-defined]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_RELUS: frozenset[Any] = frozenset({torch.relu, nn.functional.relu, "relu", "relu_"})
_SUMS: frozenset[Any] = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
_POOLS: frozenset[Any] = frozenset({
    nn.functional.max_pool2d, nn.functional.avg_pool2d, nn.functional.adaptive_avg_pool2d, torch.max_pool2d,
})
_MAXIMA: frozenset[Any] = frozenset({nn.functional.max_pool2d, torch.max_pool2d})
_POOL_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
# f(s x) = s f(x) for s > 0, channel by channel. ReLU6 has a ceiling that does not move with s.
_SCALES_FUNCTIONS = _RELUS | _POOLS | {nn.functional.leaky_relu, nn.functional.relu_}
_SCALES_MODULES = (nn.ReLU, nn.LeakyReLU, nn.PReLU, *_POOL_MODULES)


def is_convolution(module: nn.Module) -> bool:
    """Whether `QuantConv` can stand for it."""
    return isinstance(module, CONVOLUTIONS) and module.padding_mode == "zeros" and isinstance(module.padding, tuple)


def trace(model: nn.Module) -> fx.GraphModule | None:
    """The model as a graph over its own modules, or None where its Python cannot be traced.

    Parameters keep their names, and batch sizes stay free.
    """
    try:
        return fx.symbolic_trace(model.eval())
    except Exception:  # whatever the model's own code raises when it meets a proxy
        return None


def fold(graph: fx.GraphModule) -> list[tuple[str, str]]:
    """Fold every batch norm into the convolution before it, in place; names of (convolution, norm).

    w' = w g / sqrt(v + e), b' = (b - m) g / sqrt(v + e) + beta. Only where nothing else reads the convolution.
    """
    _drop_idle(graph)
    modules, calls = dict(graph.named_modules()), _calls(graph)
    folded = []
    for node in list(graph.graph.nodes):
        norm = _module(node, modules)
        before = node.args[0] if isinstance(norm, _NORMS) and node.args else None
        conv = _module(before, modules) if isinstance(before, fx.Node) else None
        if not (isinstance(before, fx.Node) and isinstance(conv, CONVOLUTIONS) and isinstance(norm, _NORMS)):
            continue
        if len(before.users) > 1 or calls[before.target] > 1 or calls[node.target] > 1 or norm.running_mean is None:
            continue
        replace(graph, str(before.target), fuse_conv_bn_eval(conv, norm))
        replace(graph, str(node.target), nn.Identity())
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
        folded.append((str(before.target), str(node.target)))
    graph.recompile()
    return folded


def edges(graph: fx.GraphModule, floats: Collection[str] = ()) -> list[str]:
    """Names of the nodes whose outputs an integer engine keeps as bytes, in the order of the graph.

    Inputs and outputs of convolutions, and what lies between two of them: activations, residual sums, pools. A value
    that only feeds a ReLU is left, since the engine fuses the two; so is a pool that feeds nothing of all this.

    Args:
        graph: its batch norms folded.
        floats: names of convolutions that stay float.
    """
    modules = {name: module for name, module in graph.named_modules() if name not in floats}
    marked: list[str] = []
    inside: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if not _bytes_out(node, modules, inside):
            continue
        inside.add(node)
        readers = list(node.users)
        only_relu = len(readers) == 1 and _is(readers[0], modules, _RELUS, (nn.ReLU,))
        last_pool = (_is(node, modules, _POOLS, _POOL_MODULES)
                     and not any(_reads_bytes(reader, modules) for reader in readers))
        if not only_relu and not last_pool:
            marked.append(node.name)
    return marked


def _bytes_out(node: fx.Node, modules: dict[str, nn.Module], inside: set[fx.Node]) -> bool:
    module = _module(node, modules)
    if module is not None and is_convolution(module):
        return True
    if any(is_convolution(m) for m in (_module(user, modules) for user in node.users) if m is not None):
        return node.op != "output"
    parents = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if not parents or not all(parent in inside for parent in parents):
        return False
    return (_is(node, modules, _RELUS, (nn.ReLU,)) or _is(node, modules, _POOLS, _POOL_MODULES)
            or (_is(node, modules, _SUMS, ()) and len(parents) == 2))


def _reads_bytes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    module = _module(node, modules)
    return ((module is not None and is_convolution(module)) or _is(node, modules, _SUMS, ())
            or _is(node, modules, _POOLS, _POOL_MODULES) or _is(node, modules, _RELUS, (nn.ReLU,)))


def insert(graph: fx.GraphModule, names: Iterable[str], make: Callable[[str], nn.Module]) -> None:
    """Put ``make(name)`` on the output of each named node, in place."""
    nodes = {node.name: node for node in graph.graph.nodes}
    for name in names:
        node = nodes[name]
        graph.add_submodule(f"edge_{name}", make(name))
        with graph.graph.inserting_after(node):
            edge = graph.graph.call_module(f"edge_{name}", (node,))
        node.replace_all_uses_with(edge, delete_user_cb=lambda user, edge=edge: user is not edge)
    graph.recompile()


def input_edges(graph: fx.GraphModule, marked: Iterable[str]) -> dict[str, str]:
    """The edge that feeds each convolution: {module's name: node's name}.

    A module that is called twice is left out: its two inputs may have two grids.
    """
    modules, calls, names = dict(graph.named_modules()), _calls(graph), set(marked)
    found: dict[str, str] = {}
    for node in graph.graph.nodes:
        module = _module(node, modules)
        if module is None or not is_convolution(module) or calls[node.target] > 1:
            continue
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and source.name in names:
            found[str(node.target)] = source.name
    return found


def pairs(graph: fx.GraphModule) -> list[tuple[str, str]]:
    """Names of convolutions (first, second) where nothing but the second reads the first, through f(s x) = s f(x).

    ReLU, leaky ReLU and pools scale like that; what is called twice is left out, as its two surroundings may differ.
    """
    modules, calls = dict(graph.named_modules()), _calls(graph)

    def once(node: fx.Node) -> bool:
        module = _module(node, modules)
        return module is not None and is_convolution(module) and calls[node.target] == 1

    found: list[tuple[str, str]] = []
    for node in graph.graph.nodes:
        reader = next(iter(node.users), node)
        if not once(node):
            continue
        before = node
        while len(before.users) == 1 and _is(reader, modules, _SCALES_FUNCTIONS, _SCALES_MODULES):
            before, reader = reader, next(iter(reader.users), reader)
        if len(before.users) == 1 and once(reader) and reader.args[:1] == (before,):
            found.append((str(node.target), str(reader.target)))
    return found


def activation(graph: fx.GraphModule, name: str) -> Callable[[Tensor], Tensor]:
    """The ReLU that alone reads the module's output; the identity where there is none."""
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        if node.op == "call_module" and node.target == name:
            readers = list(node.users)
            if len(readers) == 1 and _is(readers[0], modules, _RELUS, (nn.ReLU,)):
                return torch.relu
    return lambda x: x


def same_grid(graph: fx.GraphModule, marked: Iterable[str]) -> dict[str, str]:
    """{max pool's node: the marked node it reads}: a maximum is one of its inputs, so the grid stays."""
    modules, names = dict(graph.named_modules()), set(marked)
    return {
        node.name: node.args[0].name
        for node in graph.graph.nodes
        if node.name in names and _is(node, modules, _MAXIMA, (nn.MaxPool2d,))
        and isinstance(node.args[0], fx.Node) and node.args[0].name in names
    }


def _drop_idle(graph: fx.GraphModule) -> None:
    """Take modules that do nothing in inference out of the graph: they would hide what they stand between."""
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        if isinstance(_module(node, modules), nn.Identity | nn.Dropout) and isinstance(node.args[0], fx.Node):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _calls(graph: fx.GraphModule) -> dict[Any, int]:
    counted: dict[Any, int] = {}
    for node in graph.graph.nodes:
        counted[node.target] = counted.get(node.target, 0) + 1
    return counted


def _module(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules.get(str(node.target)) if node.op == "call_module" else None


def _is(node: fx.Node, modules: dict[str, nn.Module], functions: frozenset[Any],
        classes: tuple[type[nn.Module], ...]) -> bool:
    if node.op == "call_module":
        return isinstance(modules.get(str(node.target)), classes)
    return node.op in ("call_function", "call_method") and node.target in functions


def exchange(model: nn.Module, kinds: Mapping[type[nn.Module], Callable[[Any], nn.Module]]) -> nn.Module:
    """Put what ``kinds`` makes of it in the place of every module of exactly such a type; of the model too."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) in kinds and name:
            replace(model, name, kinds[type(module)](module))
    return model if type(model) not in kinds else kinds[type(model)](model)


def replace(root: nn.Module, name: str, module: nn.Module) -> None:
    """Set the submodule of that dotted name."""
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)
