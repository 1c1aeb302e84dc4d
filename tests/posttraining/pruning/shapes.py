"""Tiny models of the shapes that are served: each named, with an example, made anew with the same weights each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
                         nn.BatchNorm2d(outputs))


class Basic(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, width, 3, stride), conv(width, width)
        self.shortcut = conv(inputs, width, 1, stride) if stride > 1 or inputs != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class Bottleneck(nn.Module):
    """ResNet-50's; with ``groups`` ResNeXt's."""

    def __init__(self, inputs: int, width: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, width, 1), conv(width, width, 3, stride, groups)
        self.third = conv(width, 4 * width, 1)
        self.shortcut = conv(inputs, 4 * width, 1, stride) if stride > 1 or inputs != 4 * width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.third(F.relu(self.second(F.relu(self.first(x))))) + self.shortcut(x))


class Resnet(nn.Module):
    def __init__(self, blocks: list[nn.Module], stem: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 7, 2, 3, bias=False), nn.BatchNorm2d(stem), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks, self.pool, self.head = nn.Sequential(*blocks), nn.AdaptiveAvgPool2d(1), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))  # type: ignore[no-any-return]


class Squeeze(nn.Module):
    def __init__(self, width: int, inner: int, gate: nn.Module) -> None:
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))  # type: ignore[no-any-return]


class Inverted(nn.Module):
    """MobileNetV3's and EfficientNet's block."""

    def __init__(self, inputs: int, outputs: int, expand: int, stride: int, act: type[nn.Module], gate: nn.Module) -> None:
        super().__init__()
        hidden = inputs * expand
        self.skip = stride == 1 and inputs == outputs
        self.body = nn.Sequential(conv(inputs, hidden, 1), act(), conv(hidden, hidden, 3, stride, hidden), act(),
                                  Squeeze(hidden, max(8, hidden // 4), gate), conv(hidden, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)  # type: ignore[no-any-return]


class Mobile(nn.Module):
    def __init__(self, act: type[nn.Module], gate: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 3, 2), act())
        self.blocks = nn.Sequential(*(Inverted(i, o, e, s, act, gate)
                                      for i, o, e, s in ((16, 16, 2, 1), (16, 24, 4, 2), (24, 24, 4, 1), (24, 40, 4, 2))))
        self.last, self.act = conv(40, 96, 1), act()
        self.head = nn.Sequential(nn.Linear(96, 64), act(), nn.Dropout(0.2), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.last(self.blocks(self.stem(x)))).mean((2, 3)))  # type: ignore[no-any-return]


class Unet(nn.Module):
    """Skips are concatenated with what a transposed convolution brings up."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = width
        self.down1, self.down2, self.middle = self.double(3, w), self.double(w, 2 * w), self.double(2 * w, 4 * w)
        self.up2, self.up1 = nn.ConvTranspose2d(4 * w, 2 * w, 2, 2), nn.ConvTranspose2d(2 * w, w, 2, 2)
        self.join2, self.join1, self.head = self.double(4 * w, 2 * w), self.double(2 * w, w), nn.Conv2d(w, 2, 1)

    def double(self, inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(conv(inputs, outputs), nn.ReLU(), conv(outputs, outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        y = self.up2(self.middle(F.max_pool2d(b, 2)))
        y = self.up1(self.join2(torch.cat([b, y], 1)))
        return self.head(self.join1(torch.cat([a, y], 1)))  # type: ignore[no-any-return]


class Channels(nn.LayerNorm):
    """A layer norm over the channels of an image, as ConvNeXt has it between its stages."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvnextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.gelu(self.up(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        return x + (self.gamma * y).permute(0, 3, 1, 2)


class Convnext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 4, 4), Channels(32))
        self.stages = nn.Sequential(ConvnextBlock(32), ConvnextBlock(32), Channels(32), nn.Conv2d(32, 64, 2, 2),
                                    ConvnextBlock(64))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stages(self.stem(x)).mean((-2, -1))))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """DeiT's, with queries, keys and values in one layer; ``classic`` takes the size of a head from the stream's width."""

    def __init__(self, width: int, heads: int, classic: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.classic = heads, width // heads, classic
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        size = c // self.num_heads if self.classic else self.head_dim
        query, key, value = self.qkv(x).reshape(b, n, 3, self.num_heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((query * size**-0.5) @ key.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(b, n, c if self.classic else -1))  # type: ignore[no-any-return]


class DeitBlock(nn.Module):
    def __init__(self, width: int, heads: int, classic: bool) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width, heads, classic), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Deit(nn.Module):
    def __init__(self, classic: bool = False, width: int = 48, heads: int = 6) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*(DeitBlock(width, heads, classic) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])  # type: ignore[no-any-return]


class Logits(nn.Module):
    """A language model of transformers as a server calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        out = self.model(ids, use_cache=False)
        return out.logits if hasattr(out, "logits") else out.last_hidden_state  # type: ignore[no-any-return]


class Pixels(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).logits  # type: ignore[no-any-return]


def of_transformers(name: str) -> nn.Module:
    import transformers as t

    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    match name:
        case "llama":
            return Logits(t.LlamaForCausalLM(t.LlamaConfig(
                hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=24, num_key_value_heads=8,
                vocab_size=64, max_position_embeddings=32, **ends)))
        case "bert":
            return Logits(t.BertModel(t.BertConfig(
                hidden_size=48, intermediate_size=192, num_hidden_layers=2, num_attention_heads=6, vocab_size=64,
                max_position_embeddings=32, hidden_dropout_prob=0.0)))
        case "gpt2":
            return Logits(t.GPT2LMHeadModel(t.GPT2Config(n_embd=48, n_layer=2, n_head=6, vocab_size=64, n_positions=32, **ends)))
        case "mixtral":
            mixtral = t.MixtralForCausalLM(t.MixtralConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4,
                num_local_experts=4, vocab_size=64, max_position_embeddings=32, **ends))
            mixtral.set_experts_implementation("batched_mm")  # else an operator of transformers alone
            return Logits(mixtral)
        case "vit":
            return Pixels(t.ViTForImageClassification(t.ViTConfig(
                hidden_size=48, intermediate_size=192, num_hidden_layers=2, num_attention_heads=6, image_size=32, patch_size=8,
                num_labels=10)))
    raise KeyError(name)


def _image(size: int = 32) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)),)


