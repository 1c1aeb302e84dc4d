"""A causal language model as a step with its cache in the open: what generation needs, in shapes that every compiler takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thrifty.errors import WorkloadError


@final
@dataclass(frozen=True)
class CacheShape:
    """Keys and values are [layers, 1, heads, tokens, width] each."""

    layers: int
    heads: int
    tokens: int
    width: int

    @staticmethod
    def of(body: nn.Module, tokens: int) -> CacheShape:
        """What a model of transformers keeps for a sequence of so many tokens.

        Raises:
            WorkloadError: it is not a decoder whose every layer attends to all that came before, or is too short.
        """
        config: Any = getattr(body, "config", None)
        if config is None or getattr(config, "is_encoder_decoder", False) or "use_cache" not in config.to_dict():
            raise WorkloadError(f"{type(body).__name__} keeps no keys and values to generate with: give a causal language "
                                "model of transformers")
        if windowed := {kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"}:
            raise WorkloadError(f"layers of kind {', '.join(sorted(windowed))} keep another cache than full attention, "
                                "which is the only one supported")
        longest = getattr(config, "max_position_embeddings", tokens)
        if not 2 <= tokens <= longest:
            raise WorkloadError(f"tokens must be 2 to {longest}, what {type(body).__name__} was made for, but is {tokens}")
        heads = config.num_attention_heads
        return CacheShape(
            layers=config.num_hidden_layers,
            heads=getattr(config, "num_key_value_heads", None) or heads,
            tokens=tokens,
            width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )

    @property
    def dims(self) -> tuple[int, int, int, int, int]:
        return self.layers, 1, self.heads, self.tokens, self.width


@final
class CachedStep(nn.Module):
    """(ids [1, n], done [1], last [1], keys, values) -> (logits [1, vocabulary] of token ``last`` of the n, keys, values).

    ``done`` tokens are in the cache already. n is 1, or the length of a prompt that begins an empty cache; what a prompt
    is filled up with, behind ``last``, is never attended to by what comes later, which overwrites it.

    Args:
        body: of transformers, for causal language modelling.
        shape: of its cache.
    """

    def __init__(self, body: nn.Module, shape: CacheShape) -> None:
        super().__init__()
        self.body, self.shape = body, shape

    def forward(self, ids: Tensor, done: Tensor, last: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from transformers.cache_utils import Cache

        layers = [_held(k, v, done[0]) for k, v in zip(keys.unbind(0), values.unbind(0), strict=True)]
        positions = done + torch.arange(ids.shape[1], device=ids.device)
        logits = self.body(input_ids=ids, past_key_values=Cache(layers=layers), position_ids=positions[None],
                           use_cache=True).logits
        return (logits.index_select(1, last)[:, 0], torch.stack([layer.keys for layer in layers]),
                torch.stack([layer.values for layer in layers]))

    def example(self, n: int) -> tuple[Tensor, ...]:
        """Inputs for n tokens: a whole prompt in an empty cache, or one token in the middle of a full one."""
        empty = n > 1
        cache = torch.zeros(self.shape.dims) if empty else torch.randn(self.shape.dims, generator=_generator())
        done = 0 if empty else self.shape.tokens // 2
        words: Any = self.body.config
        ids = torch.randint(0, words.vocab_size, (1, n), generator=_generator())
        return ids, torch.tensor([done]), torch.tensor([n - 1]), cache, cache.clone()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _held(keys: Tensor, values: Tensor, done: Tensor) -> Any:
    """A layer's cache that is given and left, not changed in place: no backend need know of state."""
    from transformers.cache_utils import StaticLayer

    class Held(StaticLayer):
        keys: Tensor
        values: Tensor

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if key_states.shape[2] == 1:
                here = (torch.arange(self.max_cache_len, device=done.device) == done)[None, None, :, None]
                self.keys, self.values = (torch.where(here, new, old)
                                          for new, old in ((key_states, self.keys), (value_states, self.values)))
            else:
                behind = self.max_cache_len - key_states.shape[2]
                self.keys, self.values = (F.pad(x, (0, 0, 0, behind)) for x in (key_states, value_states))
            return self.keys, self.values

    layer = Held(keys.shape[2])
    layer.keys, layer.values, layer.cumulative_length, layer.is_initialized = keys, values, done, True
    return layer
