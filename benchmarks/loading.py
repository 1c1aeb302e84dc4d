"""What a server pays before its first answer: the runtime's import, `thrifty.load`, the first request.

    python benchmarks/loading.py                                     # ResNet-18 at 224x224 and MiniLM at 128 tokens
    python benchmarks/loading.py --models resnet18 --compilers onnxruntime --rounds 9

Every round is a process of its own and all kinds take turns; files are in the page cache after the first round, which is
not counted. Medians, with the slowest round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from thrifty.artifacts import artifact
from thrifty.measure.environment import environment, now
from thrifty.recipes.context import Context
from thrifty.recipes.registry import method_class

LIMITS = {"onnxruntime": 0.5, "openvino": 0.5, "inductor": 1.5}
"""Seconds from `thrifty.load` to the first answer that are to be kept to; the others are told for comparison."""

ROUND = """
import importlib, json, sys, time
place, runtime = sys.argv[1:]
a = time.perf_counter()
if runtime == "openvino":
    sys.modules["openvino_telemetry"] = None
importlib.import_module(runtime)
if runtime == "onnxruntime":
    import numpy
import thrifty
b = time.perf_counter()
model = thrifty.load(place, trust_native_code=True)
c = time.perf_counter()
inputs, _ = thrifty.artifacts.artifact.example(place)
d = time.perf_counter()
model(*inputs)
print(json.dumps([b - a, c - b, time.perf_counter() - d]))
"""


class Block(nn.Module):
    """Two 3x3 convolutions around a residual sum, as in ResNet-18."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm_a, self.norm_b = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        same = stride == 1 and width_in == width
        self.skip = nn.Identity() if same else nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False),
                                                             nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm_b(self.b(torch.relu(self.norm_a(self.a(x))))) + self.skip(x))


def resnet18() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """ResNet-18's shape, untrained: 11.7 million parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width_in = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(width_in, width, stride), Block(width, width, 1)]
        width_in = width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))
    return net, (torch.randn(1, 3, 224, 224),)


def minilm() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The embedded workload's encoder, 128 tokens."""
    from thrifty.workloads.loading import load_workload

    workload = load_workload("minilm")
    return workload.model(), workload.example(1)


MODELS = {"resnet18": resnet18, "minilm": minilm}


def build(model: str, compiler: str, place: Path) -> None:
    torch.manual_seed(0)
    net, example = MODELS[model]()
    net = net.eval().requires_grad_(False)
    place.mkdir()
    lowered = method_class(compiler)().lower(net, example, place, Context(example=example, calibration=lambda: iter(())))
    with torch.no_grad():
        outputs = net(*example)
    artifact.write(place, lowered, {}, [x.numpy() for x in example], [outputs.numpy()])


def one_round(place: Path) -> list[float]:
    """Seconds of the import, the load and the first answer, in a fresh process."""
    from thrifty.engines import RUNTIMES

    command = [sys.executable, "-c", ROUND, str(place), RUNTIMES[artifact.read(place)["engine"]]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--compilers", nargs="*", default=["onnxruntime", "openvino", "inductor", "xla", "export"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        places = {(model, compiler): Path(scratch) / f"{model}-{compiler}"
                  for model in arguments.models for compiler in arguments.compilers}
        for (model, compiler), place in places.items():
            build(model, compiler, place)
        rounds = [{key: one_round(place) for key, place in places.items()} for _ in range(arguments.rounds + 1)][1:]
    print(f"{now()}, {environment()['cpu']}, {environment()['cores']} cores, one thread of inference\n")
    print("| model | engine | import | load | first answer | load to first answer | slowest round | allowed |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    missed = []
    for model, compiler in places:
        taken = [found[model, compiler] for found in rounds]
        imported, loaded, answered = (statistics.median(column) for column in zip(*taken, strict=True))
        both, limit = [load + answer for _, load, answer in taken], LIMITS.get(compiler)
        print(f"| {model} | {compiler} | {imported:.2f} s | {loaded:.3f} s | {answered:.3f} s | {statistics.median(both):.3f} s "
              f"| {max(both):.3f} s | {f'{limit} s' if limit else ''} |")
        if limit and statistics.median(both) > limit:
            missed.append(f"{model} {compiler}")
    if missed:
        sys.exit(f"over what is allowed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
