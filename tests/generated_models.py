"""Small models drawn from a seed: of all that people do with torch's modules, a little in each."""

from __future__ import annotations

import random
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.unusual_layers import (
    Answer,
    Asks,
    Causal1d,
    Counting,
    Doubled,
    Named,
    Named2d,
    Padded2d,
    Residual,
    Spectral,
    Standardized,
    Swapped2d,
    Tied,
    Twice,
    halved,
    seen,
    tripled,
)

WIDTH = 32
"""Of most layers: groups of weights and multiples of eight divide it."""
CLASSES = 5


@dataclass(frozen=True)
class Drawn:
    """Args:
        make: () -> the model in eval mode; the same structure every time, weights by torch's generator.
        inputs: (n, seed) -> n requests.
        words: what is in it.
        depth: of its layers, an upper bound.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], tuple[Tensor, ...]]
    words: tuple[str, ...]
    depth: int

    def asked(self, n: int, seed: int) -> tuple[Tensor, ...]:
        """As ``inputs``, but for a last row that is wholly masked where there are masks."""
        given = self.inputs(n, seed)
        for x in given:
            if x.dtype == torch.bool:
                x[-1] = False
        return given


def draw(seed: int) -> Drawn:
    """The model of that seed."""
    kind = random.Random(seed).choice(list(KINDS))

    def make() -> nn.Module:
        return _settled(KINDS[kind](Maker(random.Random(seed), kind)), REQUESTS[kind])

    maker = Maker(random.Random(seed), kind)
    KINDS[kind](maker)
    return Drawn(make, REQUESTS[kind], tuple(maker.words), maker.depth)


def _settled(model: nn.Module, inputs: Callable[[int, int], tuple[Tensor, ...]]) -> nn.Module:
    """Lazy layers sized, statistics of norms taken of data, then what vanishes, vanished."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.eval()(*inputs(2, 0))
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
        for norm in norms:
            norm.train().momentum = 0.5
        for step in range(4):
            model(*inputs(16, 100 + step))
        for norm in norms:
            norm.eval()
            vanish = getattr(norm, "vanish", None)
            if vanish == "scale":
                norm.weight[:3] = torch.tensor([0.0, 1e-20, -1e-8])
            elif vanish == "variance":  # channels that died: nothing comes, and nothing varies
                norm.running_var[:2], norm.running_mean[:2], norm.weight[:2] = torch.tensor([0.0, 1e-30]), 0.0, 1e-6
    return model.eval()


# -- drawing -----------------------------------------------------------------------------------------------------


