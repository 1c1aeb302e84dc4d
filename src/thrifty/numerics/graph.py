"""The graph of a convolutional net: batch norms to fold, and the edges that an integer engine keeps as bytes."""

from __future__ import annotations

import copy
import inspect
import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse_conv_bn_eval  # type: ignore[attr-defined]

from thrifty.numerics.flat import distance
from thrifty.numerics.plain import WEIGHED, is_one_of

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
    conv: Any = module
    return is_one_of(module, CONVOLUTIONS) and conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)


class _Tracer(fx.Tracer):
    """Traces a forward that is given so many inputs: its other arguments have their defaults.

    Args:
        given: how many; None for all that the forward names.
    """

    def __init__(self, given: int | None) -> None:
        super().__init__()
        self.given = given

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*WEIGHED, *_NORMS)) or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        if self.given is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)  # type: ignore[no-untyped-call, no-any-return]
        names: list[str] = []
        for parameter in list(inspect.signature(root_fn).parameters.values())[1:]:
            if parameter.kind is parameter.VAR_POSITIONAL:
                names += [f"{parameter.name}_{i}" for i in range(self.given - len(names))]
            elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                names.append(parameter.name)
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names[:self.given])]


def trace(model: nn.Module, given: int | None = None) -> fx.GraphModule | None:
    """The model as a graph over its own modules, or None where its Python cannot be traced.

    Parameters keep their names, and batch sizes stay free.

    Args:
        model: put into eval mode.
        given: inputs that it gets; arguments behind them are bound to their defaults. None for all that it names.
    """
    if "forward" in vars(model):  # of this object alone, and its class is what is traced
        return None
    try:
        tracer = _Tracer(given)
        graph = tracer.trace(model.eval())
        return fx.GraphModule(tracer.root, graph, type(model).__name__)
    except Exception:  # whatever the model's own code raises when it meets a proxy
        return None


def reproduces(graph: nn.Module, model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """How far a graph's answers are from the model's, relative to these; infinite where it cannot run.

    Both are run on copies, with the same random numbers.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        want = copy.deepcopy(model)(*inputs)
        torch.manual_seed(0)
        try:
            return distance(copy.deepcopy(graph)(*inputs), want)
        except Exception:  # whatever a wrong branch leads to
            return float("inf")


def fold(graph: fx.GraphModule) -> list[tuple[str, str]]:
    """Fold every batch norm into the convolution before it, in place; names of (convolution, norm).

    w' = w g / sqrt(v + e), b' = (b - m) g / sqrt(v + e) + beta. Only where nothing else reads the convolution.
    """
    _drop_idle(graph)
    modules, calls, read = dict(graph.named_modules()), _calls(graph), _read(graph)
    folded = []
    for node in list(graph.graph.nodes):
        norm: Any = _module(node, modules)
        before = node.args[0] if is_one_of(norm, _NORMS) and node.args else None
        conv: Any = _module(before, modules) if isinstance(before, fx.Node) else None
        if not (isinstance(before, fx.Node) and is_one_of(conv, CONVOLUTIONS)):
            continue
        if len(before.users) > 1 or calls[before.target] > 1 or calls[node.target] > 1 or norm.running_mean is None:
            continue
        if {str(before.target), str(node.target)} & read or conv.weight.is_complex():
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
    modules, calls, read = dict(graph.named_modules()), _calls(graph), _read(graph)
    owners = Counter(id(p) for module in modules.values() for p in module._parameters.values() if p is not None)

    def once(node: fx.Node) -> bool:
        module: Any = _module(node, modules)
        return (module is not None and is_convolution(module) and calls[node.target] == 1
                and str(node.target) not in read and owners[id(module.weight)] == 1)

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
        if is_one_of(_module(node, modules), (nn.Identity, nn.Dropout)) and node.args and isinstance(node.args[0], fx.Node):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _calls(graph: fx.GraphModule) -> dict[Any, int]:
    counted: dict[Any, int] = {}
    for node in graph.graph.nodes:
        counted[node.target] = counted.get(node.target, 0) + 1
    return counted


def _read(graph: fx.GraphModule) -> set[str]:
    """Modules whose tensors the graph itself reads."""
    return {str(node.target).rpartition(".")[0] for node in graph.graph.nodes if node.op == "get_attr"}


def _module(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules.get(str(node.target)) if node.op == "call_module" else None


def _is(node: fx.Node, modules: dict[str, nn.Module], functions: frozenset[Any],
        classes: tuple[type[nn.Module], ...]) -> bool:
    if node.op == "call_module":
        module = modules.get(str(node.target))
        return is_one_of(module, classes) and not getattr(module, "return_indices", False)
    return node.op in ("call_function", "call_method") and node.target in functions


def exchange(model: nn.Module, kinds: Mapping[type[nn.Module], Callable[[Any], nn.Module]]) -> nn.Module:
    """Put what ``kinds`` makes of it in the place of every module of exactly such a type; of the model too."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) in kinds and name:
            replace(model, name, kinds[type(module)](module))
    return model if type(model) not in kinds else kinds[type(model)](model)


def replace(root: nn.Module, name: str, module: nn.Module) -> None:
    """Set the submodule of that dotted name, and of every other name that the same module has."""
    old = root.get_submodule(name)
    for parent in list(root.modules()):
        for leaf, child in parent._modules.items():
            if child is old:
                parent._modules[leaf] = module
