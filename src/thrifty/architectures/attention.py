"""Causal attention with rotary positions and a KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thrifty.architectures.mixer import Mixer
from thrifty.errors import ThriftyError


@final
@dataclass
class KeysValues:
    """A KV cache: keys and values of the tokens so far, with room for all that may come.

    Args:
        keys, values: [batch, heads of keys, tokens, size].
        there: [batch, tokens] bool, which places hold a token.
        done: places that are taken.
        padded: whether some of them hold none.
    """

    keys: Tensor
    values: Tensor
    there: Tensor
    done: int = 0
    padded: bool = False

    def append(self, keys: Tensor, values: Tensor, mask: Tensor | None) -> None:
        """Take the next places.

        Raises:
            ThriftyError: there are too few.
        """
        end = self.done + keys.shape[2]
        if end > self.keys.shape[2]:
            raise ThriftyError(f"the KV cache holds {self.keys.shape[2]} tokens, but {end} were given: make a larger one")
        self.keys[:, :, self.done:end] = keys.detach()
        self.values[:, :, self.done:end] = values.detach()
        self.there[:, self.done:end] = True if mask is None else mask
        self.done, self.padded = end, self.padded or mask is not None


def rotate(x: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary positions: turns each pair (i, i + half) of [batch, heads, tokens, size] by its position's angle.

    Args:
        positions: [batch or 1, tokens].

    Source: "RoFormer", Su et al. 2021, arXiv:2104.09864.
    """
    size = x.shape[-1]
    rates = base ** (-torch.arange(0, size, 2, device=x.device, dtype=torch.float32) / size)
    angles = positions[:, None, :, None].float() * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


@final
class Attention(Mixer):
    """softmax(q k^T / sqrt(size)) v over a token and those before it.

    Args:
        width: of its input and output.
        heads: of queries; divides width.
        kv_heads: of keys and values; divides heads. As many as heads where 0.
        rotary: base of the rotary positions; 0 for none, where other layers say what comes first.

    Raises:
        ThriftyError: sizes that do not divide.

    >>> layer = Attention(32, 4).eval()
    >>> x, cache = torch.randn(1, 6, 32), layer.cache(1, 6)
    >>> torch.allclose(torch.cat([layer(x[:, :4], cache), layer(x[:, 4:], cache)], 1), layer(x), atol=1e-5)
    True
    """

    def __init__(self, width: int, heads: int, kv_heads: int = 0, rotary: float = 10_000.0) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        if width % heads or heads % kv_heads or width // heads % 2:
            raise ThriftyError(f"attention of width {width} needs heads that divide it into even sizes, and key heads that "
                               f"divide the heads; got {heads} and {kv_heads}")
        self.heads, self.kv_heads, self.size, self.rotary = heads, kv_heads, width // heads, rotary
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, kv_heads * self.size, bias=False)
        self.value = nn.Linear(width, kv_heads * self.size, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def cache(self, batch: int, tokens: int) -> KeysValues:
        keys, values = (self.key.weight.new_zeros(batch, self.kv_heads, tokens, self.size) for _ in range(2))
        return KeysValues(keys, values, torch.zeros(batch, tokens, dtype=torch.bool, device=keys.device))

    def forward(self, x: Tensor, cache: KeysValues | None = None, mask: Tensor | None = None) -> Tensor:
        length = x.shape[1]
        query, key, value = (project(x).unflatten(-1, (heads, -1)).transpose(1, 2) for project, heads in
                             ((self.query, self.heads), (self.key, self.kv_heads), (self.value, self.kv_heads)))
        positions = (torch.arange(length, device=x.device)[None] if mask is None else (mask.cumsum(1) - 1).clamp(min=0))
        done = 0
        if cache is not None:
            done = cache.done
            positions = positions + (cache.there.sum(1, keepdim=True) if cache.padded else done)
        if self.rotary:
            query, key = rotate(query, positions, self.rotary), rotate(key, positions, self.rotary)
        allowed = mask
        if cache is not None:
            cache.append(key, value, mask)
            key, value = cache.keys[:, :, : cache.done].to(query.dtype), cache.values[:, :, : cache.done].to(query.dtype)
            allowed = cache.there[:, : cache.done] if cache.padded else None
        if self.kv_heads < self.heads:
            key, value = (v.repeat_interleave(self.heads // self.kv_heads, 1) for v in (key, value))
        if done == 0 and allowed is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            seen = _seen(length, key.shape[2], done, allowed, x.device)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _seen(length: int, places: int, done: int, allowed: Tensor | None, device: torch.device) -> Tensor:
    """[batch or 1, 1, tokens, places] bool: a token sees itself, whatever it is, and the tokens before it."""
    at = torch.arange(places, device=device)
    own = torch.arange(length, device=device)[:, None] + done
    before = at <= own
    if allowed is None:
        return before[None, None]
    return ((before & allowed[:, None]) | (at == own))[:, None]