def _ids() -> tuple[Tensor, ...]:
    return (torch.arange(24).reshape(2, 12) % 64,)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "resnet18": (lambda: Resnet([Basic(16, 16, 1), Basic(16, 32, 2), Basic(32, 64, 2)], 16, 64), _image),
    "resnet50": (lambda: Resnet([Bottleneck(16, 16, 1), Bottleneck(64, 16, 1), Bottleneck(64, 32, 2)], 16, 128), _image),
    "resnext": (lambda: Resnet([Bottleneck(16, 32, 1, 8), Bottleneck(128, 32, 2, 8)], 16, 128), _image),
    "mobilenetv3": (lambda: Mobile(nn.Hardswish, nn.Hardsigmoid()), _image),
    "efficientnet": (lambda: Mobile(nn.SiLU, nn.Sigmoid()), _image),
    "unet": (Unet, _image),
    "convnext": (Convnext, _image),
    "deit": (Deit, _image),
    "vit": (lambda: of_transformers("vit"), _image),
    "llama": (lambda: of_transformers("llama"), _ids),
    "bert": (lambda: of_transformers("bert"), _ids),
    "gpt2": (lambda: of_transformers("gpt2"), _ids),
    "mixtral": (lambda: of_transformers("mixtral"), _ids),
}


def resnet(counts: tuple[int, ...], block: type[Basic] | type[Bottleneck]) -> nn.Module:
    """ResNet-18's and ResNet-50's widths and depths."""
    blocks: list[nn.Module] = []
    inputs, wider = 64, 1 if block is Basic else 4
    for stage, count in enumerate(counts):
        width = 64 * 2**stage
        for i in range(count):
            blocks.append(block(inputs, width, 2 if stage and not i else 1))
            inputs = width * wider
    return Resnet(blocks, 64, inputs)


def llama() -> nn.Module:
    import transformers as t

    return Logits(t.LlamaForCausalLM(t.LlamaConfig(
        hidden_size=1536, intermediate_size=4096, num_hidden_layers=4, num_attention_heads=24, num_key_value_heads=8,
        vocab_size=8192, bos_token_id=None, eos_token_id=None, pad_token_id=None)))


FULL: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "resnet18 whole": (lambda: resnet((2, 2, 2, 2), Basic), lambda: _image(64)),
    "resnet50 whole": (lambda: resnet((3, 4, 6, 3), Bottleneck), lambda: _image(64)),
    "llama whole": (llama, _ids),
}
"""Of the widths that are served."""


def make(name: str) -> nn.Module:
    """In eval mode, with weights drawn from one seed, norms as after training."""
    torch.manual_seed(0)
    model = (MODELS | FULL)[name][0]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
        elif "norm" in type(module).__name__.lower() and isinstance(getattr(module, "weight", None), Tensor):
            nn.init.uniform_(module.weight, 0.5, 2)
    return model


def example(name: str) -> tuple[Tensor, ...]:
    return (MODELS | FULL)[name][1]()
