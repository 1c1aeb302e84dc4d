"""Students beside the same students trained alone: `digits` and the text of `python-lm`, three seeds, paired.

    python benchmarks/distillation.py digits --epochs 6 --lr 3e-3 1e-2 [--teacher CHECKPOINT]
    python benchmarks/distillation.py text --steps 1200 --lr 1e-3 2e-3 4e-3 --device cuda
    python benchmarks/distillation.py minilm --layers 0,1,3,5 --steps 200

Each arm gets the same rates to choose from, on validation with a seed that nothing else is told of. All arms of a seed start from
the same weights and see the same batches in the same order. A gain is a mean over seeds of
differences on the same test examples; its interval is over examples (of text, over files), 95%, by 2,000 bootstrap draws.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thrifty import AdamW, Distill, Train, Workload, fit, load_workload
from thrifty.workloads.embedded.digits import DigitsNet
from thrifty.workloads.embedded.python_lm import LanguageModel
from thrifty.workloads.quality import Scores

Arms = Mapping[str, tuple[Any, ...]]
CHOOSING = 100
"""The seed that rates are chosen with."""


class Plain(nn.Module):
    """Two convolutions and a linear layer, no batch norms, no shortcuts: another architecture than its teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.Conv2d(8, 16, 5, stride=2, padding=2)
        self.head = nn.Linear(16 * 49, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.second(self.first(image).relu()).relu().flatten(1))


def judged(workload: Workload, model: nn.Module, split: str = "test", device: str = "cpu") -> Scores:
    model = model.to(device).eval()

    def predict(inputs: tuple[Tensor, ...]) -> Any:
        with torch.no_grad():
            return model(*(x.to(device) for x in inputs)).cpu()

    return workload.quality(predict, getattr(workload, split))


def compared(workload: Workload, student: Callable[[], nn.Module], teacher: nn.Module, arms: Arms, settings: Train,
             given: argparse.Namespace) -> None:
    """Choose each arm's rate, train it from every seed, and print each beside the first."""
    sign = 1 if workload.quality.higher_is_better else -1

    def trained(methods: tuple[Any, ...], lr: float, seed: int) -> nn.Module:
        assert workload.train is not None and workload.loss is not None
        torch.manual_seed(seed)
        return fit(student(), [AdamW(lr=lr), *methods], workload.train, workload.loss, settings=settings, seed=seed,
                   batch_size=workload.batch_size, device=given.device, teachers=lambda text: teacher).model

    scores: dict[str, list[Scores]] = {}
    rates: dict[str, float] = {}
    for name, methods in arms.items():
        tried = {lr: judged(workload, trained(methods, lr, CHOOSING), "validation", given.device).value for lr in given.lr}
        rates[name] = max(tried, key=lambda lr: sign * tried[lr])
        print(f"  {name}, on validation: {', '.join(f'{lr:g}: {value:.4f}' for lr, value in tried.items())}", flush=True)
        scores[name] = [judged(workload, trained(methods, rates[name], seed), device=given.device) for seed in range(given.seeds)]
    first = next(iter(arms))
    print(f"| arm, rate | {workload.quality.name} on test, seeds | gain over {first} |\n| --- | --- | --- |")
    for name, found in scores.items():
        values = ", ".join(f"{each.value:.4f}" for each in found)
        print(f"| {name}, {rates[name]:g} | {values} | {'' if name == first else interval(scores[first], found)} |", flush=True)


def interval(before: list[Scores], after: list[Scores]) -> str:
    """The mean gain (of bits a fall) with its interval, drawn over clusters of examples."""
    clusters = np.unique(before[0].cluster)
    members = [np.flatnonzero(before[0].cluster == cluster) for cluster in clusters]
    sums = [np.array([[scores.numerator[rows].sum() for rows in members] for scores in side]).mean(0) for side in (before, after)]
    weight = np.array([before[0].denominator[rows].sum() for rows in members])
    draws = np.random.default_rng(0).integers(len(clusters), size=(2000, len(clusters)))
    gains = ((sums[1] - sums[0])[draws].sum(1)) / weight[draws].sum(1)
    low, high = np.quantile(gains, [0.025, 0.975])
    return f"{(sums[1] - sums[0]).sum() / weight.sum():+.4f} [{low:+.4f}, {high:+.4f}]"


