"""Integer products on a processor with AVX2 alone: run by `test_processors.py`, under emulation.

Prints a JSON object: {"compiler net scheme": relative error against the quantized model}.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from thrifty import Compiler, OnnxRuntime, OpenVino, Quantize, load, lower
from thrifty.engines.instructions import saturates


class Net(nn.Module):
    """Convolutions, one of them depthwise, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
                                    nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))  # type: ignore[no-any-return]


def cases() -> list[tuple[str, nn.Module, Tensor]]:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 16))
    return [("convolutions", Net().eval(), torch.randn(4, 3, 16, 16)), ("linears", mlp.eval(), 3 * torch.randn(4, 64))]


def main() -> None:
    torch.set_num_threads(1)
    assert saturates(), "run with THRIFTY_INSTRUCTIONS=\"avx2 fma\", under an emulator of such a processor"
    compilers: list[Compiler] = [OnnxRuntime(), OpenVino()]
    found: dict[str, float] = {}
    for name, net, x in cases():
        for activations in ("dynamic", "static"):
            quantized = Quantize("w8a8", activations=activations)(net, [x, 0.9 * x, torch.randn_like(x)])
            with torch.no_grad():
                want = quantized(x[:1])
            for compiler in compilers:
                with tempfile.TemporaryDirectory() as place:
                    lower(quantized, compiler, Path(place) / "model", (x[:1],))
                    got = torch.as_tensor(load(Path(place) / "model")(x[:1]))
                found[f"{compiler.name} {name} {activations}"] = float((got - want).norm() / want.norm())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
