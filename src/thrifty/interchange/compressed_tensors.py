"""Quantized models as directories in the compressed-tensors format, which transformers and vLLM load; and back."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from thrifty.interchange.configuration import KEY, Configured, described
from thrifty.interchange.folding import folded
from thrifty.interchange.layers import InterchangeError, Layer, layer_of, stored, tensors
from thrifty.numerics import graph as graphs
from thrifty.numerics.grid import from_group, rows
from thrifty.numerics.modules import (
    Float8Linear,
    GroupedEmbedding,
    GroupedLinear,
    QuantConv,
    QuantEdge,
    QuantEmbedding,
    QuantLinear,
)
from thrifty.numerics.packing import unpack
from thrifty.posttraining.quantization.rest import in_bf16
from thrifty.workloads.huggingface import TASKS, task_of
from thrifty.workloads.huggingface.directory import CONFIG, Directory, open_directory, weights, written
from thrifty.workloads.huggingface.models import (
    Embedder,
    TextLogits,
    TokenLogits,
    is_transposed,
    pooling_of,
    quiet,
    transformers_model,
)

MODELS: Mapping[str, Callable[[nn.Module, Directory], nn.Module]] = {
    "causal-lm": lambda body, directory: TokenLogits(body),
    "text-classification": lambda body, directory: TextLogits(body),
    "feature-extraction": lambda body, directory: Embedder(body, pooling_of(directory)),
}
"""{task: the module of plain tensors}."""
PARITY = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest relative Frobenius error of what is loaded again; nothing but norms that were folded may round otherwise."""
OTHER = "serve its artifact instead"


# -- out ----------------------------------------------------------------------------------------------------------


def export_compressed_tensors(model: nn.Module, directory: str | Path) -> Path:
    """Write a quantized model as a directory in the compressed-tensors format, which transformers and vLLM load.

    Linear layers of w4a16, w8a16, w8a8 and w4a8 keep their integers, scales and zeros; w4a8 is written as w8a8, since
    its weights are held in int8. Vectors that inputs are divided by (SmoothQuant, AWQ) go into the norms before, where
    there are such. Embeddings in int8 are written in floating point, with the values that they have; so is a last
    layer that shares their table, but for int8 products, where the two are written apart. What was written is read
    again and compared before it takes its name. Tokenizers are not the model's: copy them, or save a trial with
    ``thrifty best --format compressed-tensors``.

    Args:
        model: quantized, with a text model of transformers in it.
        directory: new, or empty.

    Returns:
        the directory.

    Raises:
        InterchangeError: the model is not quantized, or the format has no place for what it holds.
        WorkloadError: there is no transformers model in it.
        MissingExtra: transformers is not installed.

    >>> export_compressed_tensors(nn.Linear(2, 2), "out")
    Traceback (most recent call last):
    ...
    thrifty.errors.WorkloadError: no transformers model is left in it

    Source: https://github.com/vllm-project/compressed-tensors
    """
    _, body = transformers_model(model)
    layers = _layers(body)
    ids = _example(body)
    state = {**_rest(body), **folded(body, layers, ids)}
    state |= {f"{name}.{part}": tensor for name, layer in layers.items() for part, tensor in tensors(layer).items()}
    plain = _plain(body, state)
    config = described({name: stored(layer) for name, layer in layers.items()},
                       [name for name, module in plain.named_modules() if type(module) is nn.Linear and name not in layers])
    with written(Path(directory), InterchangeError) as partial, quiet():
        plain.save_pretrained(partial, state_dict=state)
        place = partial / CONFIG
        place.write_text(json.dumps({**json.loads(place.read_bytes()), KEY: config}, indent=2, sort_keys=True) + "\n")
        _compare(partial, body, ids)
    return Path(directory)


