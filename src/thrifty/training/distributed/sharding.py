"""A model sharded in place by torch's `fully_shard`, and put together again."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed import _composable_state
from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from thrifty.compilers.inprocess import blocks
from thrifty.errors import ThriftyError


def shard(model: nn.Module, mesh: DeviceMesh, *, reshard: bool, gathered: torch.dtype | None = None,
          offload: bool = False) -> None:
    """Leave each rank its rows of every parameter; forward and backward passes gather what they need.

    Each block of a row of equal blocks is gathered by itself, everything else together; a block that shares a parameter with
    another part of the model is part of that everything. Gradients are summed over ranks, not averaged.

    Args:
        model: the same on all ranks, on its device (anywhere where it is offloaded); changed in place, names of parameters
            stay.
        mesh: of one dimension, or of two: ranks that hold the same, ranks that hold parts.
        reshard: whether a block is given back after its forward pass, and gathered again for its backward pass.
        gathered: precision in which parameters are gathered; gradients are added in float32 then.
        offload: whether each rank's rows of parameters and gradients lie in the host's memory.

    Raises:
        ThriftyError: a parameter cannot be sharded; says which.
    """
    unsuited = ignored(model)
    for name, p in model.named_parameters():
        if not p.is_contiguous() and p not in unsuited:
            raise ThriftyError(f"parameter {name} of shape {tuple(p.shape)} is not contiguous, and cannot be sharded: use ddp, "
                               "or make it so with .contiguous()")
    policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy if gathered else MixedPrecisionPolicy(),
                               "ignored_params": unsuited}
    if offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    for block in apart(model):
        fully_shard(block, reshard_after_forward=reshard, **options)
    fully_shard(model, reshard_after_forward=False, **options)
    for module in sharded_modules(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        if hasattr(module, "set_reduce_scatter_unused_params"):  # torch 2.13: what a rank does not reach counts as 0
            module.set_reduce_scatter_unused_params(True)


def ignored(model: nn.Module) -> set[nn.Parameter]:
    """Parameters of which every rank holds all: single numbers, and what is held in few bits."""
    return {p for p in model.parameters() if p.ndim == 0 or not (p.is_floating_point() or p.is_complex())}


def apart(model: nn.Module) -> list[nn.Module]:
    """Blocks that are gathered by themselves: those of rows of equal blocks that share no parameter with anything else."""
    uses: Counter[int] = Counter()
    for module in model.modules():
        uses.update(id(p) for p in module._parameters.values() if p is not None)
    row = list({id(block): block for block in blocks(model)}.values())
    times = Counter(map(id, blocks(model)))

    def own(block: nn.Module) -> bool:
        inside: Counter[int] = Counter()
        for module in block.modules():
            inside.update(id(p) for p in module._parameters.values() if p is not None)
        return bool(inside) and times[id(block)] == 1 and all(uses[p] == count for p, count in inside.items())

    return [block for block in row if own(block)]


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules that `fully_shard` was given."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def gathered_groups(model: nn.Module) -> Iterator[Any]:
    """torch's groups of parameters that are gathered together."""
    for module in sharded_modules(model):
        state = module._get_fsdp_state()
        yield from getattr(state, "_fsdp_param_groups", None) or filter(None, [state._fsdp_param_group])


def put_together(model: nn.Module) -> nn.Module:
    """The same model as it was before `shard`, with all of every parameter on every rank; ties stay ties."""
    made: dict[int, nn.Parameter] = {}
    groups, wrapped = list(gathered_groups(model)), sharded_modules(model)
    for module in wrapped:
        module.reshard()
    for module in model.modules():
        for name, p in module._parameters.items():
            if isinstance(p, DTensor):
                if id(p) not in made:
                    kept = cast(Tensor, p).full_tensor().detach()  # type: ignore[attr-defined]
                    made[id(p)] = nn.Parameter(kept, requires_grad=p.requires_grad)
                module._parameters[name] = made[id(p)]
    for group in groups:
        for handles in (group._module_to_pre_save_state_dict_hook_handle, group._module_to_pre_load_state_dict_hook_handle):
            for handle in handles.values():
                handle.remove()
        for fsdp_param in group.fsdp_params:
            fsdp_param._post_load_hook_handle.remove()
    for module in wrapped:
        state = module._get_fsdp_state()
        state._pre_forward_hook_handle.remove()
        state._post_forward_hook_handle.remove()
    for module in wrapped:
        module.__class__ = type(module).__mro__[2]  # torch's mixin stands between its own class and the first one
        _composable_state._module_state_mapping.pop(module, None)
        for key in (STATE_KEY, REGISTRY_KEY):
            vars(module).pop(key, None)
    for module in model.modules():
        for flag in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
            with contextlib.suppress(AttributeError):
                delattr(module, flag)
    return model
