"""Smaller models measured: masks, blocks, widths and factors of `python-lm`; channels beside torch-pruning on a ResNet.

    python benchmarks/shrinking.py train                 # the reference, kept in --place
    python benchmarks/shrinking.py masks low_rank        # bits per byte on validation, before any recovery
    python benchmarks/shrinking.py peer                  # torch-pruning and prune on the same net and ratio
    python benchmarks/shrinking.py speed                 # eager latency of the smaller models against the dense one
    python benchmarks/shrinking.py digits                # pruned, distilled, in int8: three seeds, scored on test
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.benchmark import Timer

from thrifty.measure.environment import environment, now
from thrifty.measure.student import student_quantile
from thrifty.posttraining.elements import parameters
from thrifty.posttraining.pruning.zeros import zero_share
from thrifty.recipes.phases import Train
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.transform import Transform
from thrifty.report.progress import Progress
from thrifty.runs.context import make_context, score, training_setup
from thrifty.runs.opening import open_study
from thrifty.runs.preflight import resolve
from thrifty.runs.runner import Runner
from thrifty.target import Target
from thrifty.training.loop import train
from thrifty.workloads.embedded.python_lm import LanguageModel, workload

EXAMPLES = 64
"""Windows that calibrate."""
MASKS = [f"prune(criterion={criterion}, structure={structure})" for structure in ("unstructured", '"2:4"')
         for criterion in ("magnitude", "wanda", "sparsegpt")]
FACTORS = [f"low_rank(ratio=0.2{more})" for more in (
    "", ", ranks=loss", ", whiten=outputs, ranks=loss", ", whiten=fisher", ", whiten=False")]
SMALLER = ["prune(ratio=0.2)", "prune(ratio=0.2, criterion=activation)", "prune(ratio=0.2, criterion=taylor)",
           "prune(ratio=0.2, structure=heads)", "prune(ratio=0.2, structure=width)", "prune(ratio=0.2, structure=blocks)"]

DIGITS = ("train(adamw(lr=0.003), epochs=3) | prune(ratio=0.7) | train(distill, adamw(lr=0.003), epochs=4) | quantize(w8a8) | "
          "compile(onnxruntime)")


def transform(text: str) -> Transform:
    (phase,) = Recipe.parse(text).phases
    assert isinstance(phase, Transform)
    return phase


def apply(model: nn.Module, text: str) -> tuple[nn.Module, float]:
    """(the model after a transform, seconds of its plan)."""
    method, context = transform(text), make_context(workload, Target(), 0, lambda event: None, examples=EXAMPLES)
    began = time.perf_counter()
    with torch.no_grad():
        plan = method.plan(model, context)
        return method.build(copy.deepcopy(model), plan).eval(), time.perf_counter() - began


def bits(model: nn.Module) -> float:
    return -score(workload, model)


def reference(place: Path) -> nn.Module:
    model = LanguageModel()
    model.load_state_dict(torch.load(place / "python_lm.pt", weights_only=True))
    return model.eval()


def fitted(model: nn.Module, text: str, device: str) -> nn.Module:
    (phase,) = Recipe.parse(text).phases
    assert isinstance(phase, Train)
    torch.manual_seed(0)
    return train(training_setup(workload, phase, 0, device, lambda recipe: nn.Identity()), model).model.cpu()


def table(model: nn.Module, texts: Iterable[str]) -> None:
    dense, total = bits(model), parameters(model)
    print("\n| recipe after the reference | parameters | zeros | bits per byte | of dense | plan |\n"
          "| --- | --- | --- | --- | --- | --- |")
    print(f"| | 1.00x | 0 | {dense:.3f} | 1.00x | |", flush=True)
    for text in texts:
        try:
            smaller, seconds = apply(model, text)
        except Exception as error:
            print(f"| `{text}` | {type(error).__name__}: {error} | | | | |", flush=True)
            continue
        found = bits(smaller)
        print(f"| `{text}` | {parameters(smaller) / total:.3f}x | {zero_share(smaller):.3f} | {found:.3f} | "
              f"{found / dense:.3f}x | {seconds:.0f} s |", flush=True)


def ratio(a: nn.Module, b: nn.Module, inputs: tuple[Any, ...], rounds: int = 7) -> tuple[float, float, float]:
    """a's seconds over b's, and a 95% interval: log ratios of interleaved blocks A B B A, one thread, one process."""
    timers = [Timer("m(*x)", globals={"m": m, "x": inputs}, num_threads=1) for m in (a, b)]
    logs = []
    with torch.no_grad():
        for timer in timers:
            timer.timeit(3)
        for _ in range(rounds):
            first = [timers[i].timeit(4).mean for i in (0, 1, 1, 0)]
            logs.append(np.log((first[0] + first[3]) / (first[1] + first[2])))
    mean, half = float(np.mean(logs)), student_quantile(0.975, rounds - 1) * float(np.std(logs, ddof=1)) / rounds**0.5
    return float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half))


def speed(model: nn.Module, texts: Iterable[str]) -> None:
    print("\n| recipe after the reference | parameters | eager, one window: faster than dense [low, high] |\n| --- | --- | --- |")
    for text in ["", *texts]:
        smaller = apply(model, text)[0] if text else copy.deepcopy(model)
        value, low, high = ratio(model, smaller, workload.example(1))
        print(f"| {f'`{text}`' if text else 'dense against dense'} | {parameters(smaller) / parameters(model):.3f}x | "
              f"{value:.2f}x [{low:.2f}, {high:.2f}] |", flush=True)


# -- beside torch-pruning -------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Sequential(nn.Conv2d(i, width, 3, s, 1, bias=False), nn.BatchNorm2d(width))
                                   for i, s in ((inputs, stride), (width, 1)))
        self.shortcut = nn.Identity() if stride == 1 else nn.Sequential(
            nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


def resnet18() -> nn.Module:
    """ResNet-18's widths and depths, for 64x64 images."""
    torch.manual_seed(0)
    blocks = [Block(i, w, s) for i, w, s in ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2),
                                             (256, 256, 1), (256, 512, 2), (512, 512, 1))]
    return nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), *blocks,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)).eval()


