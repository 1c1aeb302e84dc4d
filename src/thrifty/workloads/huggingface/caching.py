"""A causal language model as a step with its cache in the open: what generation needs, in shapes that every compiler takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thrifty.errors import WorkloadError

TINY = 1e-12
"""The least peak: it keeps tokens of zeros from dividing by zero."""
Parts = tuple[Tensor, ...]
"""What stands for keys, or for values, each [..., tokens, some width]."""


def to_int8(x: Tensor) -> Parts:
    """int8 [..., tokens, width] and their scales, float32 [..., tokens, 1]: q = round(x / s), s = max|x| / 127.

    Source: "KIVI", Liu et al. 2024, arXiv:2402.02750, whose values are so; its keys have a scale for each channel, which
    two bits need and eight do not.

    >>> q, scale = to_int8(torch.tensor([[0.5, -2.0]]))
    >>> q.tolist(), from_int8(q, scale).allclose(torch.tensor([[0.504, -2.0]]), atol=1e-3)
    ([[32, -127]], True)
    """
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True).clamp_min(TINY) / 127
    return torch.round(x / scale).to(torch.int8), scale


def from_int8(q: Tensor, scale: Tensor) -> Tensor:
    """The float32 numbers that `to_int8`'s stand for: s q."""
    return q.float() * scale


NUMBERS: Mapping[str, tuple[Callable[[Tensor], Parts], Callable[..., Tensor]]] = {
    "fp32": (lambda x: (x,), lambda x: x),
    "int8": (to_int8, from_int8),
}
"""{what a cache holds: (from keys or values to its parts, and back)}."""


@final
@dataclass(frozen=True)
class CacheShape:
    """Keys and values are [layers, 1, heads, tokens, width] each.

    Args:
        numbers: of `NUMBERS`.
    """

    layers: int
    heads: int
    tokens: int
    width: int
    numbers: str = "fp32"

    @staticmethod
    def of(body: nn.Module, tokens: int, numbers: str = "fp32") -> CacheShape:
        """What a model of transformers keeps for a sequence of so many tokens.

        Raises:
            WorkloadError: it is not a decoder whose every layer attends to all that came before, or is too short.
        """
        config: Any = getattr(body, "config", None)
        if config is None or getattr(config, "is_encoder_decoder", False) or "use_cache" not in config.to_dict():
            raise WorkloadError(f"{type(body).__name__} has no KV cache to generate with: give a causal LM of "
                                "transformers")
        if windowed := {kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"}:
            raise WorkloadError(f"layers of kind {', '.join(sorted(windowed))} use a KV cache other than that of "
                                "full attention, the only one supported")
        longest = getattr(config, "max_position_embeddings", tokens)
        if not 2 <= tokens <= longest:
            raise WorkloadError(f"tokens must be 2 to {longest}, what {type(body).__name__} was made for, but is {tokens}")
        heads = config.num_attention_heads
        return CacheShape(
            layers=config.num_hidden_layers,
            heads=getattr(config, "num_key_value_heads", None) or heads,
            tokens=tokens,
            width=getattr(config, "head_dim", None) or config.hidden_size // heads,
            numbers=numbers,
        )

    @property
    def dims(self) -> tuple[int, int, int, int, int]:
        return self.layers, 1, self.heads, self.tokens, self.width


@final
class CachedStep(nn.Module):
    """(ids [1, n], done [1], last [1], *cache) -> (logits [1, vocabulary] of token ``last`` of the n, *cache).

    The cache is the parts of the keys and then those of the values, as `NUMBERS` has them. ``done`` tokens are in it already.
    n is 1, or the length of a prompt that begins an empty cache; what a prompt is filled up with, behind ``last``, is never
    attended to by what comes later, which overwrites it. A token's parts are written once and never rounded again.

    Args:
        body: of transformers, for causal language modeling.
        shape: of its cache.
    """

    def __init__(self, body: nn.Module, shape: CacheShape) -> None:
        super().__init__()
        self.body, self.shape = body, shape

    def forward(self, ids: Tensor, done: Tensor, last: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        from transformers.cache_utils import Cache

        layers = [_held(parts, done[0], self.shape) for parts in zip(*(x.unbind(0) for x in cache), strict=True)]
        positions = done + torch.arange(ids.shape[1], device=ids.device)
        logits = self.body(input_ids=ids, past_key_values=Cache(layers=layers), position_ids=positions[None],
                           use_cache=True).logits
        return (logits.index_select(1, last)[:, 0],
                *(torch.stack(parts) for parts in zip(*(layer.parts for layer in layers), strict=True)))

    def example(self, n: int) -> tuple[Tensor, ...]:
        """Inputs for n tokens: a whole prompt in an empty cache, or one token in the middle of a full one."""
        empty = n > 1
        dims = self.shape.dims
        words: Any = self.body.config
        keys = torch.zeros(dims) if empty else torch.randn(dims, generator=_generator())
        done = 0 if empty else self.shape.tokens // 2
        ids = torch.randint(0, words.vocab_size, (1, n), generator=_generator())
        encode, _ = NUMBERS[self.shape.numbers]
        return ids, torch.tensor([done]), torch.tensor([n - 1]), *encode(keys), *encode(keys.clone())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _held(parts: Parts, done: Tensor, shape: CacheShape) -> Any:
    """A layer's cache that is given and left, not changed in place: no backend need know of state."""
    from transformers.cache_utils import StaticLayer

    encode, decode = NUMBERS[shape.numbers]

    class Held(StaticLayer):
        parts: Parts

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if key_states.shape[2] == 1:
                here = (torch.arange(shape.tokens, device=done.device) == done)[None, None, :, None]
                new = (*encode(key_states), *encode(value_states))
                self.parts = tuple(torch.where(here, x, old) for x, old in zip(new, self.parts, strict=True))
            else:
                behind = shape.tokens - key_states.shape[2]
                self.parts = tuple(part for x in (key_states, value_states) for part in encode(F.pad(x, (0, 0, 0, behind))))
            half = len(self.parts) // 2
            return decode(*self.parts[:half]), decode(*self.parts[half:])

    layer = Held(shape.tokens)
    layer.parts, layer.cumulative_length, layer.is_initialized = parts, done, True
    return layer
