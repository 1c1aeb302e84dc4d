"""A directory's model as a module of plain tensors, so that every compiler and every method can take it."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thrifty.errors import MissingExtra, WorkloadError
from thrifty.workloads.huggingface.directory import Directory

EXTRA = "hf"


@final
class TextLogits(nn.Module):
    """(ids, mask) [batch, tokens] int64 -> logits [batch, classes].

    Args:
        body: of transformers, for sequence classification.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.options = body, _without_cache(body)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.body(input_ids=ids, attention_mask=mask, **self.options).logits


@final
class TokenLogits(nn.Module):
    """ids [batch, tokens] int64 -> logits [batch, tokens, vocabulary], each from the tokens up to its own.

    With ``position_ids`` [batch, tokens], each from the tokens of its own example: where positions do not go on, another
    begins, and the models of transformers mask those before it.

    Args:
        body: a model of transformers, for causal language modeling.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.options = body, _without_cache(body)

    def forward(self, ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        return self.body(input_ids=ids, position_ids=position_ids, **self.options).logits


@final
class Embedder(nn.Module):
    """(ids, mask) [batch, tokens] int64 -> unit embeddings [batch, width].

    Args:
        body: of transformers, an encoder.
        pooling: "mean" of the last states under the mask, or "cls", the first of them.
    """

    def __init__(self, body: nn.Module, pooling: str) -> None:
        super().__init__()
        self.body, self.pooling, self.options = body, pooling, _without_cache(body)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.body(input_ids=ids, attention_mask=mask, **self.options).last_hidden_state
        if self.pooling == "cls":
            return F.normalize(states[:, 0], dim=-1)
        weight = mask.unsqueeze(-1).to(states.dtype)
        return F.normalize((states * weight).sum(1) / weight.sum(1).clamp(min=1e-9), dim=-1)


@final
class ImageLogits(nn.Module):
    """pixels [batch, channels, height, width] float32, normalized -> logits [batch, classes].

    Args:
        body: of transformers, for image classification.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: Tensor) -> Tensor:
        return self.body(pixel_values=pixels).logits


def _without_cache(body: nn.Module) -> dict[str, bool]:
    """One call answers a request: keys and values that a decoder would keep for the next token are of no use."""
    return {"use_cache": False} if "use_cache" in inspect.signature(body.forward).parameters else {}


def pooling_of(directory: Directory) -> str:
    """How a directory's embeddings are pooled: as sentence-transformers noted it, or "mean".

    Raises:
        WorkloadError: in a way that is not supported.
    """
    noted = directory.json("1_Pooling/config.json")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in directory.json("modules.json") or []]
    if beyond := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise WorkloadError(f"{directory.path} passes its embeddings through {', '.join(beyond)}, which is not "
                            "supported; write a workload's file with that model")
    modes = [name.removeprefix("pooling_mode_") for name, on in noted.items() if name.startswith("pooling_mode_") and on]
    modes = modes or [str(noted.get("pooling_mode", "mean_tokens"))]
    known = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}
    if len(modes) != 1 or modes[0] not in known:
        raise WorkloadError(f"{directory.path} pools by {', '.join(modes)}; supported: mean_tokens, cls_token")
    return known[modes[0]]


def load_body(path: Path, auto: str, pad: int | None = None, new_head: Sequence[str] | None = None) -> nn.Module:
    """A directory's model in float32 with its own weights, in eval mode; nothing is fetched and no code of it runs.

    GPT-2 and its relatives hold their linear layers transposed, in a class of their own; here they are nn.Linear, so that
    pruning and quantization know them. `thrifty.runs.saving` turns them back.

    Args:
        path: of the directory.
        auto: the transformers class that reads it, such as "AutoModelForCausalLM".
        pad: the token that fills texts up, noted in a config that names none: sequence classification by decoders
            looks for the last token that is another.
        new_head: the names of its classes, where the weights may lack the head since it is yet to be trained: it is
            initialized with torch's own random numbers.

    Raises:
        MissingExtra: transformers is not installed.
        WorkloadError: it cannot be read, or its weights leave a part of the model untrained.
    """
    with quiet() as transformers:
        try:
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            if pad is not None and getattr(config, "pad_token_id", None) is None:
                config.pad_token_id = pad
            if new_head is not None:
                config.id2label = dict(enumerate(new_head))
                config.label2id = {word: i for i, word in enumerate(new_head)}
            body, told = getattr(transformers, auto).from_pretrained(
                path, config=config, local_files_only=True, use_safetensors=True, trust_remote_code=False,
                dtype=torch.float32, output_loading_info=True,
            )
        except Exception as error:  # of many kinds, of which none says which directory
            raise WorkloadError(f"transformers cannot read {path} as {auto}: {type(error).__name__}: {error}") from error
    missing = set(told["missing_keys"])
    if auto == "AutoModel" and missing and all(name.startswith("pooler.") for name in missing):
        body.pooler, missing = None, set()  # embeddings are pooled from the states: what is random is not kept
    if new_head is not None:
        prefix = f"{body.base_model_prefix}."
        missing = {name for name in missing if name.startswith(prefix) and not name.startswith(f"{prefix}pooler.")}
    if missing:
        raise WorkloadError(
            f"the weights in {path} lack {', '.join(sorted(missing)[:3])}{', ...' if len(missing) > 3 else ''}, which "
            f"{type(body).__name__} needs: it was not trained for this task; choose the task that it was trained for, "
            "or give examples to train it with: --train FILE"
        )
    return with_linears(body).eval()


def transformers_model(model: nn.Module) -> tuple[str, Any]:
    """(path, module) of the transformers model inside.

    Raises:
        MissingExtra: transformers is not installed.
        WorkloadError: there is none, or it does not hold all parameters.
    """
    with quiet() as transformers:
        found = next(((name, module) for name, module in model.named_modules()
                      if isinstance(module, transformers.PreTrainedModel)), None)
    if found is None:
        raise WorkloadError("no transformers model is left in it")
    inside = {id(p) for p in found[1].parameters()}
    if beside := [name for name, p in model.named_parameters() if id(p) not in inside]:
        raise WorkloadError(f"it has parameters besides the transformers model: {', '.join(beside[:3])}")
    return found


def is_transposed(module: nn.Module) -> bool:
    """Whether a module is transformers' transposed linear layer."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def with_linears(body: nn.Module) -> nn.Module:
    """The model, its transposed linear layers exchanged for nn.Linear, which pruning and quantization know."""
    for module in list(body.modules()):
        for name, child in module.named_children():
            if is_transposed(child):
                weight, bias = child.state_dict().values()
                linear = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
                linear.weight, linear.bias = nn.Parameter(weight.T.contiguous()), nn.Parameter(bias)
                setattr(module, name, linear)
    return body


@contextlib.contextmanager
def quiet() -> Iterator[Any]:
    """transformers, without what it tells while it is imported and while it loads.

    Raises:
        MissingExtra: it is not installed.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        try:
            import transformers
        except ImportError as error:
            raise MissingExtra("transformers", EXTRA) from error
        shown = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.disable_progress_bar()
        try:
            yield transformers
        finally:
            if shown:
                transformers.utils.logging.enable_progress_bar()
    finally:
        logging.disable(disabled)
