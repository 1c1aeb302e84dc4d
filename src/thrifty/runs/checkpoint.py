"""A model after a phase: the workload it came from, the plans so far, its weights in safetensors.

No module is ever pickled: a checkpoint is rebuilt by applying the plans to a fresh model of the workload and loading
the weights last.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import safetensors.torch
import torch
from torch import nn

from thrifty.errors import ThriftyError
from thrifty.recipes.claim import Claim
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.transform import Plan, Transform
from thrifty.runs.making import made
from thrifty.studies.ledger import Charge, Ledger
from thrifty.workloads.loading import load_workload

FORMAT = 2


class CheckpointError(ThriftyError):
    """A checkpoint that is not whole, of another version, or of another model."""


@final
@dataclass(frozen=True)
class MethodClaim:
    """A claim and the method that made it."""

    method: str
    claim: Claim


@final
@dataclass(frozen=True)
class Checkpoint:
    """What a phase left, apart from the weights.

    Args:
        workload: where a fresh process finds the workload.
        recipe: the phases so far.
        plans: (the transform's text, its plan), in order.
        claims: of all methods so far, with the values that were probed.
        charges: all it cost to come here, as if alone.
        curve: (seconds so far, quality on validation), over all phases.
    """

    workload: str
    recipe: str
    plans: tuple[tuple[str, Plan], ...] = ()
    claims: tuple[MethodClaim, ...] = ()
    charges: tuple[Charge, ...] = ()
    curve: tuple[tuple[float, float], ...] = ()


def save(checkpoint: Checkpoint, model: nn.Module, directory: Path) -> None:
    """Write a checkpoint into an existing directory."""
    safetensors.torch.save_model(model, str(directory / "model.safetensors"))
    tensors = {
        f"{i}/{name}": tensor.detach().cpu().contiguous().clone()  # a plan may name one tensor twice
        for i, (_, plan) in enumerate(checkpoint.plans)
        for name, tensor in plan.tensors.items()
    }
    safetensors.torch.save_file(tensors, directory / "plans.safetensors")
    document = {
        "format": FORMAT,
        "workload": checkpoint.workload,
        "recipe": checkpoint.recipe,
        "plans": [{"method": text, "values": dict(plan.values), "timings": plan.timings}
                  for text, plan in checkpoint.plans],
        "claims": [_claim_to_json(claim) for claim in checkpoint.claims],
        "charges": [charge.to_json() for charge in checkpoint.charges],
        "curve": [list(point) for point in checkpoint.curve],
    }
    (directory / "checkpoint.json").write_text(json.dumps(document, indent=1))


def read(directory: Path) -> Checkpoint:
    """Read a checkpoint's description and plans.

    Raises:
        CheckpointError: it is not whole or of another version.
    """
    try:
        document = json.loads((directory / "checkpoint.json").read_text())
        tensors = safetensors.torch.load_file(directory / "plans.safetensors")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{directory} does not hold a complete checkpoint: {error}") from error
    if document.get("format") != FORMAT:
        raise CheckpointError(
            f"{directory} is a checkpoint of format {document.get('format')}; this version reads {FORMAT}"
        )
    plans = tuple(
        (entry["method"], Plan(entry["values"], _part(tensors, i), tuple(entry["timings"])))
        for i, entry in enumerate(document["plans"])
    )
    return Checkpoint(
        workload=document["workload"],
        recipe=document["recipe"],
        plans=plans,
        claims=tuple(_claim_from_json(value) for value in document["claims"]),
        charges=Ledger.from_json(document["charges"]).charges,
        curve=tuple((seconds, quality) for seconds, quality in document["curve"]),
    )


def load(directory: Path, fresh: nn.Module) -> tuple[Checkpoint, nn.Module]:
    """Rebuild the model: apply the plans to a fresh model, then load the weights.

    Raises:
        CheckpointError: the weights do not session.
    """
    checkpoint = read(directory)
    model = rebuild(fresh, checkpoint.plans)
    try:
        safetensors.torch.load_model(model, str(directory / "model.safetensors"))
    except (RuntimeError, OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"the weights in {directory} do not fit the model that {checkpoint.workload} makes now: {error}"
        ) from error
    return checkpoint, model.eval()


def rebuild(fresh: nn.Module, plans: Sequence[tuple[str, Plan]]) -> nn.Module:
    """Apply plans, in order, to a fresh model; needs no data."""
    model = fresh
    for text, plan in plans:
        model = _transform(text).build(model, plan)
    return model


def list_layers(checkpoint: Checkpoint, model: nn.Module) -> list[dict[str, Any]]:
    """What the checkpoint's transforms made of single layers of its model."""
    return [row for text, plan in checkpoint.plans for row in _transform(text).list_layers(model, plan)]


def _transform(text: str) -> Transform:
    (transform,) = Recipe.parse(text)
    if not isinstance(transform, Transform):
        raise CheckpointError(f"{text} has a plan but is not a transform")
    return transform


def load_module(workload: str, directory: str | None) -> nn.Module:
    """The workload's model as a checkpoint left it, or as it comes, in eval mode; callable on the inputs.

    Args:
        workload: a reference that `load_workload` takes.
        directory: of a checkpoint, or None.
    """
    definition = load_workload(workload)
    with torch.no_grad():
        fresh = made(definition)
        if directory is None:
            return fresh.eval()
        return load(Path(directory), fresh)[1]


def _part(tensors: Mapping[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    prefix = f"{index}/"
    return {name[len(prefix):]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _claim_to_json(entry: MethodClaim) -> dict[str, Any]:
    claim = entry.claim
    return {
        "method": entry.method, "what": claim.what, "before": claim.before, "after": claim.after,
        "minimum": claim.minimum, "fact": claim.fact,
        "probe": claim.probe and f"{claim.probe.__module__}:{claim.probe.__qualname__}",
    }


def _claim_from_json(value: Mapping[str, Any]) -> MethodClaim:
    rest = {key: value[key] for key in ("what", "before", "after", "minimum", "fact")}
    return MethodClaim(value["method"], Claim(**rest, probe=_probe(value["probe"])))


def _probe(place: str | None) -> Callable[[nn.Module], float] | None:
    """A probe is a function of a module, so that a later process finds it again by its name."""
    if place is None:
        return None
    module, _, name = place.partition(":")
    if not module.startswith("thrifty.") and not name.isidentifier():
        raise CheckpointError(f"{place} is not a probe: a probe is a top-level function of its module")
    found: Callable[[nn.Module], float] = getattr(importlib.import_module(module), name)
    return found