def _layers(body: nn.Module) -> dict[str, Layer]:
    """The quantized linear layers.

    Raises:
        InterchangeError: there are none, or layers that the format cannot hold.
    """
    tied = _tied_head(body)
    for name, module in body.named_modules():
        if isinstance(module, QuantConv | QuantEdge):
            raise InterchangeError(f"layer {name!r} is an integer convolution or similar, which the format cannot "
                                   f"hold; {OTHER}")
        if isinstance(module, QuantLinear) and module.x_scale is not None:
            raise InterchangeError(f"layer {name!r} quantizes all tokens with one scale, which cannot be written in this format: "
                                   f"remove activations=static, or {OTHER}")
        if isinstance(module, Float8Linear):
            raise InterchangeError(f"layer {name!r} is in float8, which cannot be written in this format: use quantize(w8a8), or "
                                   f"{OTHER}")
        if isinstance(module, GroupedLinear) and module.bits not in (4, 8):
            raise InterchangeError(f"layer {name!r} has weights of {module.bits} bits; with zero points, as here, vLLM supports "
                                   f"only 4 and 8: use quantize(w4a16), or {OTHER}")
    found: dict[str, Layer] = {name: module for name, module in body.named_modules()
                               if isinstance(module, QuantLinear | GroupedLinear) and name != tied}
    if not found:
        raise InterchangeError("the model has no quantized linear layer: quantize it first (w4a16, w8a16, w8a8), or save it "
                               "in floating point with --format hf")
    return found


def _tied_head(body: Any) -> str | None:
    """The last layer where the first one looks its integers up: one table in floating point stands for both."""
    if not isinstance(body.get_input_embeddings(), GroupedEmbedding):
        return None
    return next(name for name, module in body.named_modules() if module is body.get_output_embeddings())


def _example(body: Any) -> Tensor:
    if body.main_input_name != "input_ids" or body.config.is_encoder_decoder:
        raise InterchangeError(f"{type(body).__name__} is not a model of single texts, and only those can be written in this "
                               f"format; {OTHER}")
    return (torch.arange(16).reshape(2, 8) * 7 + 1) % body.config.get_text_config().vocab_size


def _rest(body: Any) -> dict[str, Tensor]:
    """What is not of quantized linear layers; embeddings, and the layer that shares its table, in floating point."""
    integers = (QuantLinear, GroupedLinear, QuantEmbedding, GroupedEmbedding)
    owners = {name for name, module in body.named_modules() if isinstance(module, integers)}
    state = {name: tensor for name, tensor in body.state_dict().items() if name.rpartition(".")[0] not in owners}
    for name, module in body.named_modules():
        if isinstance(module, QuantEmbedding):
            state[f"{name}.weight"] = rows(module.weight, module.scale).to(module.dtype)
        elif isinstance(module, GroupedEmbedding):
            table = from_group(unpack(module.packed, module.bits), module.scale, module.zero)
            state[f"{name}.weight"] = table.to(module.dtype)
            if head := _tied_head(body):
                state[f"{head}.weight"] = state[f"{name}.weight"]
                state |= {f"{head}.{part}": tensor for part, tensor in body.get_submodule(head).named_buffers() if part == "bias"}
    return state


def _plain(body: Any, state: Mapping[str, Tensor]) -> Any:
    """A model of the same class without weights, whose config says what is written.

    Raises:
        InterchangeError: the class has other weights or widths, or linear layers under another name.
    """
    config = copy.deepcopy(body.config)
    if any(module is body.get_output_embeddings() for module in _layers(body).values()):
        config.tie_word_embeddings = False  # one table would be written in floating point, the other in integers
    with quiet(), torch.device("meta"):
        plain = type(body)(config).to(body.dtype)
    if getattr(body, "pooler", body) is None:
        plain.pooler = None
    if hasattr(body, "generation_config"):
        plain.generation_config = body.generation_config
    if turned := [name for name, module in plain.named_modules() if is_transposed(module)]:
        raise InterchangeError(f"{type(body).__name__} stores its linear layers transposed ({turned[0]} is a Conv1D), which "
                               f"readers of the format do not recognize as linear layers; {OTHER}")
    shapes = {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()}
    packed = {f"{name.removesuffix('.weight_shape')}.weight": tuple(tensor.tolist()) for name, tensor in state.items()
              if name.endswith(".weight_shape")}
    parts = (".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point")
    found = {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith(parts)} | packed
    if unlike := sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name)):
        raise InterchangeError(f"{unlike[0]} has shape {found.get(unlike[0])}, but {type(body).__name__} has "
                               f"{shapes.get(unlike[0])} by its config: the format cannot hold pruned widths or added "
                               f"layers; {OTHER}")
    return plain


def _compare(directory: Path, body: Any, ids: Tensor) -> None:
    """Read what was written and compare what it answers.

    Raises:
        InterchangeError: something else.
    """
    _, again = transformers_model(import_compressed_tensors(directory))
    with torch.no_grad():
        a, b = (module(input_ids=ids)[0].double() for module in (body, again))
    error = float((a - b).norm() / a.norm().clamp_min(1e-12))
    if not error <= PARITY[body.dtype]:
        raise InterchangeError(f"the written model gives different outputs (relative error {error:.3g}), so nothing was kept: "
                               f"the model computes more than its class does; {OTHER}")


