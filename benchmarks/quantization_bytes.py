"""Bytes of quantized artifacts, and the memory of a process that serves them, against fp32.

    python benchmarks/quantization_bytes.py minilm --store STORE

Every engine answers requests of one example in fresh processes. Memory is the most that such a process held, less what it held
with the runtime imported and nothing opened. STORE keeps the artifacts.
"""

from __future__ import annotations

import argparse
import copy
import functools
from pathlib import Path

import torch
from peer_engines import COMPILERS, once

from thrifty.artifacts import artifact
from thrifty.measure.environment import environment, now
from thrifty.measure.sides import ArtifactSide, Side
from thrifty.measure.timing import compare
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.registry import method_class
from thrifty.recipes.transform import Transform
from thrifty.runs.context import make_context
from thrifty.target import Target
from thrifty.workloads.loading import load_workload
from thrifty.workloads.workload import Workload

SCHEMES = {"fp32": "", "w8a8": "quantize(w8a8)", "w8a16": "quantize(w8a16, algorithm=rtn)",
           "w4a16": "quantize(w4a16, algorithm=rtn)"}


def make(workload: Workload, recipe: str, compiler: str, context: Context, out: Path) -> None:
    with torch.no_grad():
        model = workload.model().eval()
        for transform in Recipe.parse(recipe) if recipe else ():
            assert isinstance(transform, Transform)
            model = transform.build(copy.deepcopy(model), transform.plan(model, context))
        lower = method_class(compiler)()
        assert isinstance(lower, Compiler)
        record = lower.lower(model, context.example, out, context)
        artifact.write(out, record, {}, [x.numpy() for x in context.example], [model(*context.example).numpy()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", help="of a model that comes trained")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compilers", nargs="+", default=list(COMPILERS), choices=COMPILERS)
    given = parser.parse_args()
    workload = load_workload(given.workload)
    context = make_context(workload, Target(threads=1), 0, lambda event: None)
    print(f"{now()}, {environment()['cpu']}, torch {torch.__version__}; {workload.name}, batch 1, one thread, "
          f"{given.rounds} processes an engine\n\n| engine | scheme | bytes, MB | of fp32's | memory, MB | of fp32's | ms |\n"
          "| --- | --- | --- | --- | --- | --- | --- |")
    for compiler in given.compilers:
        places = {scheme: once(given.store / f"{scheme}-{compiler}",
                               functools.partial(make, workload, recipe, compiler, context))
                  for scheme, recipe in SCHEMES.items()}
        sides: dict[str, Side] = {scheme: ArtifactSide(str(place), trust_native_code=True) for scheme, place in places.items()}
        figures = compare(sides, "fp32", [x.numpy() for x in context.example], rounds=given.rounds).figures
        size = {scheme: artifact.size(place) for scheme, place in places.items()}
        memory = {scheme: float(figures[scheme].peak_memory_bytes or 0) for scheme in places}
        for scheme in places:
            print(f"| {compiler} | {scheme} | {size[scheme] / 1e6:.1f} | {size[scheme] / size['fp32']:.2f} | "
                  f"{memory[scheme] / 1e6:.1f} | {memory[scheme] / memory['fp32']:.2f} | "
                  f"{figures[scheme].p50 * 1e3:.2f} |", flush=True)


if __name__ == "__main__":
    main()
