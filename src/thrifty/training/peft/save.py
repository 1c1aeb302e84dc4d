"""An adapter kept apart from its model, in peft's own format."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import safetensors.torch
from torch import nn

from thrifty.errors import ThriftyError
from thrifty.training.peft.adapter import ADAPTER, load_peft

SHARED = "base_model.vera_"
"""Begins the names of VeRA's projections, which belong to all layers: peft's files hold them once."""


def save_adapter(model: nn.Module, directory: str | Path, base: str = "") -> Path:
    """Write the adapter that a model is being trained with: ``adapter_config.json``, ``adapter_model.safetensors``.

    ``peft.PeftModel.from_pretrained(base_model, directory)`` loads it back onto the model as it was before training.
    A recipe merges its adapters, so this is for a loop of your own, before `TrainingSession.finish`.

    Args:
        model: ``session.model`` of a `Session` whose methods hold an adapter.
        directory: made where it is missing.
        base: where the base model is found ("org/name"), for who loads it.

    Returns:
        the directory.

    Raises:
        ThriftyError: the model has no adapter, or has it merged already.

    >>> import tempfile
    >>> from thrifty import CrossEntropy, Lora, TrainingSession
    >>> session = TrainingSession(nn.Sequential(nn.Linear(8, 4)), [Lora(rank=2)], CrossEntropy(), steps=1)
    >>> sorted(path.name for path in save_adapter(session.model, tempfile.mkdtemp()).iterdir())
    ['adapter_config.json', 'adapter_model.safetensors']
    """
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or ADAPTER not in configs:
        raise ThriftyError("the model has no adapter to save; finish() merges it into the weights, so save before that: "
                           "session = TrainingSession(model, [Lora()], ...); session.step(batch) ...; "
                           "save_adapter(session.model, directory)")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shared = {f"{SHARED}{found[1]}": tensor for name, tensor in model.state_dict().items()
              if (found := re.search(r"\.vera_([AB]\.\w+)$", name))}
    tensors = load_peft().get_peft_model_state_dict(model, state_dict=model.state_dict() | shared)
    safetensors.torch.save_file({name if name.startswith(SHARED) else f"base_model.model.{name}":
                                 tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
                                directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.copy(configs[ADAPTER])
    config.inference_mode, config.base_model_name_or_path = True, base or None
    config.save_pretrained(str(directory))
    return directory
