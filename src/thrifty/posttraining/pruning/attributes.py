"""Numbers that a model's own code keeps of its widths: of heads, of parts to split into; and its configuration's."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.posttraining.pruning.dependency import Dependencies, Kind

Told = Mapping[tuple[str, str], int]
"""{(module, attribute): its new value}."""

CONFIGURED: Mapping[Kind | str, tuple[str, ...]] = {
    "channels": ("intermediate_size", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "hidden_dim",
                 "moe_intermediate_size", "mlp_dim"),
    "heads": ("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
              "decoder_attention_heads"),
    "residual": ("hidden_size", "n_embd", "d_model", "dim", "embed_dim"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "blocks": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"),
}
"""Names under which configurations keep sizes."""
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
"""And what norms add to a mean of squares, see `cutting.rescaled`."""


def candidates(model: nn.Module, found: Dependencies, widths: Mapping[int, int]) -> dict[tuple[str, str], int]:
    """Whole numbers of modules that count what leaves: at the module that holds a tensor of a group, and at its parent.

    A number counts heads where its name says so and it is a multiple of the group's; or it is a dimension's length, or a half
    or a third of one that is split into parts.

    Args:
        model: before it is cut.
        found: its groups.
        widths: {group: channels that stay}.
    """
    modules = dict(model.named_modules())
    told: dict[tuple[str, str], int] = {}
    for i, kept in widths.items():
        group = found.groups[i]
        for place, indices in group.members.items():
            owner = place.tensor.rpartition(".")[0]
            length, times = indices.size, indices.shape[1]
            for name in {owner, owner.rpartition(".")[0]}:
                for key, value in vars(modules[name]).items():
                    if type(value) is not int or key.startswith("_") or _builtin(modules[name]):
                        continue
                    heads = "head" in key and not any(word in key for word in ("dim", "size"))
                    if group.kind == "heads" and heads:
                        if value % group.size == 0 and times % (value // group.size) == 0:
                            told[name, key] = value // group.size * kept
                    elif value > 1 and "head_dim" not in key and any(value * parts == length for parts in (1, 2, 3)):
                        told[name, key] = value * kept // group.size
    return told


def _builtin(module: nn.Module) -> bool:
    """torch's own layers, whose numbers `shrink` knows."""
    return type(module).__module__.startswith("torch.nn.")


def tell(model: nn.Module, told: Told) -> None:
    """Set the numbers."""
    modules = dict(model.named_modules())
    for (name, key), value in told.items():
        setattr(modules[name], key, value)


def settle(told: Told, model: nn.Module, works: Callable[[Told], bool]) -> Told | None:
    """The most of the numbers with which the smaller model is right; those of one class and name go together.

    Args:
        told: all that may have to change.
        model: whose they are.
        works: whether a choice of them is right.

    Returns:
        None where no choice is.
    """
    classes: dict[tuple[type, str], list[tuple[str, str]]] = defaultdict(list)
    modules = dict(model.named_modules())
    for name, key in told:
        classes[type(modules[name]), key].append((name, key))
    kinds = list(classes)

    def of(chosen: Iterable[tuple[type, str]]) -> dict[tuple[str, str], int]:
        return {place: told[place] for kind in chosen for place in classes[kind]}

    if works(told):
        return told
    heads = [kind for kind in kinds if "head" in kind[1] and "size" not in kind[1] and "dim" not in kind[1]]
    tries = [heads, *([k for k in kinds if k != left] for left in kinds)]
    if heads or len(kinds) > 1:
        tries.append([])
    return next((of(chosen) for chosen in tries if len(chosen) < len(kinds) and works(of(chosen))), None)


# -- configurations -----------------------------------------------------------------------------------------------


def configurations(model: nn.Module) -> list[Any]:
    """What transformers calls a config, wherever it hangs: each once."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "to_dict") and hasattr(config, "model_type"):
            found[id(config)] = config
    return list(found.values())


def configured(model: nn.Module, sizes: Mapping[str, Mapping[int, set[int]]]) -> list[dict[str, Any]]:
    """{name: new size} for each configuration of the model: where all that a number stood for has the same new size.

    Args:
        model: before it is cut.
        sizes: {kind: {size before: sizes after, of every part that had it}}.
    """
    changes = []
    for config in configurations(model):
        found: dict[str, Any] = {}
        for kind, names in CONFIGURED.items():
            for name in names:
                value = getattr(config, name, None)
                if type(value) is int and (after := _after(value, sizes.get(kind, {}), kind)) not in (None, value):
                    found[name] = after
        if "residual" in sizes and found.keys() & set(CONFIGURED["residual"]):
            wider = config.hidden_size / next(found[name] for name in CONFIGURED["residual"] if name in found)
            found |= {name: getattr(config, name) * wider for name in EPSILONS if isinstance(getattr(config, name, None), float)}
        if "heads" in sizes and found.keys() & set(CONFIGURED["heads"]) and getattr(config, "head_dim", None) is None:
            found |= _head_size(model, config)
        if "channels" in sizes and getattr(config, "n_inner", 0) is None:  # GPT-2: four times the width, unless it is said
            inner = sizes["channels"].get(4 * config.n_embd, set())
            found |= {"n_inner": next(iter(inner))} if len(inner) == 1 else {}
        changes.append(found)
    return changes


def _after(value: int, sizes: Mapping[int, set[int]], kind: Kind | str) -> int | None:
    """The new size of what had that one, where there is one; of query heads too, of which a group may hold several."""
    after = sizes.get(value, set())
    if kind == "heads" and not after and len(sizes) == 1:
        before, kept = next(iter(sizes.items()))
        after = {value // before * each for each in kept} if value % before == 0 else set()
    return next(iter(after)) if len(after) == 1 else None


def _head_size(model: nn.Module, config: Any) -> dict[str, int]:
    """The size of a head, which follows from the heads' number no longer; where the configuration can say it."""
    sizes = {size for module in model.modules() if type(size := vars(module).get("head_dim")) is int}
    return {"head_dim": sizes.pop()} if len(sizes) == 1 and hasattr(config, "head_dim") else {}


def configure(model: nn.Module, changes: Iterable[Mapping[str, Any]]) -> None:
    """Change the configurations, each as `configured` says. They are the model's own after: other models may share them."""
    old = configurations(model)
    new = {id(config): copy.deepcopy(config) for config in old}
    for config, change in zip(old, changes, strict=True):
        for name, value in change.items():
            setattr(new[id(config)], name, value)
    for module in model.modules():
        if id(getattr(module, "config", None)) in new:
            module.config = new[id(module.config)]


def misfits(model: nn.Module) -> list[str]:
    """Classes of parts of the model whose configuration, changed as it is, would make a model of other shapes."""
    found = []
    for module in model.modules():
        config = vars(module).get("config")
        if config is None or not hasattr(module, "save_pretrained"):
            continue
        try:
            with torch.device("meta"):
                again = type(module)(copy.deepcopy(config))
        except Exception:  # whatever a constructor says to sizes that it did not expect
            found.append(type(module).__name__)
            continue
        shapes = {name: tensor.shape for name, tensor in again.state_dict().items()}
        own: Mapping[str, Tensor] = module.state_dict()
        if any(name in shapes and tensor.shape != shapes[name] for name, tensor in own.items()):
            found.append(type(module).__name__)
        break  # the outermost has the others in it
    return found
