"""Tensor parallelism: each rank of a team multiplies by its part of a matrix, by the plan that the model brings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, final

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.parallel.style import ParallelStyle

from thrifty.architectures.attention import Attention
from thrifty.architectures.moe import MoE
from thrifty.errors import ThriftyError
from thrifty.training.distributed.experts import put_back, share_out
from thrifty.training.distributed.parallel import local

STYLES: Mapping[str, type[ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
"""Words of a plan that split a linear layer: by its outputs, which stay split, and by its inputs, which come split."""
PARTIAL = "replicated_with_grad_allreduce"
"""A whole weight that works on split values: each rank has a part of its gradient."""
EXPERTS = "experts"
"""A `MoE`, which needs no plan: each rank has some of its experts."""
WHOLE = frozenset({"colwise_gather_output", "colwise_rep", "embedding_rowwise", "replicate", "rowwise_split_input"})
"""Words that split a layer whose inputs and outputs are whole: left whole, it gives the same."""
_HEADS = ("num_attention_heads", "num_key_value_heads")


def planned(model: nn.Module, ways: int) -> dict[str, str]:
    """The layers that a model's plan splits, and how: {name: word}.

    A plan is the attribute ``tp_plan`` of a module, {pattern of names: word}, as the models of transformers have it. The
    experts of a `MoE` are sharded without one.

    Args:
        model: or a module around one that brings a plan.
        ways: ranks that share a matrix.

    Raises:
        ThriftyError: there is no plan, or it cannot be followed: a word that is not known, a layer that is no ``nn.Linear``, a
            size or a number of heads or experts that does not divide.

    >>> class Net(nn.Module):
    ...     tp_plan = {"row.*": "colwise"}
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.row = nn.ModuleList([nn.Linear(4, 8)])
    >>> planned(Net(), 2)
    {'row.0': 'colwise'}
    """
    modules = dict(model.named_modules())
    names = [*modules, *(name for name, _ in model.named_parameters())]
    found: dict[str, str] = {}
    for prefix, plan in _plans(modules):
        for pattern, word in plan.items():
            fits = re.compile(re.escape(prefix + pattern).replace(r"\*", r"\d+"))
            for name in filter(fits.fullmatch, names):
                if word not in WHOLE:
                    found[name] = _followed(name, word, modules.get(name), ways)
    found |= {name: EXPERTS for name, module in modules.items() if isinstance(module, MoE)}
    if not found:
        raise ThriftyError(f"{type(model).__name__} brings no plan of which matrices to split: give its class "
                           'tp_plan = {"blocks.*.up": "colwise", "blocks.*.down": "rowwise"} with names of its own, or remove '
                           "tensor")
    for what, count in _counts(modules, found):
        if count % ways:
            raise ThriftyError(f"tensor={ways} does not divide the {count} {what}: give a divisor")
    return found


def _plans(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """(what stands before its names, plan) of the outermost modules that bring one."""
    inside: list[str] = []
    for name, module in modules.items():
        plan = getattr(module, "tp_plan", None)
        if plan and not any(name.startswith(prefix) for prefix in inside):
            inside.append(f"{name}." if name else "")
            yield inside[-1], plan


def _followed(name: str, word: str, module: nn.Module | None, ways: int) -> str:
    """The word, where it can be followed."""
    if word == PARTIAL and module is not None:
        return word
    if word not in STYLES or module is None:
        raise ThriftyError(f"the plan splits {name} by {word!r}, which Thrifty does not know: it knows "
                           f"{', '.join((*STYLES, PARTIAL))}; remove tensor")
    if type(module) is not nn.Linear:
        raise ThriftyError(f"{name} is {type(module).__name__}, but only nn.Linear can be split: remove tensor, or the method "
                           "that changes the layer")
    size = module.out_features if word == "colwise" else module.in_features
    if size % ways:
        raise ThriftyError(f"tensor={ways} does not divide the {size} {'outputs' if word == 'colwise' else 'inputs'} of {name}: "
                           "give a divisor")
    return word


def _counts(modules: Mapping[str, nn.Module], plan: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Numbers of heads and of experts, of which each rank computes its own."""
    for name, module in modules.items():
        if isinstance(module, MoE):
            yield f"experts of {name}", len(module.gate_up)
        if isinstance(module, Attention) and f"{name}.query" in plan:
            yield from ((f"heads of {name}", module.heads), (f"key heads of {name}", module.kv_heads))
        config = getattr(module, "config", None)
        for what in _HEADS:
            if isinstance(count := getattr(config, what, None), int):
                yield f"{what} of {type(module).__name__}", count


@final
class Split:
    """A model whose matrices are split over a team, in place.

    Args:
        model: the same on all ranks.
        mesh: the team, of one dimension.
        plan: what `planned` gave.
    """

    def __init__(self, model: nn.Module, mesh: DeviceMesh, plan: Mapping[str, str]) -> None:
        self._group = mesh.get_group()
        self._attentions = [m for n, m in model.named_modules() if isinstance(m, Attention) and f"{n}.query" in plan]
        self._ways, self._partial, self._hooks = mesh.size(), list[nn.Module](), list[tuple[nn.Module, set[int], set[int]]]()
        self._mixtures: list[MoE] = []
        for name, word in plan.items():
            module = model.get_submodule(name)
            if isinstance(module, MoE):
                share_out(module, mesh)
                self._mixtures.append(module)
                continue
            if word == PARTIAL:
                self._partial.append(module)
                continue
            self._hooks.append((module, set(module._forward_pre_hooks), set(module._forward_hooks)))
            parallelize_module(module, mesh, STYLES[word](), src_data_rank=None)  # type: ignore[arg-type]  # nothing is sent
        for attention in self._attentions:
            attention.heads, attention.kv_heads = attention.heads // self._ways, attention.kv_heads // self._ways

    def add_partial(self) -> None:
        """Add over the team the gradients of which each rank has a part."""
        for module in self._partial:
            for p in module.parameters():
                if p.grad is not None:
                    dist.all_reduce(local(p.grad), group=self._group)

    def undo(self) -> None:
        """Leave the model's modules as they were; its parameters are whole again already."""
        for module, before, after in self._hooks:
            hooks: tuple[tuple[Any, set[int]], ...] = ((module._forward_pre_hooks, before), (module._forward_hooks, after))
            for there, kept in hooks:
                for key in [key for key in there if key not in kept]:
                    del there[key]
            vars(module).pop("_distribute_module_applied", None)
        for layer in self._mixtures:
            put_back(layer)
        for attention in self._attentions:
            attention.heads, attention.kv_heads = attention.heads * self._ways, attention.kv_heads * self._ways
