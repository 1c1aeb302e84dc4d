"""Depth, width and low rank of one latency, distilled alike: what is left of `python-lm` and of `minilm`.

    python benchmarks/students.py ratios minilm --depth 4 --keep DIR    # widths and ranks that take as long as 4 layers
    python benchmarks/students.py distil minilm --depth 4 --lr 1e-4 3e-4 --keep DIR --device cuda
    python benchmarks/students.py table minilm --depth 4 --keep DIR

Latency is that of fp32 by ONNX Runtime, batch 1, one thread, against the whole model's in turns. Students of a workload start
from one trained model, see the same batches, and take as many steps; the rate is the best on validation of those that all were
given, seeds change the order of the data. Scores are on test, differences are paired, example by example.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from minilm_code import workload as minilm

from thrifty import AdamW, Bf16, Distill, Train, Workload, fit
from thrifty.measure.environment import environment, now
from thrifty.measure.statistics import paired_drop
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.transform import Transform
from thrifty.runs import clock
from thrifty.runs.context import make_context
from thrifty.target import Target
from thrifty.workloads.embedded.python_lm import workload as python_lm
from thrifty.workloads.quality import Scores

WORKLOADS = {"python-lm": python_lm, "minilm": minilm}
BLOCKS = {"python-lm": 4, "minilm": 6}
STEPS = {"python-lm": 1200, "minilm": 3000}
BATCH = {"python-lm": 16, "minilm": 128}
TEACHER = "python_lm.pt"
"""Under --keep: the weights that `shrinking.py train` leaves."""
EXAMPLES = 64


def whole(name: str, keep: Path) -> nn.Module:
    model = WORKLOADS[name].model()
    if name == "python-lm":
        model.load_state_dict(torch.load(keep / TEACHER, weights_only=True))
    return model.eval()


def kinds(name: str, depth: int, keep: Path) -> dict[str, str]:
    """{kind: transform} at one latency: what `ratios` found."""
    return {kind: text for kind, (text, _) in found(name, depth, keep).items()}


def found(name: str, depth: int, keep: Path) -> dict[str, tuple[str, float]]:
    """{kind: (transform, share of the whole model's latency)}."""
    path = keep / f"{name}-{depth}.json"
    return {kind: (text, part) for kind, (text, part) in json.loads(path.read_text()).items()} if path.exists() else {}


def smaller(name: str, model: nn.Module, text: str) -> nn.Module:
    """The model after a transform that is calibrated on validation."""
    (phase,) = Recipe.parse(text).phases
    assert isinstance(phase, Transform)
    context = make_context(WORKLOADS[name], Target(), 0, lambda event: None, examples=EXAMPLES)
    with torch.no_grad():
        return phase.build(copy.deepcopy(model), phase.plan(copy.deepcopy(model), context)).eval()


# -- ratios of one latency ----------------------------------------------------------------------------------------


def engine(model: nn.Module, inputs: tuple[Tensor, ...]) -> contextlib.AbstractContextManager[clock.Call]:
    """A call of the model's ONNX Runtime engine on one thread."""
    return clock.opened(copy.deepcopy(model), inputs, Target(), "onnxruntime")


def ratios(given: argparse.Namespace) -> None:
    """Width's and rank's ratios by the secant method, within 2% of the latency of a model that lacks whole blocks."""
    model, example = whole(given.workload, given.keep), WORKLOADS[given.workload].example(1)
    with engine(model, example) as dense:
        _ratios(given, model, example, dense)


def _ratios(given: argparse.Namespace, model: nn.Module, example: tuple[Tensor, ...], dense: clock.Call) -> None:
    total = sum(p.numel() for p in model.parameters())
    block = sum(p.numel() for p in _blocks(model)[0].parameters())
    known = found(given.workload, given.depth, given.keep)

    def tell(kind: str, text: str, part: float) -> None:
        print(f"{kind}: {text}: {part:.3f} of the whole model's latency", flush=True)
        known[kind] = (text, part)
        (given.keep / f"{given.workload}-{given.depth}.json").write_text(json.dumps(known))

    def timed(text: str) -> float:
        with engine(smaller(given.workload, model, text), example) as student:
            return clock.ratio(student, dense, Target())

    if "depth" not in known:
        text = f"prune(ratio={round((BLOCKS[given.workload] - given.depth) * block / total, 3)}, structure=blocks)"
        tell("depth", text, timed(text))
    wanted = known["depth"][1]
    for kind, form, most in (("width", "prune(ratio={:.3f}, structure=width)", 0.8), ("low rank", "low_rank(ratio={:.3f})", 0.4)):
        tried = [(0.0, 1.0)]
        ratio = (1 - wanted) * most
        for _ in range(0 if kind in known else 6):
            tried.append((ratio, timed(form.format(ratio))))
            tell(kind, form.format(ratio), tried[-1][1])
            if abs(tried[-1][1] / wanted - 1) < 0.02:
                break
            (a, at_a), (b, at_b) = sorted(tried, key=lambda pair: abs(pair[1] - wanted))[:2]
            ratio = min(max(a + (wanted - at_a) * (b - a) / (at_b - at_a), 0.01), most)
        if len(tried) > 1:
            ratio, part = min(tried[1:], key=lambda pair: abs(pair[1] - wanted))
            tell(kind, form.format(ratio), part)


def speed(given: argparse.Namespace) -> None:
    """How much faster than the eager whole smaller models in int8 are, whatever their weights."""
    model, example = whole(given.workload, given.keep), WORKLOADS[given.workload].example(1)

    for text in ["", *given.texts]:
        started = smaller(given.workload, model, text) if text else model
        for scheme in ("", "quantize(w8a8)"):
            named = " | ".join(filter(None, (text, scheme))) or "as it is"
            small = smaller(given.workload, started, scheme) if scheme else started
            with clock.opened(model, example, Target()) as eager, engine(small, example) as student:
                print(f"{named}, ONNX Runtime: {1 / clock.ratio(student, eager, Target()):.2f} times eager's speed", flush=True)


def _blocks(model: nn.Module) -> nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


# -- distillation -------------------------------------------------------------------------------------------------


def scores(workload: Workload, model: nn.Module, split: str, device: str) -> Scores:
    model = copy.deepcopy(model).to(device).eval()

    def predict(inputs: tuple[Tensor, ...]) -> Any:
        with torch.inference_mode():
            return model(*(x.to(device) for x in inputs)).cpu()

    return workload.quality(predict, getattr(workload, split))


def distilled(name: str, student: nn.Module, teacher: nn.Module, lr: float, seed: int, steps: int, device: str) -> nn.Module:
    workload = WORKLOADS[name]
    objective = Distill(temperature=1, weight=0.5) if workload.labelled else Distill("embedding", weight=1.0)
    assert workload.lessons is not None
    methods = [AdamW(lr=lr), objective, *([Bf16()] if device == "cuda" else [])]
    return fit(student, methods, *workload.lessons, settings=Train(steps=steps, batch_size=BATCH[name], evaluations=0), seed=seed,
               device=device, teachers=lambda text: teacher).model


def distil(given: argparse.Namespace) -> None:
    workload, teacher = WORKLOADS[given.workload], whole(given.workload, given.keep)
    torch.set_float32_matmul_precision("high")  # the teacher's products, on a GPU
    for split in ("validation", "test"):
        keep(given.keep / f"{given.workload}-whole-{split}.npz", scores(workload, teacher, split, given.device))
    texts = kinds(given.workload, given.depth, given.keep)
    for kind in given.kinds or texts:
        started = smaller(given.workload, teacher, texts[kind])
        keep(named(given, kind, "before", 0, "test"), scores(workload, started, "test", given.device))
        for lr in given.lr:
            _trained(given, kind, started, teacher, lr, 0)
        for seed in range(1, given.seeds):
            _trained(given, kind, started, teacher, chosen_rate(given, kind), seed)


def _trained(given: argparse.Namespace, kind: str, started: nn.Module, teacher: nn.Module, lr: float, seed: int) -> None:
    """Train and judge one student, unless it was."""
    if named(given, kind, lr, seed, "test").exists():
        return
    workload, began = WORKLOADS[given.workload], time.perf_counter()
    steps = given.steps or STEPS[given.workload]
    done = distilled(given.workload, copy.deepcopy(started), teacher, lr, seed, steps, given.device)
    seconds = time.perf_counter() - began
    found = {split: scores(workload, done, split, given.device) for split in ("validation", "test")}
    for split, each in found.items():
        keep(named(given, kind, lr, seed, split), each)
    if given.save:
        torch.save({name: x.half() for name, x in done.state_dict().items()},
                   named(given, kind, lr, seed, "weights").with_suffix(".pt"))
    print(f"{given.workload}, {given.depth} layers' latency, {kind}, lr {lr:g}, seed {seed}: {found['validation'].value:.4f} on "
          f"validation, {found['test'].value:.4f} on test, {seconds:.0f} s", flush=True)


def chosen_rate(given: argparse.Namespace, kind: str) -> float:
    """The rate that is best on validation with seed 0."""
    sign = 1 if WORKLOADS[given.workload].quality.higher_is_better else -1
    return max(given.lr, key=lambda lr: sign * kept(named(given, kind, lr, 0, "validation")).value)


def named(given: argparse.Namespace, kind: str, lr: float | str, seed: int, split: str) -> Path:
    return given.keep / f"{given.workload}-{given.depth}-{kind.replace(' ', '_')}-{lr}-{seed}-{split}.npz"


def keep(path: Path, found: Scores) -> None:
    np.savez(path, numerator=found.numerator, denominator=found.denominator, cluster=found.cluster)


def kept(path: Path) -> Scores:
    with np.load(path) as found:
        return Scores(found["numerator"], found["denominator"], found["cluster"])


# -- the table ----------------------------------------------------------------------------------------------------


def table(given: argparse.Namespace) -> None:
    quality = WORKLOADS[given.workload].quality
    reference = kept(given.keep / f"{given.workload}-whole-test.npz")
    print(f"| kind | transform | {quality.name} before | distilled, by seed | drop from {reference.value:.4f} | against depth |")
    print("| --- | --- | --- | --- | --- | --- |")
    means: dict[str, Scores] = {}
    for kind, text in kinds(given.workload, given.depth, given.keep).items():
        lr = chosen_rate(given, kind)
        seeds = [kept(named(given, kind, lr, seed, "test")) for seed in range(given.seeds)]
        means[kind] = Scores(np.mean([each.numerator for each in seeds], axis=0), seeds[0].denominator, seeds[0].cluster)
        against = "" if kind == "depth" else _drop(means["depth"], means[kind], quality.higher_is_better)
        print(f"| {kind} | `{text}`, lr {lr:g} | {kept(named(given, kind, 'before', 0, 'test')).value:.4f} | "
              f"{', '.join(f'{each.value:.4f}' for each in seeds)} | {_drop(reference, means[kind], quality.higher_is_better)} | "
              f"{against} |", flush=True)


def _drop(reference: Scores, found: Scores, higher: bool) -> str:
    """Paired on the examples."""
    drop = paired_drop(reference, found, higher_is_better=higher)
    return f"{drop.value:.4f} [{drop.low:.4f}, {drop.high:.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ratios", "speed", "distil", "table"])
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("--texts", nargs="*", default=[], help="transforms whose speed is asked for")
    parser.add_argument("--depth", type=int, default=0, help="layers that the reference of latency keeps")
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--kinds", nargs="*", help="depth, width, low rank; all by default")
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-4])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="weights too, in 16 bits")
    given = parser.parse_args()
    given.keep.mkdir(exist_ok=True, parents=True)
    torch.set_num_threads(given.threads)
    print(f"{now()}, {environment()['cpu']}, torch {torch.__version__}", flush=True)
    {"ratios": ratios, "speed": speed, "distil": distil, "table": table}[given.what](given)


if __name__ == "__main__":
    main()
