"""A language model of any mixture of layers, which generates with what each of them remembers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from thrifty.architectures.blocks import Sizes, layers
from thrifty.architectures.mixer import Cache, Mixer
from thrifty.errors import ThriftyError


@final
class Residual(nn.Module):
    """x + mixer(norm(x)).

    Args:
        mixer: of tokens or of channels.
        width: of x.
        eps: of the norm.
    """

    def __init__(self, mixer: Mixer, width: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=eps)
        self.mixer = mixer

    def forward(self, x: Tensor, cache: Cache = None, mask: Tensor | None = None) -> Tensor:
        return x + self.mixer(self.norm(x), cache, mask)  # type: ignore[no-any-return]


@final
class Backbone(nn.Module):
    """ids [batch, tokens] int64 -> logits [batch, tokens, vocabulary].

    Args:
        vocabulary: tokens that there are.
        pattern: its layers, words of `thrifty.architectures.blocks.BLOCKS`: "mamba2 mlp mamba2 mlp attention mlp".
        sizes: sizes of the layers.
        tied: whether the head's weight is the embedding's.
        eps: epsilon of the norms.

    Raises:
        ThriftyError: a layer that there is not, or sizes that do not fit.

    >>> model = Backbone(100, "mamba2 attention mlp", Sizes(width=32, heads=4, hidden=64, head=16, state=8))
    >>> model(torch.zeros(2, 8, dtype=torch.int64)).shape
    torch.Size([2, 8, 100])
    >>> model.generate(torch.zeros(2, 8, dtype=torch.int64), 5).shape
    torch.Size([2, 5])
    """

    tp_plan: ClassVar[Mapping[str, str]] = {
        **{f"blocks.*.mixer.{name}": "colwise" for name in ("query", "key", "value", "up")},
        **{f"blocks.*.mixer.{name}": "rowwise" for name in ("out", "down")},
    }
    """Matrices that ranks may split, by outputs and by inputs: attention's and those of feed-forward layers."""

    def __init__(self, vocabulary: int, pattern: str, sizes: Sizes, *, tied: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.pattern, self.sizes = pattern, sizes
        self.embedding = nn.Embedding(vocabulary, sizes.width)
        made = layers(pattern, sizes)
        self.blocks = nn.ModuleList(Residual(layer, sizes.width, eps) for layer in made)
        self.norm = nn.RMSNorm(sizes.width, eps=eps)
        self.head = nn.Linear(sizes.width, vocabulary, bias=False)
        for name, weight in self.named_parameters():  # GPT-2's: the sum over all layers keeps the size of one
            if name.endswith(("out.weight", "down.weight", "out_proj.weight")):
                nn.init.normal_(weight, std=0.02 / math.sqrt(len(made)))
            elif name.endswith(("embedding.weight", "head.weight", "query.weight", "key.weight", "value.weight", "up.weight",
                                "gate.weight", "in_proj.weight", "x_proj.weight")):
                nn.init.normal_(weight, std=0.02)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor, caches: list[Cache] | None = None, mask: Tensor | None = None) -> Tensor:
        """Logits of all tokens.

        Args:
            ids: [batch, tokens].
            caches: caches of the tokens before, as `cache` makes them; left as of these too.
            mask: [batch, tokens] bool, False where a row has no token, at either end.
        """
        x = self.embedding(ids)
        for i, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[i], mask)
        return self.head(self.norm(x))  # type: ignore[no-any-return]

    def cache(self, batch: int, tokens: int) -> list[Cache]:
        """What the layers remember before the first of so many tokens."""
        return [block.mixer.cache(batch, tokens) for block in self.blocks]  # type: ignore[union-attr, operator]

    @torch.no_grad()
    def generate(self, prompt: Tensor, new: int, *, mask: Tensor | None = None,
                 choose: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(-1)) -> Tensor:
        """The tokens that follow each prompt: the prompt at once, then one token at a time.

        Args:
            prompt: [batch, tokens], one token or more each.
            new: tokens to generate.
            mask: [batch, tokens] bool, False where a shorter prompt is padded, on its left or on its right.
            choose: logits [batch, vocabulary] -> the next tokens [batch]; the likeliest by default.

        Returns:
            [batch, new].

        Raises:
            ThriftyError: a prompt without tokens, or nothing to generate.
        """
        if prompt.shape[1] < 1 or new < 1 or (mask is not None and not bool(mask.any(1).all())):
            raise ThriftyError(f"a prompt of {prompt.shape[1]} tokens and {new} new ones were requested: every row needs at "
                               "least one of each")
        caches = self.cache(prompt.shape[0], prompt.shape[1] + new)
        logits = self(prompt, caches, mask)
        at = torch.full((len(prompt),), prompt.shape[1] - 1, device=prompt.device)
        if mask is not None:
            at = (torch.arange(mask.shape[1], device=mask.device) * mask).amax(1)
        answer = [choose(logits[torch.arange(len(prompt), device=prompt.device), at])]
        while len(answer) < new:
            answer.append(choose(self(answer[-1][:, None], caches)[:, -1]))
        return torch.stack(answer, 1)
