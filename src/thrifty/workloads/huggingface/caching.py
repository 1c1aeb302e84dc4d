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
        states: what state-space layers remember, of one size for all tokens: shapes of the last inputs of all convolutions and
            of all states; none where every layer is attention. They stay float32: a state is rewritten at every token.
    """

    layers: int
    heads: int
    tokens: int
    width: int
    numbers: str = "fp32"
    states: tuple[tuple[int, ...], ...] = ()

    @staticmethod
    def of(body: nn.Module, tokens: int, numbers: str = "fp32") -> CacheShape:
        """What a model of transformers keeps for a sequence of so many tokens.

        Raises:
            WorkloadError: it is not a decoder whose every layer attends to all that came before or, in Jamba, is a Mamba; or it
                is too short.
        """
        config: Any = getattr(body, "config", None)
        if config is None or getattr(config, "is_encoder_decoder", False) or "use_cache" not in config.to_dict():
            raise WorkloadError(f"{type(body).__name__} has no KV cache to generate with: give a causal LM of "
                                "transformers")
        kinds = list(getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers)
        known = {"full_attention", *(("linear_attention",) if config.model_type == "jamba" else ())}
        if other := set(kinds) - known:
            raise WorkloadError(f"layers of kind {', '.join(sorted(other))} use a KV cache other than those of full "
                                "attention and of Jamba's state spaces, the only ones supported")
        recurrent = kinds.count("linear_attention")
        longest = getattr(config, "max_position_embeddings", tokens)
        if not 2 <= tokens <= longest:
            raise WorkloadError(f"tokens must be 2 to {longest}, what {type(body).__name__} was made for, but is {tokens}")
        heads = config.num_attention_heads
        return CacheShape(
            layers=kinds.count("full_attention"),
            heads=getattr(config, "num_key_value_heads", None) or heads,
            tokens=tokens,
            width=getattr(config, "head_dim", None) or config.hidden_size // heads,
            numbers=numbers,
            states=_states(config, recurrent) if recurrent else (),
        )

    @property
    def dims(self) -> tuple[int, int, int, int, int]:
        return self.layers, 1, self.heads, self.tokens, self.width


@final
class CachedStep(nn.Module):
    """(ids [1, n], done [1], last [1], *cache) -> (logits [1, vocabulary] of token ``last`` of the n, *cache).

    The cache is the parts of the keys and then those of the values, as `NUMBERS` has them, and then the states. ``done`` tokens
    are in it already. n is 1, or the length of a prompt that begins an empty cache; what a prompt is filled up with, behind
    ``last``, is never attended to by what comes later, which overwrites it, and leaves states as they were. A token's parts are
    written once and never rounded again.

    Args:
        body: of transformers, for causal language modeling; state-space layers as `accelerate` leaves them.
        shape: of its cache.
    """

    def __init__(self, body: nn.Module, shape: CacheShape) -> None:
        super().__init__()
        self.body, self.shape = body, shape

    def forward(self, ids: Tensor, done: Tensor, last: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        from transformers.cache_utils import Cache

        shape = self.shape
        parts = cache[: len(cache) - len(shape.states)]
        attending = [_held(own, done[0], shape) for own in zip(*(x.unbind(0) for x in parts), strict=True)]
        recurrent = [_recurring(own) for own in zip(*(x.unbind(0) for x in cache[len(parts):]), strict=True)]
        config: Any = self.body.config
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(attending)
        behind = {"full_attention": iter(attending), "linear_attention": iter(recurrent)}
        positions = done + torch.arange(ids.shape[1], device=ids.device)
        logits = self.body(input_ids=ids, past_key_values=Cache(layers=[next(behind[kind]) for kind in kinds]),
                           position_ids=positions[None], use_cache=True,
                           **({"attention_mask": self._masks(positions, last)} if recurrent else {})).logits
        return (logits.index_select(1, last)[:, 0],
                *(torch.stack(own) for own in zip(*(layer.parts for layer in attending), strict=True)),
                *(torch.stack(own) for own in zip(*(layer.parts for layer in recurrent), strict=True)))

    def _masks(self, positions: Tensor, last: Tensor) -> dict[str, Tensor | None]:
        """By kind of layer: which places a token attends to, and which tokens are no filling."""
        places = torch.arange(self.shape.tokens, device=positions.device)
        several = len(positions) > 1
        return {"full_attention": (places <= positions[:, None])[None, None],
                "linear_attention": (places[: len(positions)] <= last)[None] if several else None}

    def example(self, n: int) -> tuple[Tensor, ...]:
        """Inputs for n tokens: a whole prompt in an empty cache, or one token in the middle of a full one."""
        empty = n > 1
        dims = self.shape.dims
        words: Any = self.body.config
        keys = torch.zeros(dims) if empty else torch.randn(dims, generator=_generator())
        done = 0 if empty else self.shape.tokens // 2
        ids = torch.randint(0, words.vocab_size, (1, n), generator=_generator())
        encode, _ = NUMBERS[self.shape.numbers]
        states = [torch.zeros(dims) if empty else torch.randn(dims, generator=_generator()) for dims in self.shape.states]
        return ids, torch.tensor([done]), torch.tensor([n - 1]), *encode(keys), *encode(keys.clone()), *states


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _states(config: Any, layers: int) -> tuple[tuple[int, ...], ...]:
    """What Jamba keeps: the last inputs of all convolutions, and all states."""
    inner = config.mamba_expand * config.hidden_size
    return (layers, 1, inner, config.mamba_d_conv), (layers, 1, inner, config.mamba_d_state)


def _recurring(parts: Parts) -> Any:
    """A state-space layer's convolution and state, given and left as `_held`'s are."""
    from transformers.cache_utils import LinearAttentionLayer

    class Recurring(LinearAttentionLayer):
        parts: Parts

        def update_conv_state(self, conv_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            joined = torch.cat([self.parts[0], conv_states], -1)
            self.parts = (joined[..., -self.parts[0].shape[-1]:], self.parts[1])
            return joined

        def update_recurrent_state(self, recurrent_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.parts = (self.parts[0], recurrent_states)
            return recurrent_states

    layer = Recurring()
    layer.parts = parts
    layer.conv_states[0], layer.recurrent_states[0], layer.has_previous_state[0] = *parts, True
    return layer


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
