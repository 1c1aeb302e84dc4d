"""Engines on a GPU: Inductor with CUDA graphs and XLA's carried program beside eager bf16.

    python benchmarks/gpu_engines.py export programs/          # anywhere: StableHLO for CUDA, without weights
    python benchmarks/gpu_engines.py measure programs/         # on the GPU, which needs jax but not torchax

Shapes of ResNet-50 (224x224), BERT-base (128 tokens) and GPT-2 (256 tokens, all logits), random weights in bf16, equal wherever
they are made. Batch 1: interleaved fresh processes, an interval over them. Batch 32: one process, blocks A B B A.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from thrifty.artifacts import artifact
from thrifty.artifacts.lowered import Lowered, TensorSpec
from thrifty.compilers.xla import FILES, Xla
from thrifty.engines.parity import relative_error
from thrifty.posttraining.quantize import Quantize
from thrifty.recipes.context import Context
from thrifty.target import Target
from thrifty.workloads.quality import Accuracy
from thrifty.workloads.workload import Workload

BATCH = 32
NAMES = ("resnet50", "bert_base", "gpt2")


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skip = nn.Identity() if inputs == outputs and stride == 1 else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(depth):
            layers.append(Bottleneck(inputs, width, stride if i == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


class Only(nn.Module):
    """One tensor of what a model of transformers gives."""

    def __init__(self, body: nn.Module, field: str) -> None:
        super().__init__()
        self.body, self.field = body, field

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = getattr(self.body(input_ids=ids), self.field)
        return found


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return Only(BertModel(BertConfig(), add_pooling_layer=False), "last_hidden_state")


def gpt() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return Only(GPT2LMHeadModel(GPT2Config(use_cache=False)), "logits")


def example(name: str, n: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n)
    if name == "resnet50":
        return (torch.randn(n, 3, 224, 224, generator=generator),)
    return (torch.randint(0, 30000, (n, 128 if name == "bert_base" else 256), generator=generator),)


def half(name: str) -> nn.Module:
    """The model in bf16, as `quantize(bf16)` makes it."""
    torch.manual_seed(0)
    model = {"resnet50": resnet, "bert_base": bert, "gpt2": gpt}[name]().eval()
    made: nn.Module = Quantize("bf16")(model, [example(name, 1)[0]])
    return made.eval().requires_grad_(False)


def _workload(name: str) -> Workload:
    few = TensorDataset(example(name, 2)[0], torch.tensor([0, 1]))
    return Workload(name=name, model=functools.partial(half, name), train=None, validation=few, test=few, loss=None,
                    quality=Accuracy(), example=functools.partial(example, name), reference="")


resnet50, bert_base, gpt2 = map(_workload, NAMES)  # for the processes that hold the eager module


# -- the carried program ----------------------------------------------------------------------------------------


def export(directory: Path) -> None:
    """Write programs, and for each of their weights its name in the model; what has none is written too."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, n in itertools.product(NAMES, (1, BATCH)):
        model, inputs = half(name), example(name, n)
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch)
            record = Xla().lower(model, inputs, place, Context(inputs, lambda: iter(())))
            (place / FILES[0]).rename(directory / f"{name}-{n}.stablehlo")
            weights = load_file(place / FILES[1])
        names = [_name(weights[str(i)], model.state_dict()) for i in range(len(weights))]
        save_file({str(i): weights[str(i)] for i, known in enumerate(names) if known is None},
                  directory / f"{name}-{n}.safetensors")
        told = {"names": names, "inputs": [dataclasses.asdict(x) for x in record.inputs],
                "outputs": [dataclasses.asdict(x) for x in record.outputs]}
        (directory / f"{name}-{n}.json").write_text(json.dumps(told))
        print(f"{name}, batch {n}: {(directory / f'{name}-{n}.stablehlo').stat().st_size:,} bytes")


def _name(weight: Tensor, state: Mapping[str, Tensor]) -> str | None:
    return next((name for name, x in state.items()
                 if x.shape == weight.shape and x.dtype == weight.dtype and torch.equal(x, weight)), None)


def carried(name: str, n: int, programs: Path, place: Path, model: nn.Module, outputs: list[Tensor]) -> None:
    """An artifact of a carried program, its weights made here."""
    told = json.loads((programs / f"{name}-{n}.json").read_text())
    shutil.copy(programs / f"{name}-{n}.stablehlo", place / FILES[0])
    loose, state = load_file(programs / f"{name}-{n}.safetensors"), model.state_dict()
    save_file({str(i): (loose[str(i)] if known is None else state[known]).contiguous().clone()
               for i, known in enumerate(told["names"])}, place / FILES[1])
    inputs, outs = (tuple(TensorSpec(**{**x, "shape": tuple(x["shape"])}) for x in told[kind]) for kind in ("inputs", "outputs"))
    record = Lowered(engine="xla", files=FILES, inputs=inputs, outputs=outs, portable=True, native=False, needs=("jax",),
                     precision="bf16")
    artifact.write(place, record, {}, [x.numpy() for x in example(name, n)], [x.numpy() for x in outputs])


