"""Mamba and Mamba-2 language models of transformers as backbones, and back: the same weights under other names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.architectures.backbone import Backbone
from thrifty.architectures.blocks import Sizes
from thrifty.errors import MissingExtra, ThriftyError

OUTER = {"embedding.weight": "backbone.embeddings.weight", "norm.weight": "backbone.norm_f.weight",
         "head.weight": "lm_head.weight"}
INNER = {"conv_weight": "conv1d.weight", "conv_bias": "conv1d.bias", "norm_weight": "norm.weight"}


def theirs(name: str) -> str:
    """What transformers call one of our weights.

    >>> theirs("blocks.3.mixer.conv_weight")
    'backbone.layers.3.mixer.conv1d.weight'
    """
    if name in OUTER:
        return OUTER[name]
    for own, other in INNER.items():
        name = name.removesuffix(own) + other if name.endswith(f"mixer.{own}") else name
    return name.replace("blocks.", "backbone.layers.", 1)


def _sizes_of_mamba(config: Any) -> Sizes:
    return Sizes(config.hidden_size, scan_state=config.state_size, expand=config.intermediate_size / config.hidden_size,
                 rank=int(config.time_step_rank), taps=config.conv_kernel, bias=config.use_bias, conv_bias=config.use_conv_bias)


def _sizes_of_mamba2(config: Any) -> Sizes:
    low, high = config.time_step_limit
    return Sizes(config.hidden_size, state=config.state_size, head=config.head_dim, groups=config.n_groups,
                 expand=config.num_heads * config.head_dim / config.hidden_size, limits=(low, high), taps=config.conv_kernel,
                 bias=config.use_bias, conv_bias=config.use_conv_bias)


READ: Mapping[str, Callable[[Any], Sizes]] = {"mamba": _sizes_of_mamba, "mamba2": _sizes_of_mamba2}
"""{model type of transformers, and word of a pattern: what its sizes are}."""


def from_huggingface(model: nn.Module) -> Backbone:
    """A backbone with the weights of ``MambaForCausalLM`` or ``Mamba2ForCausalLM``, copied.

    Raises:
        ThriftyError: another model.

    >>> from transformers import Mamba2Config, Mamba2ForCausalLM
    >>> config = Mamba2Config(num_heads=4, head_dim=16, hidden_size=32, state_size=8, n_groups=2, num_hidden_layers=2,
    ...                       vocab_size=50)
    >>> model = Mamba2ForCausalLM(config).eval()
    >>> ids = torch.arange(7)[None]
    >>> torch.allclose(from_huggingface(model)(ids), model(ids).logits, atol=1e-5)
    True
    """
    config: Any = getattr(model, "config", None)
    kind = str(getattr(config, "model_type", ""))
    if kind not in READ or not hasattr(model, "lm_head"):
        raise ThriftyError(f"{type(model).__name__} is not a language model of {' or '.join(READ)}: give MambaForCausalLM or "
                           "Mamba2ForCausalLM")
    if config.hidden_act != "silu":
        raise ThriftyError(f"a convolution with {config.hidden_act} is not supported; use silu")
    made = Backbone(config.vocab_size, " ".join([kind] * config.num_hidden_layers), READ[kind](config),
                    tied=config.tie_word_embeddings, eps=config.layer_norm_epsilon)
    given = model.state_dict()
    made.load_state_dict({name: given[theirs(name)].reshape(own.shape) for name, own in made.state_dict().items()})
    return made.to(next(model.parameters()).dtype).train(model.training)


def to_huggingface(model: Backbone) -> nn.Module:
    """The backbone as a model of transformers, its weights copied; all of its layers "mamba", or all "mamba2".

    Raises:
        MissingExtra: transformers are not installed.
        ThriftyError: other layers, for which transformers have no such model.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "hf") from error
    words, sizes = model.pattern.split(), model.sizes
    shared: dict[str, Any] = {
        "vocab_size": model.embedding.num_embeddings, "hidden_size": sizes.width, "num_hidden_layers": len(words),
        "layer_norm_epsilon": model.norm.eps, "conv_kernel": sizes.taps, "use_bias": sizes.bias, "use_conv_bias": sizes.conv_bias,
        "tie_word_embeddings": model.head.weight is model.embedding.weight}
    if sizes.expand != int(sizes.expand):
        raise ThriftyError("transformers needs a whole number of inner channels per outer channel, but expand is "
                           f"{sizes.expand:g}")
    shared["expand"] = int(sizes.expand)
    if set(words) == {"mamba2"}:
        first: Any = model.blocks[0].mixer
        made: nn.Module = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(
            **shared, num_heads=first.heads, head_dim=sizes.head, state_size=sizes.state, n_groups=sizes.groups,
            time_step_limit=sizes.limits))
    elif set(words) == {"mamba"}:
        first = model.blocks[0].mixer
        made = transformers.MambaForCausalLM(transformers.MambaConfig(
            **shared, state_size=sizes.scan_state, time_step_rank=first.rank))
    else:
        raise ThriftyError(f"transformers has no model with the pattern {model.pattern!r}: use mamba only, or mamba2 only")
    wanted = made.state_dict()
    with torch.no_grad():
        _copy({theirs(name): value for name, value in model.state_dict().items()}, wanted)
    made.load_state_dict(wanted)
    return made.to(model.head.weight.dtype).train(model.training)


def _copy(given: Mapping[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, place in wanted.items():
        wanted[name] = given[name].reshape(place.shape).clone()