def digits(given: argparse.Namespace) -> None:
    workload = load_workload("digits")
    teacher = DigitsNet()
    if given.teacher:  # a checkpoint of the workload's reference
        from safetensors.torch import load_file

        teacher.load_state_dict(load_file(given.teacher))
    else:
        torch.manual_seed(0)
        assert workload.train is not None and workload.loss is not None
        fit(teacher, [AdamW(lr=3e-3)], workload.train, workload.loss, settings=Train(epochs=3))
    teacher.eval()
    print(f"teacher: {judged(workload, teacher).value:.4f}, {sum(p.numel() for p in teacher.parameters()):,} parameters")
    logits = {f"logits, T {t:g}, weight {w:g}": (Distill(temperature=t, weight=w, remember="outputs"),)
              for t in given.temperature for w in given.weight}
    settings = Train(epochs=given.epochs, evaluations=0)
    print("a student of its teacher's kind, a tenth as wide")
    compared(workload, lambda: DigitsNet(stem=4, width=6), teacher, {"alone": (), **logits}, settings, given)
    print("a student of another architecture")
    hidden = Distill(temperature=4, hidden={"second": "blocks.1"}, feature_weight=10.0)
    compared(workload, Plain, teacher, {"alone": (), **logits, "logits and hidden states, weight 10": (hidden,)}, settings, given)


def text(given: argparse.Namespace) -> None:
    workload = load_workload("python-lm")
    assert workload.train is not None and workload.loss is not None
    torch.manual_seed(0)
    done = fit(LanguageModel(), [AdamW(lr=2e-3)], workload.train, workload.loss, device=given.device,
               settings=Train(steps=given.teacher_steps, batch_size=16, evaluations=0))
    print(f"teacher: {judged(workload, done.model, device=given.device).value:.4f} bits a byte after {done.seconds:.0f} s",
          flush=True)
    logits = {f"forward KL, T {t:g}, weight {w:g}": (Distill(temperature=t, weight=w),)
              for t in given.temperature for w in given.weight}
    compared(workload, lambda: LanguageModel(width=96, layers=2, heads=2, hidden=384), done.model, {"alone": (), **logits},
             Train(steps=given.steps, batch_size=16, evaluations=0), given)


def minilm(given: argparse.Namespace) -> None:
    """Some layers of the encoder, distilled on unlabelled text alone; recall on validation and test beside the whole's."""
    workload = load_workload("minilm")
    teacher = workload.model().eval()
    student: Any = workload.model()
    kept = [int(layer) for layer in given.layers.split(",")]
    student.body.encoder.layer = nn.ModuleList(student.body.encoder.layer[i] for i in kept)
    student.body.config.num_hidden_layers = len(kept)
    assert workload.lessons is not None
    began = time.perf_counter()
    done = fit(student, [AdamW(lr=given.lr[0]), Distill("embedding", weight=1.0)], *workload.lessons,
               settings=Train(steps=given.steps, batch_size=32, evaluations=0), teachers=lambda text: teacher)
    torch.save(done.model.state_dict(), given.out)
    last = sum(loss for _, loss in done.history[-20:]) / 20
    print(f"{len(kept)} layers {kept}, {done.steps} steps in {time.perf_counter() - began:.0f} s, 1 - cosine at the end "
          f"{last:.4f}", flush=True)
    for split in given.splits.split(","):
        found = judged(workload, done.model, split)
        print(f"recall@10 on {split}: {found.value:.4f}", flush=True)
        if given.whole:
            whole = judged(workload, teacher, split)
            print(f"the whole model's: {whole.value:.4f}, gain {interval([whole], [found])}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["digits", "text", "minilm"])
    parser.add_argument("--teacher", type=Path, help="model.safetensors of the reference of digits; trained where left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teacher-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--layers", default="0,1,3,5")
    parser.add_argument("--lr", type=float, nargs="+", default=[4e-4])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--temperature", type=float, nargs="+", default=[4.0])
    parser.add_argument("--weight", type=float, nargs="+", default=[0.9])
    parser.add_argument("--device", default="cpu", help="that trains and judges digits and text")
    parser.add_argument("--splits", default="validation,test")
    parser.add_argument("--whole", action="store_true", help="judge the whole encoder too")
    parser.add_argument("--out", default="minilm-student.pt")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    {"digits": digits, "text": text, "minilm": minilm}[given.what](given)


if __name__ == "__main__":
    main()
