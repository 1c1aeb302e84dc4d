"""Models of many shapes, with random weights and no downloads: what every compiler must be able to take.

Each is a plain module of tensors; `benchmarks/compilers.py cells` lowers all of them through every backend.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty import load_workload
from thrifty.workloads.huggingface.models import ImageLogits, TextLogits, TokenLogits, quiet

CLASSES, WORDS, TOKENS, BATCH, LONGEST = 100, 1000, 24, 16, 64


@final
@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Args:
        name: of the row.
        make: () -> the module, in eval mode, the same weights every time.
        example: (n, seed) -> n requests, a tuple of tensors.
        tokens: {input position: dimension} that is a sequence's length and may vary.
    """

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[int, int], tuple[Tensor, ...]]
    tokens: Mapping[int, int] = field(default_factory=dict)

    def shapes(self, varying: str) -> dict[int, dict[int, tuple[int, int]]]:
        """What varies: "batch+tokens", "batch" or "nothing"."""
        if varying == "nothing":
            return {}
        found = {i: {0: (1, BATCH)} for i in range(len(self.example(1, 0)))}
        if varying == "batch+tokens":
            for i, dimension in self.tokens.items():
                found[i][dimension] = (1, LONGEST)
        return found


# -- convolutional nets -----------------------------------------------------------------------------------------


def normed(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1,
           act: nn.Module | None = None) -> nn.Sequential:
    """Convolution, batch norm and, where there is one, an activation."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([act] if act else []))


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)), after He et al. 2015: two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        self.body = nn.Sequential(
            normed(inputs, width, act=nn.ReLU()), normed(width, width, 3, stride, act=nn.ReLU()), normed(width, outputs),
        ) if bottleneck else nn.Sequential(normed(inputs, width, 3, stride, act=nn.ReLU()), normed(width, width, 3))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else normed(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(depths: tuple[int, ...], bottleneck: bool, classes: int = CLASSES) -> nn.Module:
    """ResNet-18 is (2, 2, 2, 2) without bottlenecks, ResNet-50 (3, 4, 6, 3) with them."""
    layers: list[nn.Module] = [normed(3, 64, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, depth in enumerate(depths):
        for i in range(depth):
            width = 64 << stage
            layers.append(Residual(inputs, width, 2 if stage and not i else 1, bottleneck))
            inputs = 4 * width if bottleneck else width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class Excited(nn.Module):
    """Squeeze and excitation: x times a gate of its own channel means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, channels // 4)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, hidden, 1), nn.ReLU(),
                                  nn.Conv2d(hidden, channels, 1), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Inverted(nn.Module):
    """MobileNetV3's block: widen, depthwise convolution, squeeze and excitation, narrow."""

    def __init__(self, inputs: int, size: int, hidden: int, outputs: int, excited: bool, hard: bool, stride: int) -> None:
        super().__init__()
        act: Any = nn.Hardswish if hard else nn.ReLU
        self.body = nn.Sequential(
            normed(inputs, hidden, act=act()), normed(hidden, hidden, size, stride, groups=hidden, act=act()),
            Excited(hidden) if excited else nn.Identity(), normed(hidden, outputs),
        )
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skips else self.body(x)


SMALL = (  # size, hidden, outputs, excited, hard, stride: MobileNetV3-Small, Howard et al. 2019, table 2
    (3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1), (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1), (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2), (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1),
)


def mobilenet() -> nn.Module:
    layers: list[nn.Module] = [normed(3, 16, 3, 2, act=nn.Hardswish())]
    inputs = 16
    for size, hidden, outputs, excited, hard, stride in SMALL:
        layers.append(Inverted(inputs, size, hidden, outputs, excited, hard, stride))
        inputs = outputs
    return nn.Sequential(*layers, normed(96, 576, act=nn.Hardswish()), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(576, 1024), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1024, CLASSES))


def settled(net: nn.Module) -> nn.Module:
    """With the batch norms' statistics of one batch, so that folding them has something to get wrong."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
                module.momentum = 1.0
        net.train()(torch.randn(8, 3, 64, 64))
    return net


# -- transformers -----------------------------------------------------------------------------------------------


class EncoderDecoder(nn.Module):
    """(input_ids, decoder_input_ids) -> logits [batch, tokens, vocabulary]."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        return self.body(input_ids=input_ids, decoder_input_ids=decoder_input_ids, use_cache=False).logits


