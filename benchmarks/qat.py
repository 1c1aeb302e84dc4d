"""What quantization-aware training gives back of what rounding after training takes, against fp32 trained equally long.

    python benchmarks/qat.py                     # a narrow MobileNetV3-shaped net on digits, w4a8, five seeds
    python benchmarks/qat.py --extra ", estimator=ste"
    python benchmarks/qat.py python-lm --scheme w3a16 --lr 5e-4 --length steps=150 --seeds 3

For every seed four recipes are run, each in processes of its own, kept in the cache and scored on test:

    reference                                            the model, trained
    reference | train(adamw(lr), ...)                    fp32, trained on: the control
    reference | train(adamw(lr), ...) | quantize(w4a8)   the control, rounded after training
    reference | train(qat(w4a8), adamw(lr), ...)         trained on with rounding, as long as the control

What rounding takes is control - rounded; what training with it gives back is (qat - rounded) / (control - rounded), for
each seed and of the means. A share of a loss that is no loss means nothing: it is left out where the 95% interval of the
loss over seeds holds zero.

The net has a quarter of MobileNetV3-Small's channels in its first eight blocks (17 thousand parameters): wide nets learn these
digits with so much to spare that four bits cost them nothing. Its test are the 1,000 test images of `digits`, each in nine
places (moved by up to two pixels each way, as in training), since a point of accuracy is ten images of 1,000.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from pathlib import Path

import torch
import zoo
from torch import nn
from torch.utils.data import TensorDataset

from thrifty.measure.environment import environment, now
from thrifty.measure.student import student_quantile
from thrifty.runs import checkpoint
from thrifty.runs.job import Job
from thrifty.runs.job import place as kept
from thrifty.runs.launcher import LocalLauncher
from thrifty.target import Target, cores
from thrifty.workloads.embedded.digits import SHIFT, shift, split_tensors
from thrifty.workloads.embedded.digits import workload as digits
from thrifty.workloads.fingerprint import fingerprint
from thrifty.workloads.loading import load_workload
from thrifty.workloads.workload import Workload

SHARE, BLOCKS = 0.25, 8


def narrow() -> nn.Module:
    """MobileNetV3-Small's shape for gray images: depthwise convolutions, squeeze and excitation, hard swishes."""
    def channels(count: int) -> int:
        return max(4, round(count * SHARE))

    inputs = channels(16)
    layers: list[nn.Module] = [zoo.normed(1, inputs, 3, 2, act=nn.Hardswish())]
    for size, hidden, outputs, excited, hard, stride in zoo.SMALL[:BLOCKS]:
        layers.append(zoo.Inverted(inputs, size, channels(hidden), channels(outputs), excited, hard, stride))
        inputs = channels(outputs)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def moved(split: str) -> TensorDataset:
    """The split's images, each in nine places."""
    images, labels = split_tensors(split)
    places = [(down, right) for down in (-SHIFT, 0, SHIFT) for right in (-SHIFT, 0, SHIFT)]
    return TensorDataset(torch.cat([torch.stack([shift(image, *place) for image in images]) for place in places]),
                         labels.repeat(len(places)))


workload = dataclasses.replace(digits, name="narrow-mobilenet", model=narrow, test=moved("test"),
                               reference="train(adamw(lr=0.005), epochs=5)")


def recipes(reference: str, scheme: str, lr: float, length: str, extra: str) -> dict[str, str]:
    on = f"train(adamw(lr={lr:g}), {length})"
    return {"reference": reference, "control": f"{reference} | {on}", "rounded": f"{reference} | {on} | quantize({scheme})",
            "qat": f"{reference} | train(qat({scheme}{extra}), adamw(lr={lr:g}), {length})"}


def run(found: Workload, place: str, recipe: str, seed: int) -> tuple[float, float]:
    """(quality on test, higher is better; seconds of its last training)."""
    job = Job(found.source, fingerprint(found), recipe, seed, Target(threads=cores()), lower=False)
    done = LocalLauncher().run(job)
    model = checkpoint.load_module(place, str(kept("checkpoints", done.checkpoint)))
    with torch.inference_mode():
        value = found.quality(lambda inputs: model(*inputs), found.test).value
    seconds = [charge.seconds for charge in done.charges if charge.kind == "training"][-1]
    return (value if found.quality.higher_is_better else -value), seconds


def spread(values: list[float]) -> float:
    """Half the 95% interval of a mean."""
    return student_quantile(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", nargs="?", default=f"{Path(__file__).resolve()}:workload")
    parser.add_argument("--scheme", default="w4a8")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--length", default="epochs=2", help="of the training on, as a recipe says it")
    parser.add_argument("--extra", default="", help="more of qat's hyperparameters: ', estimator=ste'")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    found = load_workload(arguments.workload)
    texts = recipes(found.reference, arguments.scheme, arguments.lr, arguments.length, arguments.extra)
    print(f"{now()}, {environment()['cpu']}, {cores()} cores, torch {torch.__version__}; {found.name}, "
          f"{found.quality.name} on test\n")
    for name, text in texts.items():
        print(f"- {name}: `{text}`")
    print(f"\n| seed | {' | '.join(texts)} | given back | seconds, control and qat |\n| --- |{' --- |' * (len(texts) + 2)}",
          flush=True)
    rows: list[dict[str, float]] = []
    for seed in range(arguments.seeds):
        results = {name: run(found, arguments.workload, text, seed) for name, text in texts.items()}
        row = {name: quality for name, (quality, _) in results.items()}
        rows.append(row)
        lost = row["control"] - row["rounded"]
        share = f"{(row['qat'] - row['rounded']) / lost:.0%}" if lost > 0 else "nothing was lost"
        print(f"| {seed} | {' | '.join(f'{abs(row[name]):.4f}' for name in texts)} | {share} | "
              f"{results['control'][1]:.0f}, {results['qat'][1]:.0f} |", flush=True)
    mean = {name: statistics.mean(row[name] for row in rows) for name in texts}
    losses = [row["control"] - row["rounded"] for row in rows]
    lost, half = statistics.mean(losses), spread(losses)
    print(f"\nRounding after training takes {lost:.4f} [{lost - half:.4f}, {lost + half:.4f}].")
    if lost - half > 0:
        print(f"Training with it gives back {(mean['qat'] - mean['rounded']) / lost:.0%} of that.")


if __name__ == "__main__":
    main()