# -- measuring --------------------------------------------------------------------------------------------------


@contextmanager
def artifacts(name: str, n: int, programs: Path, device: str) -> Iterator[dict[str, Path]]:
    """{engine: artifact} of those that open and agree with eager."""
    from thrifty.compilers.auto import Auto

    model, inputs = half(name), example(name, n)
    with torch.no_grad():
        outputs = [model.to(device)(*(x.to(device) for x in inputs)).float().cpu()]
        model.to("cpu")
    with tempfile.TemporaryDirectory() as place:
        found = {}
        for engine in ("auto", "xla"):
            began, where = time.perf_counter(), Path(place) / engine
            where.mkdir()
            try:
                if engine == "auto":
                    record = Auto(seconds=120.0).lower(model, inputs, where, Context(inputs, lambda: iter(()),
                                                                                   target=Target(device)))
                    artifact.write(where, record, {}, [x.numpy() for x in inputs], [x.numpy() for x in outputs])
                else:
                    carried(name, n, programs, where, model, outputs)
                opened = artifact.load(where, device=device, trust_native_code=True)
                error = relative_error(outputs[0].numpy(), opened(*inputs).numpy())
                print(f"{name}, batch {n}: {engine} ({artifact.read(where)['engine']}) ready after "
                      f"{time.perf_counter() - began:.0f} s, relative error {error:.2g}", flush=True)
                if error < 0.05:
                    found[engine] = where
                opened.close()
            except Exception as error:  # it stands in the page with its error
                print(f"{name}, batch {n}: {engine} failed: {type(error).__name__}: {str(error)[:600]}", flush=True)
        yield found


def latency(name: str, programs: Path, device: str, rounds: int) -> None:
    from thrifty.measure.sides import ArtifactSide, ModuleSide, Side
    from thrifty.measure.timing import compare

    with artifacts(name, 1, programs, device) as found:
        sides: dict[str, Side] = {"eager bf16": ModuleSide(f"{Path(__file__).resolve()}:{name}")}
        sides |= {engine: ArtifactSide(str(path), trust_native_code=True) for engine, path in found.items()}
        done = compare(sides, "eager bf16", [x.numpy() for x in example(name, 1)], device=device, rounds=rounds)
        for side in sides:
            ratio = done.ratios.get(side)
            interval = f"{ratio.value:.2f}x [{ratio.low or 0:.2f}, {ratio.high or 0:.2f}]" if ratio else "1"
            print(f"| {name} | {side} | {done.figures[side].p50 * 1e3:.3f} ms | {interval} | "
                  f"first answer {done.figures[side].first_inference_seconds:.1f} s |", flush=True)


def throughput(name: str, programs: Path, device: str) -> None:
    with artifacts(name, BATCH, programs, device) as found:
        inputs = example(name, BATCH)
        calls: dict[str, Callable[[], Any]] = {}
        model, moved = half(name).to(device), tuple(x.to(device) for x in inputs)

        def eager() -> None:
            with torch.no_grad():
                model(*moved)
            if device == "cuda":
                torch.cuda.synchronize()

        calls["eager bf16"] = eager
        for engine, path in found.items():
            opened = artifact.open_verified(path, device=device, trust_native_code=True)
            calls[engine] = functools.partial(opened.run, opened.native([x.numpy() for x in inputs]))
        blocks: dict[str, list[float]] = {side: [] for side in calls}
        for _ in range(4):
            for side in [*calls, *list(calls)[::-1]]:
                calls[side]()
                began = time.perf_counter()
                for _ in range(10):
                    calls[side]()
                blocks[side].append((time.perf_counter() - began) / 10)
        base = statistics.median(blocks["eager bf16"])
        for side, seconds in blocks.items():
            middle = statistics.median(seconds)
            print(f"| {name} | {side} | {BATCH / middle:,.0f} a second | {base / middle:.2f}x |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("export", "measure"))
    parser.add_argument("programs", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=list(NAMES))
    parser.add_argument("--skip-latency", action="store_true")
    parser.add_argument("--skip-throughput", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "export":
        export(arguments.programs)
        return
    if arguments.device == "cuda":
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", file=sys.stderr)
        # Every fresh process would compile XLA's program anew, half a minute of it.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="xla-"))
    for name in () if arguments.skip_latency else arguments.models:
        latency(name, arguments.programs, arguments.device, arguments.rounds)
    for name in () if arguments.skip_throughput else arguments.models:
        throughput(name, arguments.programs, arguments.device)


if __name__ == "__main__":
    main()