def vit() -> nn.Module:
    with quiet() as transformers:
        config = transformers.ViTConfig(hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768,
                                        image_size=224, patch_size=16, num_labels=CLASSES)
        return ImageLogits(transformers.ViTForImageClassification(config))


def bert() -> nn.Module:
    with quiet() as transformers:
        config = transformers.BertConfig(vocab_size=WORDS, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                                         intermediate_size=128, max_position_embeddings=LONGEST, num_labels=5)
        return TextLogits(transformers.BertForSequenceClassification(config))


def gpt2() -> nn.Module:
    with quiet() as transformers:
        config = transformers.GPT2Config(vocab_size=WORDS, n_embd=64, n_layer=2, n_head=4, n_positions=LONGEST)
        return TokenLogits(transformers.GPT2LMHeadModel(config))


def llama() -> nn.Module:
    """With fewer heads for keys and values than for queries."""
    with quiet() as transformers:
        config = transformers.LlamaConfig(vocab_size=WORDS, hidden_size=64, intermediate_size=160, num_hidden_layers=2,
                                          num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LONGEST)
        return TokenLogits(transformers.LlamaForCausalLM(config))


def t5() -> nn.Module:
    with quiet() as transformers:
        config = transformers.T5Config(vocab_size=WORDS, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
        return EncoderDecoder(transformers.T5ForConditionalGeneration(config))


# -- others -----------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """ids [batch, tokens] -> classes, from the last state of two layers of a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gru = nn.Embedding(WORDS, 48), nn.GRU(48, 64, num_layers=2, batch_first=True)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.gru(self.table(ids))[0][:, -1])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))


# -- the zoo ----------------------------------------------------------------------------------------------------


def _drawn(*shape: int) -> Callable[[int, int], tuple[Tensor, ...]]:
    return lambda n, seed: (torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed)),)


def _ids(n: int, seed: int) -> Tensor:
    return torch.randint(2, WORDS, (n, TOKENS), generator=torch.Generator().manual_seed(seed))


def _masked(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Texts of different lengths, filled up."""
    ids = _ids(n, seed)
    ends = torch.randint(1, TOKENS + 1, (n, 1), generator=torch.Generator().manual_seed(seed + 1))
    mask = (torch.arange(TOKENS) < ends).long()
    return ids * mask, mask


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval().requires_grad_(False)


def _embedded(name: str) -> Entry:
    workload = load_workload(name)

    def example(n: int, seed: int) -> tuple[Tensor, ...]:
        rows = workload.example(n + seed)  # of one seed: the further rows differ from the first
        return tuple(x[seed:] for x in rows)

    return Entry(name, functools.partial(_seeded, workload.model), example)


def entries() -> dict[str, Entry]:
    """All models by name."""
    nets: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], tuple[Tensor, ...]], Mapping[int, int]]] = {}
    for size in (224, 64):
        nets[f"resnet18-{size}"] = (lambda: settled(resnet((2, 2, 2, 2), False)), _drawn(3, size, size), {})
        nets[f"resnet50-{size}"] = (lambda: settled(resnet((3, 4, 6, 3), True)), _drawn(3, size, size), {})
    nets |= {
        "mobilenetv3": (lambda: settled(mobilenet()), _drawn(3, 224, 224), {}),
        "vit": (vit, _drawn(3, 224, 224), {}),
        "bert": (bert, _masked, {0: 1, 1: 1}),
        "gpt2": (gpt2, lambda n, seed: (_ids(n, seed),), {0: 1}),
        "llama": (llama, lambda n, seed: (_ids(n, seed),), {0: 1}),
        "t5": (t5, lambda n, seed: (_ids(n, seed), _ids(n, seed + 1)[:, :9]), {0: 1, 1: 1}),
        "gru": (Recurrent, lambda n, seed: (_ids(n, seed),), {}),
        "mlp": (mlp, _drawn(784), {}),
    }
    found = {name: Entry(name, functools.partial(_seeded, make), example, tokens)
             for name, (make, example, tokens) in nets.items()}
    return found | {name: _embedded(name) for name in ("digits", "python-lm", "minilm")}
