"""A trial's model again, and as a directory that transformers loads."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from thrifty.artifacts import artifact
from thrifty.errors import ThriftyError, WorkloadError
from thrifty.interchange.compressed_tensors import export_compressed_tensors
from thrifty.measure.environment import VERSION
from thrifty.recipes.recipe import Recipe
from thrifty.runs import cache, checkpoint
from thrifty.runs.checkpoint import Checkpoint
from thrifty.runs.context import outputs_of
from thrifty.runs.job import Job, checkpoint_key, seed_of
from thrifty.runs.launcher import LocalLauncher
from thrifty.runs.making import made
from thrifty.studies.card import figure_lines
from thrifty.studies.events import Listener, ignore
from thrifty.studies.trial import Trial
from thrifty.target import Machine, Target
from thrifty.workloads import huggingface
from thrifty.workloads.fingerprint import fingerprint
from thrifty.workloads.huggingface.directory import BESIDE, written
from thrifty.workloads.huggingface.models import is_transposed, quiet, transformers_model
from thrifty.workloads.loading import load_workload
from thrifty.workloads.quality import batches, length
from thrifty.workloads.workload import Workload

FFN_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim")
"""What configs call the width of the feed-forward layers."""
PARITY = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest relative Frobenius error of what is loaded again: sums run in another order where widths were filled up."""
ROWS = 8
OTHER_FORMAT = "the trial's engine can be saved as it is: --format artifact"


class SavingError(ThriftyError):
    """A model that the format asked for cannot hold."""


# -- the model --------------------------------------------------------------------------------------------------


def model_of(trial: Trial, workload: Workload, listener: Listener = ignore) -> nn.Module:
    """The module that a trial's phases left, before its compiler, in eval mode.

    It comes from the cache where that still has it, or else the phases are run again, in a process of their own, with
    the trial's seed and target: the same weights under the same version of Thrifty and torch, but for the rounding of
    sums, whose order the number of cores decides.

    Args:
        trial: a finished one.
        workload: that it was run on.
        listener: hears events where phases run again.

    Raises:
        SavingError: the trial failed, or the workload has changed since.
        RunFailed: the phases fail this time.
    """
    return _left(trial, workload, listener)[1]


def _left(trial: Trial, workload: Workload, listener: Listener) -> tuple[Checkpoint, nn.Module]:
    if trial.status != "done":
        raise SavingError(f"trial {trial.id} failed and left no model: {trial.error}")
    if (found := fingerprint(workload)) != trial.workload_hash:
        raise SavingError(f"{workload.name} has changed since trial {trial.id} was run (its hash was "
                          f"{trial.workload_hash[:12]} and is {found[:12]}): its model cannot be rebuilt; run the "
                          "recipe again")
    target = Target(**trial.target)
    job = Job(workload.source, trial.workload_hash, trial.recipe, trial.seed, target, Machine(target.device), lower=False)
    key = checkpoint_key(job, Recipe.parse(trial.recipe).transforms)
    kept = _cached(key, trial, workload)
    if kept is None:
        LocalLauncher().run(job, listener)
        kept = _cached(key, trial, workload)
    if kept is None:
        raise SavingError(f"the cache did not keep the model of trial {trial.id}; raise THRIFTY_CACHE_QUOTA")
    return kept


def _cached(key: str, trial: Trial, workload: Workload) -> tuple[Checkpoint, nn.Module] | None:
    with cache.using("checkpoints", key) as place:
        return None if place is None else checkpoint.load(place, _fresh(workload, trial.seed))


