"""Language models of transformers as backbones, and back: the same weights under other names."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from thrifty.architectures.backbone import Backbone
from thrifty.architectures.families import FAMILIES, family_of
from thrifty.errors import MissingExtra, ThriftyError


def from_huggingface(model: nn.Module) -> Backbone:
    """A backbone with the weights of a Mamba, Mamba-2, Mixtral or Jamba language model of transformers, copied.

    Its routers are not balanced in training, as transformers' are not: `Sizes.rate` is 0.

    Raises:
        ThriftyError: another model, or one of them with an option that a backbone lacks.

    >>> from transformers import Mamba2Config, Mamba2ForCausalLM
    >>> config = Mamba2Config(num_heads=4, head_dim=16, hidden_size=32, state_size=8, n_groups=2, num_hidden_layers=2,
    ...                       vocab_size=50)
    >>> model = Mamba2ForCausalLM(config).eval()
    >>> ids = torch.arange(7)[None]
    >>> torch.allclose(from_huggingface(model)(ids), model(ids).logits, atol=1e-5)
    True
    """
    config: Any = getattr(model, "config", None)
    family = FAMILIES.get(str(getattr(config, "model_type", "")))
    if family is None or not hasattr(model, "lm_head"):
        raise ThriftyError(f"{type(model).__name__} is not a language model of {', '.join(FAMILIES)}: give "
                           f"{' or '.join(one.model for one in FAMILIES.values())}")
    if config.hidden_act != "silu":
        raise ThriftyError(f"{type(model).__name__} with {config.hidden_act} is not supported; use silu")
    made = Backbone(config.vocab_size, family.pattern(config), family.sizes(config), tied=config.tie_word_embeddings,
                    eps=getattr(config, family.eps))
    given = model.state_dict()
    made.load_state_dict({name: given[family.theirs(name)].reshape(own.shape) for name, own in made.named_parameters()},
                         strict=False)  # what it lacks are counters of routers, and the head's weight where it is tied
    return made.to(next(model.parameters()).dtype).train(model.training)


def to_huggingface(model: Backbone) -> nn.Module:
    """The backbone as a model of transformers, its weights copied: Mamba, Mamba-2, Mixtral or Jamba, by its pattern.

    Raises:
        MissingExtra: transformers are not installed.
        ThriftyError: layers for which transformers have no such model, or routers that a bias balances.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "hf") from error
    family = family_of(model)
    biased = next((name for name, buffer in model.named_buffers() if name.endswith("router.bias") and buffer.any()), None)
    if biased is not None:
        raise ThriftyError(f"{biased} balances the choice of experts and has no place in {family.model}: train with "
                           "Sizes(rate=0)")
    settings: dict[str, Any] = {
        "vocab_size": model.embedding.num_embeddings, "hidden_size": model.sizes.width, family.eps: model.norm.eps,
        "tie_word_embeddings": model.head.weight is model.embedding.weight, **family.settings(model)}
    made: nn.Module = getattr(transformers, family.model)(getattr(transformers, family.config)(**settings))
    wanted, tied = made.state_dict(), dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for own, weight in tied.items():
            name = family.theirs(own)
            wanted[name] = weight.reshape(wanted[name].shape).clone()
    made.load_state_dict(wanted)
    return made.to(model.head.weight.dtype).train(model.training)
