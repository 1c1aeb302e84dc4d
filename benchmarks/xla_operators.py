"""Where XLA loses to Inductor on a processor, operator by operator: fp32, batch 1, one thread.

    python benchmarks/xla_operators.py >> benchmarks/compilers.md

Each operator has the shapes of the models of `benchmarks/auto.py` (an MLP, ResNet-18 at 224x224 and 64x64, MobileNetV3,
MiniLM at 128 tokens); each is lowered by both and measured in interleaved fresh processes. "Nothing" is a model of one
addition: what a call itself costs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from thrifty import Context
from thrifty.artifacts import artifact
from thrifty.measure.sides import ArtifactSide
from thrifty.measure.timing import compare
from thrifty.recipes.registry import method_class


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def operators() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """{name: (module, one request)}."""
    def conv(inputs: int, outputs: int, size: int, side: int, stride: int = 1,
             groups: int = 1) -> tuple[nn.Module, tuple[Tensor, ...]]:
        return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups), (torch.randn(1, inputs, side, side),)

    heads = tuple(torch.randn(1, 12, 128, 32) for _ in range(3))
    return {
        "nothing: x + 1, 64": (Function(lambda x: x + 1), (torch.randn(1, 64),)),
        "linear 784 to 512, one row": (nn.Linear(784, 512), (torch.randn(1, 784),)),
        "linear 384 to 1536, 128 rows": (nn.Linear(384, 1536), (torch.randn(1, 128, 384),)),
        "linear 1536 to 384, 128 rows": (nn.Linear(1536, 384), (torch.randn(1, 128, 1536),)),
        "attention, 12 heads of 32, 128 tokens": (Function(nn.functional.scaled_dot_product_attention), heads),
        "layer norm, 128 x 384": (nn.LayerNorm(384), (torch.randn(1, 128, 384),)),
        "GELU, 128 x 1536": (nn.GELU(), (torch.randn(1, 128, 1536),)),
        "convolution 7x7, 3 to 64, 224": conv(3, 64, 7, 224, 2),
        "max pool 3x3, 64, 112": (nn.MaxPool2d(3, 2, 1), (torch.randn(1, 64, 112, 112),)),
        "convolution 3x3, 64 to 64, 56": conv(64, 64, 3, 56),
        "convolution 3x3, 128 to 128, 28": conv(128, 128, 3, 28),
        "convolution 3x3, 512 to 512, 7": conv(512, 512, 3, 7),
        "convolution 3x3, 256 to 256, 4": conv(256, 256, 3, 4),
        "convolution 3x3, 512 to 512, 2": conv(512, 512, 3, 2),
        "convolution 1x1, 64 to 128, 56": conv(64, 128, 1, 56, 2),
        "convolution 5x5 of 240 channels apart, 14": conv(240, 240, 5, 14, groups=240),
        "hard swish, 240, 14": (nn.Hardswish(), (torch.randn(1, 240, 14, 14),)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--operators", nargs="+", choices=list(operators()), default=list(operators()))
    arguments = parser.parse_args()
    print("| operator | Inductor | XLA | Inductor's time over XLA's |\n| --- | --- | --- | --- |", flush=True)
    for name in arguments.operators:
        module, inputs = operators()[name]
        with tempfile.TemporaryDirectory() as place, torch.no_grad():
            for compiler in ("inductor", "xla"):
                where = Path(place) / compiler
                where.mkdir()
                lowered = method_class(compiler)().lower(  # type: ignore[attr-defined]
                    module.eval(), inputs, where, Context(inputs, lambda: iter(())))
                artifact.write(where, lowered, {}, [x.numpy() for x in inputs], [module(*inputs).numpy()])
            sides = {c: ArtifactSide(str(Path(place) / c), trust_native_code=True) for c in ("inductor", "xla")}
            found = compare(sides, "inductor", [x.numpy() for x in inputs], rounds=arguments.rounds)
        ratio = found.ratios["xla"]
        interval = f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio and ratio.low is not None else "-"
        times = " | ".join(f"{found.figures[c].p50 * 1e3:.3f} ms" for c in ("inductor", "xla"))
        print(f"| {name} | {times} | {interval} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