def peer() -> None:
    """Both told to remove half of the parameters by L2 magnitude, widths in multiples of 8."""
    import torch_pruning as tp

    from thrifty import Prune

    model, x = resnet18(), torch.randn(1, 3, 64, 64)
    began = time.perf_counter()
    ours = Prune(ratio=0.5)(model, [x])
    ours_seconds = time.perf_counter() - began
    theirs = copy.deepcopy(model)
    began = time.perf_counter()
    tp.pruner.MagnitudePruner(theirs, x, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=0.5, round_to=8,
                              ignored_layers=[theirs[-1]]).step()
    theirs_seconds = time.perf_counter() - began
    half = copy.deepcopy(model)  # the ratio that its documentation gives for half of the parameters
    tp.pruner.MagnitudePruner(half, x, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=1 - 0.5**0.5,
                              round_to=8, ignored_layers=[half[-1]]).step()
    print("\n| ResNet-18 at 64x64, half of the parameters asked for | parameters | faster than dense, eager | plan |\n"
          "| --- | --- | --- | --- |")
    for name, found, seconds in (("`prune(ratio=0.5)`", ours, ours_seconds),
                                 ("torch-pruning, ratio 0.5", theirs, theirs_seconds),
                                 ("torch-pruning, ratio 1 - sqrt(0.5)", half, theirs_seconds)):
        value, low, high = ratio(model, found.eval(), (x,))
        left = parameters(found) / parameters(model)
        print(f"| {name} | {left:.3f}x | {value:.2f}x [{low:.2f}, {high:.2f}] | {seconds:.1f} s |", flush=True)


def digits(place: Path, texts: Iterable[str], seeds: int = 3) -> None:
    """Each recipe with several seeds, five pairs of processes each; a study that is there goes on."""
    definition = resolve("digits")
    with open_study(place / "digits", definition, Target()) as (store, _), Progress() as progress:
        for text in texts:
            for seed in range(seeds):
                found = Runner(definition, store, seed=seed, listener=progress.hear).run(Recipe.parse(text), pairs=5, test=True)
                assert found.inference is not None and found.quality is not None and found.test is not None, found.error
                speed, drops = found.inference.speedup, [figure.drop for figure in (found.quality, found.test)]
                lost = " | ".join(f"{100 * d.value:.2f} [{100 * d.low:.2f}, {100 * d.high:.2f}]" for d in drops)
                print(f"| `{text}` | {seed} | {speed.value:.2f}x [{speed.low:.2f}, {speed.high:.2f}] | {lost} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["train", "masks", "low_rank", "smaller", "recovery", "peer", "speed",
                                                     "digits"])
    parser.add_argument("--place", type=Path, default=Path("study"))
    parser.add_argument("--texts", nargs="*", default=[])
    parser.add_argument("--recovery", default="train(adamw(lr=5e-4), epochs=1)")
    parser.add_argument("--reference", default=workload.reference, help="of `train`")
    parser.add_argument("--device", default="cpu", help="that trains")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.place.mkdir(exist_ok=True, parents=True)
    torch.set_num_threads(arguments.threads)
    print(f"{now()}, {environment()['cpu']}, {environment()['cores']} cores, torch {torch.__version__}", flush=True)
    for what in arguments.what:
        match what:
            case "train":
                torch.manual_seed(0)
                model = fitted(LanguageModel(), arguments.reference, arguments.device)
                torch.save(model.state_dict(), arguments.place / "python_lm.pt")
            case "peer":
                peer()
            case "speed":
                speed(reference(arguments.place), arguments.texts or ["low_rank(ratio=0.2, ranks=loss)", "prune(ratio=0.2)",
                                                                      "prune(ratio=0.2, structure=blocks)"])
            case "digits":
                digits(arguments.place, arguments.texts or [DIGITS])
            case "recovery":
                dense = reference(arguments.place)
                before = bits(dense)
                for text in ["", *arguments.texts]:
                    smaller = apply(dense, text)[0] if text else copy.deepcopy(dense)
                    smaller = fitted(smaller, arguments.recovery, arguments.device)
                    found = bits(smaller)
                    print(f"{text or 'dense'} | {arguments.recovery}: {found:.3f} bits per byte, {found / before:.3f}x dense",
                          flush=True)
            case _:
                table(reference(arguments.place), arguments.texts or {"masks": MASKS, "low_rank": FACTORS,
                                                                      "smaller": SMALLER}[what])


if __name__ == "__main__":
    main()