class Maker:
    """Draws the parts of one model, and notes what it drew."""

    def __init__(self, rng: random.Random, kind: str) -> None:
        self.rng, self.words, self.depth = rng, [kind], 1

    def pick(self, plain: float, *others: str) -> str:
        """``plain`` is the share of nothing special."""
        word = "" if self.rng.random() < plain else self.rng.choice(others)
        if word:
            self.words.append(word)
        return word

    def odd(self, layer: nn.Module, word: str) -> nn.Module:
        """What can be done to any layer."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if word in ("weight_norm", "spectral_norm", "orthogonal"):
                getattr(parametrizations, word)(layer)
            elif word == "hook":
                layer.register_forward_hook(halved)
            elif word == "pre-hook":
                layer.register_forward_pre_hook(tripled)
            elif word == "backward hook":
                layer.register_full_backward_hook(seen)
            elif word == "huge":
                layer.weight.mul_(1e3)
            elif word == "tiny":
                layer.weight.mul_(1e-3)
            elif word == "frozen":
                layer.requires_grad_(False)
        return layer

    ODD = ("weight_norm", "spectral_norm", "orthogonal", "hook", "pre-hook", "backward hook", "huge", "tiny", "frozen")

    def linear(self, i: int, o: int) -> nn.Module:
        self.depth += 1
        word = self.pick(0.55, *self.ODD, "named", "doubled", "standardized", "lazy", "no bias")
        kinds: dict[str, Any] = {"named": Named, "doubled": Doubled, "standardized": Standardized}
        if word == "lazy":
            return nn.LazyLinear(o)
        return self.odd(kinds.get(word, nn.Linear)(i, o, bias=word != "no bias"), word)

    def conv(self, dims: int, i: int, o: int) -> nn.Module:
        self.depth += 1
        word = self.pick(0.45, *self.ODD, "grouped", "depthwise", "transposed", "strided", "dilated", "same", "circular",
                         "one", "own", "named", "lazy")
        cls: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        if word == "transposed":
            return (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1](i, o, 3, padding=1)
        if word == "lazy":
            return (nn.LazyConv1d, nn.LazyConv2d, nn.LazyConv3d)[dims - 1](o, 3, padding=1)
        if word == "own" and dims < 3:
            return Causal1d(i, o, 3) if dims == 1 else self.rng.choice((Padded2d(i, o, 2), Swapped2d(i, o, 3, padding=1)))
        if word == "named" and dims == 2:
            cls = Named2d
        more: dict[str, Any] = {
            "grouped": {"groups": 2 if i % 2 == 0 else 1}, "depthwise": {"groups": i if o % i == 0 else 1},
            "dilated": {"dilation": 2, "padding": 2}, "same": {"padding": "same"}, "circular": {"padding_mode": "circular"},
        }.get(word, {})
        if word == "one":
            return cls(i, o, 1)
        return self.odd(cls(i, o, 3, **{"padding": 1, "stride": 2 if word == "strided" else 1, **more}), word)

    def norm(self, dims: int, c: int) -> nn.Module:
        word = self.rng.choice(("batch", "batch", "batch", "group", "instance", "none", "plain batch", "vanish"))
        self.words.append(f"norm:{word}")
        batch: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[max(dims, 1) - 1]
        if word in ("batch", "vanish"):
            made = batch(c)
            made.vanish = self.rng.choice(("scale", "variance")) if word == "vanish" else None
            return made
        if word == "plain batch":
            return batch(c, affine=False)
        if word == "group":
            return nn.GroupNorm(4, c)
        if word == "instance" and dims:
            return (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 1](c, affine=True)
        return nn.Identity()

    def act(self) -> nn.Module:
        return self.rng.choice((nn.ReLU, nn.ReLU, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ReLU6, nn.Tanh))()

    def rows(self, i: int) -> nn.Module:
        """[n, i] -> [n, WIDTH]."""
        blocks: list[nn.Module] = [self.linear(i, WIDTH), self.norm(0, WIDTH), self.act()]
        for _ in range(self.rng.randrange(3)):
            word = self.pick(0.3, "residual", "shared", "tied", "read", "typed", "layer norm", "rms norm", "counting",
                             "dropout")
            self.depth += 2
            blocks.append({
                "residual": lambda: Residual(nn.Sequential(self.linear(WIDTH, 2 * WIDTH), self.act(),
                                                           self.linear(2 * WIDTH, WIDTH))),
                "shared": lambda: Twice(self.linear(WIDTH, WIDTH)),
                "tied": lambda: Tied(WIDTH, "tied"), "read": lambda: Tied(WIDTH, "read"), "typed": lambda: Tied(WIDTH, "typed"),
                "layer norm": lambda: nn.LayerNorm(WIDTH), "rms norm": lambda: nn.RMSNorm(WIDTH),
                "counting": lambda: Counting(self.rng.random() < 0.5), "dropout": lambda: nn.Dropout(0.3),
                "": lambda: nn.Sequential(self.linear(WIDTH, WIDTH), self.act()),
            }[word]())
        return nn.Sequential(*blocks)

    def images(self, dims: int, i: int) -> nn.Module:
        """[n, i, ...] -> [n, WIDTH]."""
        pools = ((nn.MaxPool1d, nn.AvgPool1d), (nn.MaxPool2d, nn.AvgPool2d), (nn.MaxPool3d, nn.AvgPool3d))[dims - 1]
        conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        kinds: dict[str, Callable[[], nn.Module]] = {
            "residual": lambda: Residual(nn.Sequential(conv(16, 16, 3, padding=1), self.norm(dims, 16), self.act())),
            "shared": lambda: Twice(conv(16, 16, 3, padding=1)), "pool": lambda: self.rng.choice(pools)(2),
            "dropout": lambda: nn.Dropout(0.3), "counting": lambda: Counting(self.rng.random() < 0.5),
            "asks": lambda: Asks(conv(16, 16, 3, padding=1)), "complex": lambda: Spectral(16),
            "": lambda: nn.Sequential(self.conv(dims, 16, 16), self.norm(dims, 16), self.act()),
        }
        blocks = [self.conv(dims, i, 16), self.norm(dims, 16), self.act()]
        for _ in range(self.rng.randrange(3)):
            self.depth += 2
            blocks.append(kinds[self.pick(0.4, *[word for word in kinds if word and (word != "complex" or dims == 1)])]())
        blocks += [(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1](2), nn.Flatten(),
                   self.linear(16 * 2 ** dims, WIDTH)]
        return nn.Sequential(*blocks)

    def sequence(self) -> nn.Module:
        """[n, t, WIDTH] -> [n, t, WIDTH]."""
        word = self.rng.choice(("lstm", "gru", "both ways", "projected", "attention", "encoder layer", "encoder", "rnn"))
        self.words.append(word)
        self.depth += 3
        layer = {"batch_first": True, "dropout": 0.1, "dim_feedforward": 64, "norm_first": self.rng.random() < 0.5,
                 "activation": self.rng.choice(("relu", "gelu"))}
        return {
            "lstm": lambda: First(nn.LSTM(WIDTH, WIDTH, batch_first=True)),
            "gru": lambda: First(nn.GRU(WIDTH, WIDTH, 2, batch_first=True)),
            "both ways": lambda: First(self.rng.choice((nn.LSTM, nn.GRU))(WIDTH, WIDTH // 2, bidirectional=True,
                                                                          batch_first=True)),
            "projected": lambda: First(nn.LSTM(WIDTH, 2 * WIDTH, proj_size=WIDTH, batch_first=True)),
            "rnn": lambda: First(nn.RNN(WIDTH, WIDTH, batch_first=True)),
            "attention": lambda: Attention(),
            "encoder layer": lambda: nn.TransformerEncoderLayer(WIDTH, 4, **layer),
            "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, **layer), 2,
                                                     enable_nested_tensor=self.rng.random() < 0.5),
        }[word]()


class First(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, x):
        return x + self.inner(x, x, x, need_weights=False)[0]


class Model(nn.Module):
    """Body and head, in one of the ways that people write forwards.

    Args:
        body: inputs -> [n, WIDTH].
        head: [n, WIDTH] -> [n, CLASSES].
        aux: a head of training alone, or None.
        way: of giving the answer.
    """

    def __init__(self, body: nn.Module, head: nn.Module, aux: nn.Module | None, way: str) -> None:
        super().__init__()
        self.body, self.head, self.aux, self.way = body, head, aux, way

    def answer(self, h: Tensor) -> Any:
        y = self.head(h)
        if self.aux is not None and self.training:
            y = y + self.aux(h)
        return {"tuple": lambda: (y, h), "dict": lambda: {"scores": y, "hidden": h}, "dataclass": lambda: Answer(y, h),
                "ordered": lambda: OrderedDict(scores=y)}.get(self.way, lambda: y)()

    def forward(self, x):
        return self.answer(self.body(x))


class Optional(Model):
    """Arguments that the workload does not give."""

    def forward(self, x, gate=None, *, strong: bool = False):
        h = self.body(x)
        if gate is not None:
            h = h * gate
        if strong:
            h = 2 * h
        return self.answer(h)


class Branching(Model):
    """A branch on the type of what comes, and one on numbers."""

    def forward(self, x):
        if not torch.is_tensor(x):
            x = x["x"]
        h = self.body(x)
        return self.answer(h if bool((h.abs().max() > -1).item()) else -h)


class Many(Model):
    def forward(self, *xs):
        return self.answer(self.body(xs[0]))


class Words(nn.Module):
    """Tokens [n, t], and a mask where one is given -> [n, WIDTH]."""

    def __init__(self, maker: Maker, masked: bool) -> None:
        super().__init__()
        self.bag = maker.pick(0.8, "bag") == "bag"
        table = maker.pick(0.6, "renormed", "padding row", "light table")
        self.table: Any = (nn.EmbeddingBag(40, WIDTH, mode="mean") if self.bag else
                           nn.Embedding(40, WIDTH, max_norm=4.0 if table == "renormed" else None,
                                        padding_idx=0 if table == "padding row" else None))
        self.mix = None if self.bag else maker.sequence()
        self.last = maker.linear(WIDTH, WIDTH)

    def forward(self, ids, mask=None):
        h = self.table(ids)
        if self.mix is not None:
            padded = mask is not None and isinstance(self.mix, nn.TransformerEncoderLayer | nn.TransformerEncoder)
            h = self.mix(h, src_key_padding_mask=~mask) if padded else self.mix(h)
            h = (h * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True) if mask is not None else h.mean(1)
        return torch.relu(self.last(h))


class Masked(Model):
    def forward(self, ids, mask):
        return self.answer(self.body(ids, mask))


class Series(nn.Module):
    def __init__(self, maker: Maker) -> None:
        super().__init__()
        self.lift, self.mix, self.last = maker.linear(WIDTH, WIDTH), maker.sequence(), maker.linear(WIDTH, WIDTH)

    def forward(self, x):
        return torch.relu(self.last(self.mix(self.lift(x))).mean(1))


def _model(maker: Maker, body: nn.Module, way: type[Model] | None = None) -> nn.Module:
    head = maker.linear(WIDTH, CLASSES)
    aux = nn.Linear(WIDTH, CLASSES) if maker.pick(0.75, "aux") else None
    cls: Any = way or {"": Model, "optional": Optional, "branching": Branching, "many": Many}[
        maker.pick(0.5, "optional", "branching", "many")]
    return cls(body, head, aux, maker.pick(0.6, "tuple", "dict", "dataclass", "ordered"))


KINDS: dict[str, Callable[[Maker], nn.Module]] = {
    "rows": lambda m: _model(m, m.rows(WIDTH)),
    "waves": lambda m: _model(m, m.images(1, 3)),
    "images": lambda m: _model(m, m.images(2, 3)),
    "volumes": lambda m: _model(m, m.images(3, 2)),
    "series": lambda m: _model(m, Series(m)),
    "tokens": lambda m: _model(m, Words(m, False)),
    "masked tokens": lambda m: _model(m, Words(m, True), Masked),
}


def _numbers(*shape: int) -> Callable[[int, int], tuple[Tensor, ...]]:
    return lambda n, seed: (torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed)),)


def _tokens(n: int, seed: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 40, (n, 6), generator=torch.Generator().manual_seed(seed)),)


def _masked(n: int, seed: int) -> tuple[Tensor, ...]:
    ids = _tokens(n, seed)[0]
    real = torch.randint(2, 7, (n,), generator=torch.Generator().manual_seed(seed + 1))
    real[:1] = 6
    return ids, torch.arange(6)[None] < real[:, None]


REQUESTS: dict[str, Callable[[int, int], tuple[Tensor, ...]]] = {
    "rows": _numbers(WIDTH), "waves": _numbers(3, 16), "images": _numbers(3, 8, 8), "volumes": _numbers(2, 4, 4, 4),
    "series": _numbers(5, WIDTH), "tokens": _tokens, "masked tokens": _masked,
}
