"""`compile(auto)` against every single backend, and all of them against eager fp32: batch 1, one thread.

    python benchmarks/auto.py --models resnet18-64 minilm --schemes fp32 bf16 w8a8 >> benchmarks/compilers.md

A cell lowers the model by `compile(auto)` and by each compiler that takes it, then measures all of them and the eager fp32
module in the same rounds of fresh processes. What auto chose is compared with the best single backend of these rounds, which
auto has not seen, of those that are numerically right; the others have a star. A cell is printed as soon as it is known, and
kept in a file of JSON lines, so that a killed run goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # a worker imports this file by its path
import zoo

from thrifty.measure.sides import ArtifactSide, CallableSide, Side
from thrifty.measure.timing import compare

MODELS = ("mlp", "resnet18-64", "resnet18-224", "mobilenetv3", "vit", "minilm")
SCHEMES = ("fp32", "bf16", "w8a8", "w8a8, rest=bf16")


def __getattr__(name: str) -> Callable[[], Callable[[list[np.ndarray]], Sequence[np.ndarray]]]:
    """``eager_MODEL``: the eager fp32 module, for the process that times it."""
    if not name.startswith("eager_"):
        raise AttributeError(name)
    import torch

    net = zoo.entries()[name.removeprefix("eager_")].make()

    def call(arrays: list[np.ndarray]) -> Sequence[np.ndarray]:
        with torch.inference_mode():
            found: np.ndarray = net(*map(torch.from_numpy, arrays)).numpy()
        return [found]

    return lambda: call


def cell(model: str, scheme: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Everything of one model in one precision."""
    import torch

    from thrifty import Auto, Context
    from thrifty.artifacts import artifact
    from thrifty.compilers.auto import LAST_RESORT, candidates
    from thrifty.compilers.parity import ParityError, as_tuple, check_parity, check_random
    from thrifty.recipes.recipe import Recipe
    from thrifty.recipes.registry import method_class

    entry = zoo.entries()[model]
    net, example = entry.make(), entry.example(1, 0)
    if scheme != "fp32":
        (quantize,) = Recipe.parse(f"quantize({scheme})")
        net = quantize(net, [(entry.example(8, seed), None) for seed in range(1, 9)])  # type: ignore[operator]
    context = Context(example, lambda: iter([entry.example(1, seed) for seed in range(20, 24)]))
    names = [name for name in candidates(net) if name != LAST_RESORT]
    took: dict[str, float] = {}
    wrong: list[str] = []

    def module(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return as_tuple(net(*inputs))

    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        sides: dict[str, Side] = {"eager": CallableSide(f"{Path(__file__).resolve()}:eager_{model}")}
        for name in ("auto", *names):
            where, began = Path(place) / name, time.perf_counter()
            where.mkdir()
            compiler: Any = Auto(seconds=seconds) if name == "auto" else method_class(name)()
            try:
                lowered = compiler.lower(net, example, where, context)
            except Exception as error:  # it stands in the table
                took[name] = float("nan")
                print(f"{model}, {scheme}: {name}: {str(error)[:200]}", file=sys.stderr)
                continue
            artifact.write(where, lowered, {}, [x.numpy() for x in example], [net(*example).numpy()])
            took[name] = time.perf_counter() - began
            sides[name] = ArtifactSide(str(where), trust_native_code=True)
            try:
                with contextlib.closing(artifact.load(where, trust_native_code=True)) as engine:
                    check_parity(module, engine, context.calibration(), lowered.precision)
                    check_random(module, engine, example, context.shapes, lowered.precision)
            except ParityError as error:
                wrong.append(name)
                print(f"{model}, {scheme}: {name}: {error}", file=sys.stderr)
        chose = artifact.read(Path(place) / "auto")["engine"]
        done = compare(sides, "eager", [x.numpy() for x in example], rounds=rounds)
        singles = [name for name in sides if name not in ("eager", "auto", *wrong)]
        best = min(singles, key=lambda name: done.figures[name].p50)
        behind = done.ratio(best, "auto")
        return {
            "model": model, "scheme": scheme, "chose": chose, "best": best, "took": took,
            "wrong": wrong,
            "behind": [behind.value, behind.low, behind.high] if behind else None,
            "over_eager": {name: [ratio.value, ratio.low, ratio.high] for name, ratio in done.ratios.items() if ratio},
            "ms": {name: figures.p50 * 1e3 for name, figures in done.figures.items()},
        }


def interval(found: Sequence[float | None], digits: int = 2) -> str:
    value, low, high = found
    return f"{value:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if low is not None else "")


def row(found: dict[str, Any]) -> str:
    singles = "; ".join(f"{name}{'*' * (name in found['wrong'])} {interval(ratio)}"
                        for name, ratio in found["over_eager"].items() if name != "auto")
    return (f"| {found['model']} | {found['scheme']} | {found['ms']['eager']:.2f} ms | {found['chose']}, "
            f"{interval(found['over_eager']['auto'])} | {found['best']} | {interval(found['behind'], 3)} | {singles} | "
            f"{found['took']['auto']:.0f} s |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES[:3]))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=90.0, help="of compile(auto)")
    parser.add_argument("--kept", type=Path, default=Path("auto.jsonl"))
    arguments = parser.parse_args()
    lines = arguments.kept.read_text().splitlines() if arguments.kept.is_file() else []
    known = {(found["model"], found["scheme"]): found for found in map(json.loads, lines)}
    print("| model | scheme | eager fp32 | auto chose, over eager | best single | auto's time over the best's | singles over "
          "eager | auto took |\n| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for model, scheme in itertools.product(arguments.models, arguments.schemes):
        if (model, scheme) not in known:
            try:
                known[model, scheme] = cell(model, scheme, arguments.rounds, arguments.seconds)
            except Exception as error:  # the others go on
                print(f"| {model} | {scheme} | failed: {str(error)[:200]} |", flush=True)
                continue
            with arguments.kept.open("a") as file:
                file.write(json.dumps(known[model, scheme]) + "\n")
        print(row(known[model, scheme]), flush=True)


if __name__ == "__main__":
    main()