def _fresh(workload: Workload, seed: int) -> nn.Module:
    """As the run's process made it."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed_of(seed, 0, "weights"))
        return made(workload)


# -- as a directory of transformers -----------------------------------------------------------------------------


def save(directory: Path, trial: Trial, format: str, source: str | None) -> None:
    """Write a trial into a new directory: its engine as it was measured, or its model as transformers reads it.

    Args:
        directory: new.
        trial: a finished one.
        format: "artifact", "hf" or "compressed-tensors".
        source: where the study's workload is found, which the latter two need.

    Raises:
        ThriftyError: the artifact is gone, or the model does not fit the format.
    """
    if format in MODELS:
        if source is None:
            raise SavingError("the study does not say where its workload is: run any recipe of it again, then save")
        MODELS[format](directory, trial, load_workload(source))
        return
    if trial.artifact is None or not Path(trial.artifact.path).is_dir():
        raise SavingError(f"the artifact of trial {trial.id} is gone; run its recipe again: {trial.recipe}")
    artifact.copy(Path(trial.artifact.path), directory)


def save_hf(directory: str | Path, trial: Trial, workload: Workload, listener: Listener = ignore) -> Path:
    """Write a trial's model as a directory that ``from_pretrained`` of transformers loads, with equal outputs.

    config.json says what changed, tokenizer and processor are taken over, README.md has the measured figures. Of
    pruned widths config.json can say one, that of the feed-forward layers: it says the widest, and whatever is
    narrower (another layer, a pooler) is filled up with zeros: nothing reads them, and outputs stay. What was written
    is loaded again and compared before it takes its name.

    Args:
        directory: new, or empty.
        trial: a finished one.
        workload: that it was run on, with a transformers model in it.
        listener: hears events where phases run again.

    Returns:
        the directory.

    Raises:
        SavingError: a phase of the recipe left a model that the format cannot hold (named), or the directory is not
            empty.
    """
    with written(Path(directory), SavingError) as partial:
        state, model = _left(trial, workload, listener)
        if why := _misfit(model):
            raise SavingError(f"{_culprit(state, trial, workload) or f'the model of {workload.name}'} does not fit the "
                              f"format of Hugging Face: {why}; {OTHER_FORMAT}")
        with quiet():
            _standard(transformers_model(model)[1]).save_pretrained(partial)
        take_over(partial, workload)
        _compare(partial, model, workload)
        (partial / "README.md").write_text(_card(trial, type(transformers_model(model)[1]).__name__))
    return Path(directory).expanduser().absolute()


def save_compressed_tensors(directory: str | Path, trial: Trial, workload: Workload, listener: Listener = ignore) -> Path:
    """Write a trial's quantized model in the compressed-tensors format, its tokenizer and a README.md beside it.

    Args, returns and errors are those of `save_hf`; what the format holds, `export_compressed_tensors` says.
    """
    model = model_of(trial, workload, listener)
    path = export_compressed_tensors(model, directory)
    take_over(path, workload)
    (path / "README.md").write_text(_card(trial, type(transformers_model(model)[1]).__name__))
    return path


MODELS: Mapping[str, Callable[[Path, Trial, Workload], Path]] = {"hf": save_hf, "compressed-tensors": save_compressed_tensors}
"""{format: what saves a trial's model in it}."""


def _culprit(state: Checkpoint, trial: Trial, workload: Workload) -> str | None:
    """The first phase whose plan leaves what the format cannot hold."""
    for i, (text, _) in enumerate(state.plans, 1):
        if _misfit(checkpoint.rebuild(_fresh(workload, trial.seed), state.plans[:i])):
            return text
    return None


def _misfit(model: nn.Module) -> str | None:
    """Why a model cannot be held; None where it can."""
    try:
        _standard(transformers_model(model)[1])
    except (SavingError, WorkloadError) as error:
        return str(error)
    return None


def _standard(body: Any) -> Any:
    """The same model as a fresh instance of its transformers class, config updated.

    Raises:
        SavingError: the class has no place for what the model holds.
    """
    weights = dict(body.state_dict())
    dtypes = {p.dtype for p in body.parameters()}
    if len(dtypes) != 1 or not dtypes <= PARITY.keys():
        raise SavingError(f"its parameters are {', '.join(sorted(str(d).removeprefix('torch.') for d in dtypes))}, but "
                          "one of float32 or bfloat16 is expected")
    (dtype,) = dtypes
    plain = _instance(body, body.config, dtype)
    turned = {f"{name}.weight" for name, module in plain.named_modules() if is_transposed(module)}
    weights = {name: tensor.T if name in turned else tensor for name, tensor in weights.items()}
    shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    if changed := sorted(shapes.keys() ^ weights.keys()):
        raise SavingError(f"{type(body).__name__} has different weights, such as {', '.join(changed[:3])}")
    narrowed = {(shapes[name][d], tensor.shape[d]) for name, tensor in weights.items()
                if tensor.ndim == len(shapes[name]) for d in range(tensor.ndim) if tensor.shape[d] < shapes[name][d]}
    if narrowed:
        plain = _instance(body, _narrowed(body.config, narrowed), dtype)
        shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
        weights = {name: _filled(tensor, shapes[name]) for name, tensor in weights.items()}
    if unlike := [name for name, tensor in weights.items() if tensor.shape != shapes[name]]:
        raise SavingError(f"{unlike[0]} has shape {tuple(weights[unlike[0]].shape)} but the config says "
                          f"{tuple(shapes[unlike[0]])}")
    plain.load_state_dict(weights)
    return plain.eval()


def _instance(body: Any, config: Any, dtype: torch.dtype) -> Any:
    """A new model of the same class; a pooler that was left out stays out."""
    config = copy.deepcopy(config)
    config.dtype = dtype
    made = type(body)(config).to(dtype)
    if getattr(body, "pooler", body) is None:
        made.pooler = None
    return made


def _narrowed(config: Any, widths: set[tuple[int, int]]) -> Any:
    """A config whose feed-forward width is the widest that is left.

    Args:
        widths: (before, now) of every dimension that changed.
    """
    config = copy.deepcopy(config)
    name = next((n for n in FFN_WIDTHS if hasattr(config, n)), None)
    if name is not None:
        before = getattr(config, name) or 4 * config.hidden_size  # GPT-2's n_inner is None for 4 times the width
        setattr(config, name, max((now for was, now in widths if was == before), default=before))
    return config


def _filled(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The tensor with zeros behind its last index of every dimension, up to the shape; itself where it exceeds it."""
    if tensor.ndim != len(shape) or any(n > want for n, want in zip(tensor.shape, shape, strict=True)):
        return tensor
    whole = tensor.new_zeros(shape)
    whole[tuple(slice(n) for n in tensor.shape)] = tensor
    return whole


def take_over(directory: Path, workload: Workload) -> None:
    """Copy what stands beside config and weights: the tokenizer, the processor, how to generate."""
    if not workload.source.startswith(huggingface.SCHEME):
        return
    source = huggingface.Reference.parse(workload.source).directory
    for name in BESIDE:
        if (source / name).is_file():
            (directory / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, directory / name)


def _compare(directory: Path, model: nn.Module, workload: Workload) -> None:
    """Load what was written and compare its outputs on validation.

    Raises:
        SavingError: they differ: a phase changed what the model computes, not its weights alone.
    """
    place, body = transformers_model(model)
    with quiet():
        again = type(body).from_pretrained(directory, local_files_only=True, use_safetensors=True, dtype="auto").eval()
    other = again
    if place:
        other = copy.deepcopy(model).eval()
        other.set_submodule(place, again)
    few = Subset(workload.validation, range(min(ROWS, length(workload.validation))))
    inputs, _ = next(batches(few, ROWS, workload.collate))
    for a, b in zip(outputs_of(model.eval(), inputs), outputs_of(other, inputs), strict=True):
        error = float((a.double() - b.double()).norm() / a.double().norm().clamp_min(1e-12))
        if not error <= PARITY[body.dtype]:
            raise SavingError(f"the model that transformers loads gives different outputs (relative error {error:.3g}): the "
                              f"recipe changed more than weights and widths, so nothing is kept; {OTHER_FORMAT}")


def _card(trial: Trial, architecture: str) -> str:
    """README.md: front matter that hubs read, then what was measured."""
    facts: Mapping[str, Any] = {"recipe": trial.recipe, "seed": trial.seed, "workload": trial.workload,
                                "workload_hash": trial.workload_hash, "trial": trial.id, "version": VERSION}
    lines = ["---", "library_name: transformers", "tags: [thrifty]", "thrifty:",
             *(f"  {key}: {json.dumps(value)}" for key, value in facts.items()), "---", "",
             f"# {trial.workload}: `{trial.recipe}`", "", *figure_lines(trial), ""]
    if Recipe.parse(trial.recipe).transforms != Recipe.parse(trial.recipe):
        lines += ["The speed is that of the engine which the recipe compiles, not of this directory under transformers.", ""]
    return "\n".join([*lines, "```python", f"from transformers import {architecture}", "",
                      f'model = {architecture}.from_pretrained(".")', "```", ""])