# -- in -----------------------------------------------------------------------------------------------------------


def import_compressed_tensors(directory: str | Path) -> nn.Module:
    """Read a directory in the compressed-tensors format as a module that every compiler accepts.

    Nothing is fetched and no code of the directory runs. Layers become the ones that ``quantize`` makes: `GroupedLinear`
    for weights of 4 and 8 bits beside float activations, `QuantLinear` for int8 products. Tokens of those are rounded to
    127 steps a side, as vLLM does it (transformers takes 127.5). Directories in float16 are read in float32.

    Args:
        directory: with config.json and weights in safetensors; its architecture says the task.

    Returns:
        the module, in eval mode: ids -> logits for language models, (ids, mask) -> logits or embeddings for the others.

    Raises:
        InterchangeError: it is of another format or damaged, or has numbers that are not supported.
        WorkloadError: it is no such directory, or wants code of its own to run.
        MissingExtra: transformers is not installed.
    """
    found = open_directory(Path(directory).expanduser())
    config = Configured(found.config.get(KEY))
    task = task_of(found)
    if task not in MODELS:
        raise InterchangeError(f"{found.path} is for {task}; directories of this format are read for {', '.join(MODELS)}")
    stored_tensors = _read(found.path)
    body = _empty(found, task)
    _fill(body, config, stored_tensors)
    module = MODELS[task](body, found).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    dtype = found.config.get("dtype") or found.config.get("torch_dtype")
    return in_bf16(module) if dtype == "bfloat16" else module


def _read(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in weights(path):
        try:
            with safe_open(file, "pt") as opened:
                found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise InterchangeError(f"{file} is not a safetensors file, or is damaged: {error}; copy it again") from error
    return found


def _empty(directory: Directory, task: str) -> Any:
    """The model with weights that mean nothing yet."""
    with quiet() as transformers:
        try:
            config = transformers.AutoConfig.from_pretrained(directory.path, local_files_only=True, trust_remote_code=False)
            del config.quantization_config
            from transformers.initialization import no_init_weights

            with no_init_weights():
                body = getattr(transformers, TASKS[task].auto).from_config(config, dtype=torch.float32)
            body.tie_weights()
        except Exception as error:  # of many kinds, of which none says which directory
            raise InterchangeError(f"transformers cannot load {directory.path}: {type(error).__name__}: {error}") from error
    return body


def _fill(body: Any, config: Configured, found: Mapping[str, Tensor]) -> None:
    """Put quantized layers and the other tensors in their places.

    Raises:
        InterchangeError: tensors are missing, too many or of another shape.
    """
    quantized = {name.rpartition(".")[0] for name in found if name.endswith(".weight_scale")}
    linears = dict(body.named_modules())
    owned: dict[str, dict[str, Tensor]] = {name: {} for name in quantized}
    rest: dict[str, Tensor] = {}
    for name, tensor in found.items():
        owner, _, part = name.rpartition(".")
        owned.get(owner, rest)[part if owner in owned else name] = tensor
    for name in sorted(quantized):
        if type(linears.get(name)) is not nn.Linear:
            raise InterchangeError(f"{name!r} is stored as integers, but {type(body).__name__} has no linear layer of that name; "
                                   "only linear layers can be stored as integers")
        graphs.replace(body, name, layer_of(name, owned[name], config.of(name), linears[name]))
    wanted = {name: tensor for name, tensor in body.state_dict(keep_vars=True).items()
              if name.rpartition(".")[0] not in quantized}
    tied = {id(wanted[name]) for name in wanted.keys() & rest.keys()}
    if missing := sorted(name for name, tensor in wanted.items() if id(tensor) not in tied):
        raise InterchangeError(f"the weights lack {', '.join(missing[:3])}, which {type(body).__name__} needs; copy or write the "
                               "directory again")
    if beyond := sorted(rest.keys() - wanted.keys()):
        raise InterchangeError(f"the weights contain {', '.join(beyond[:3])}, which {type(body).__name__} does not have: the "
                               "directory is damaged or from a newer release; write it again")
    for name, tensor in rest.items():
        if tensor.shape != wanted[name].shape or not tensor.dtype.is_floating_point:
            raise InterchangeError(f"{name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} where "
                                   f"{type(body).__name__} needs floating point {list(wanted[name].shape)}; write it again")
    body.load_state_dict(rest, strict=False)
