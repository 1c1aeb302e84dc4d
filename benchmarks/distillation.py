"""Students beside the same students trained alone: `digits` and the text of `python-lm`, three seeds, paired.

    python benchmarks/distillation.py digits [--teacher CHECKPOINT]
    python benchmarks/distillation.py text
    python benchmarks/distillation.py minilm --layers 0,1,3,5 --steps 200

All arms of a seed start from the same weights and see the same batches in the same order. A gain is a mean over seeds of
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


class Plain(nn.Module):
    """Two convolutions and a linear layer, no batch norms, no shortcuts: another architecture than its teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.Conv2d(8, 16, 5, stride=2, padding=2)
        self.head = nn.Linear(16 * 49, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.second(self.first(image).relu()).relu().flatten(1))


def judged(workload: Workload, model: nn.Module, split: str = "test") -> Scores:
    def predict(inputs: tuple[Tensor, ...]) -> Any:
        with torch.no_grad():
            return model.eval()(*inputs)

    return workload.quality(predict, getattr(workload, split))


def compared(workload: Workload, student: Callable[[], nn.Module], teacher: nn.Module, arms: Arms, settings: Train,
             seeds: int) -> None:
    """Train every arm from every seed, and print each beside the first."""
    scores: dict[str, list[Scores]] = {name: [] for name in arms}
    assert workload.train is not None and workload.loss is not None
    for seed in range(seeds):
        for name, methods in arms.items():
            torch.manual_seed(seed)
            model = student()
            done = fit(model, methods, workload.train, workload.loss, settings=settings, seed=seed,
                       batch_size=workload.batch_size, teachers=lambda text: teacher)
            scores[name].append(judged(workload, done.model))
            print(f"  seed {seed}, {name}: {scores[name][-1].value:.4f} ({done.seconds:.0f} s)", flush=True)
    first = next(iter(arms))
    print(f"| arm | {workload.quality.name} on test, seeds | gain over {first} |\n| --- | --- | --- |")
    for name, found in scores.items():
        values = ", ".join(f"{each.value:.4f}" for each in found)
        print(f"| {name} | {values} | {'' if name == first else interval(scores[first], found)} |", flush=True)


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
    rate = AdamW(lr=3e-3)
    print("a student of its teacher's kind, a tenth as wide")
    compared(workload, lambda: DigitsNet(stem=4, width=6), teacher, {
        "alone": (rate,), "logits, T 4": (rate, Distill(temperature=4, remember="outputs")),
    }, Train(epochs=2, evaluations=0), given.seeds)
    print("a student of another architecture")
    compared(workload, Plain, teacher, {
        "alone": (rate,), "logits, T 4": (rate, Distill(temperature=4, remember="outputs")),
        "logits and hidden states, weight 10": (rate, Distill(temperature=4, hidden={"second": "blocks.1"}, feature_weight=10.0)),
    }, Train(epochs=2, evaluations=0), given.seeds)


def text(given: argparse.Namespace) -> None:
    workload = load_workload("python-lm")
    assert workload.train is not None and workload.loss is not None
    torch.manual_seed(0)
    teacher = LanguageModel(width=192, layers=3, heads=3, hidden=768)
    done = fit(teacher, [AdamW(lr=3e-3)], workload.train, workload.loss, settings=Train(steps=given.teacher_steps, batch_size=4,
                                                                                        evaluations=0))
    print(f"teacher: {judged(workload, done.model).value:.4f} bits a byte after {done.seconds:.0f} s", flush=True)
    rate = AdamW(lr=3e-3)
    compared(workload, lambda: LanguageModel(width=96, layers=2, heads=2, hidden=384), done.model, {
        "alone": (rate,), "forward KL, T 1": (rate, Distill(temperature=1, weight=0.5)),
    }, Train(steps=given.steps, batch_size=4, evaluations=0), given.seeds)


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
    done = fit(student, [AdamW(lr=given.lr), Distill("embedding", weight=1.0)], *workload.lessons,
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
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--splits", default="validation,test")
    parser.add_argument("--whole", action="store_true", help="judge the whole encoder too")
    parser.add_argument("--out", default="minilm-student.pt")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    {"digits": digits, "text": text, "minilm": minilm}[given.what](given)


if __name__ == "__main__":
    main()
