"""Quantization of weights alone: what each algorithm wins back of what rounding to nearest loses.

    python benchmarks/quantization.py weights --models python-lm minilm --schemes w4a16 w3a16 --kept weights.jsonl

`python-lm` is the workload's reference, trained where the cache does not have it; `minilm` comes trained. All algorithms
get the same calibration data, groups of 128, and the embeddings as they are. Quality is counted on test, or on validation,
from which `minilm`, having no training set, calibrates. A layer's output error is ||(W - W') X||^2 over that of rounding to
nearest, X being what the float model reads: on the calibration data, and on as many other examples of the same set.

A row is printed as soon as it is known, and kept in a file of JSON lines, so that a killed run goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thrifty import Quantize
from thrifty.measure.environment import environment, now
from thrifty.measure.statistics import paired_drop
from thrifty.numerics.grouped import output_error
from thrifty.numerics.lockstep import in_lockstep
from thrifty.numerics.modules import GroupedLinear
from thrifty.posttraining.quantization.reads import Reads
from thrifty.runs import checkpoint
from thrifty.runs.context import CALIBRATION_BATCH, CALIBRATION_EXAMPLES, calibration, make_context
from thrifty.runs.job import Job, place
from thrifty.runs.launcher import LocalLauncher
from thrifty.target import Target, cores
from thrifty.workloads.fingerprint import fingerprint
from thrifty.workloads.loading import load_workload
from thrifty.workloads.quality import Scores
from thrifty.workloads.workload import Workload

ALGORITHMS = ("rtn", "hqq", "awq", "gptq")
RESAMPLED = 4000
SEED = 0


def reference(workload: Workload) -> nn.Module:
    """The model as its reference leaves it; trained now where the cache does not have it."""
    job = Job(workload.source, fingerprint(workload), workload.reference, 0, Target(), lower=False)
    torch.manual_seed(0)
    return checkpoint.load(place("checkpoints", LocalLauncher().run(job).checkpoint), workload.model())[1].eval()


def scores(workload: Workload, model: nn.Module, split: str) -> Scores:
    with torch.inference_mode():
        return workload.quality(lambda inputs: model(*inputs), getattr(workload, split))


def closed(reference: Scores, rtn: Scores, trial: Scores) -> tuple[float, float, float] | None:
    """Share of the gap between the reference and rounding to nearest that a trial closes, with its 95% interval.

    1 - (q - q_ref) / (q_rtn - q_ref); percentiles over resampled clusters, which all three share. None where rounding to
    nearest loses nothing significant: there is no gap to close, and the ratio means nothing.
    """
    clusters, place = np.unique(reference.cluster, return_inverse=True)
    sums = np.stack([np.bincount(place, weights=part) for part in
                     (reference.numerator, rtn.numerator, trial.numerator, reference.denominator)])
    drawn = np.random.default_rng(0).multinomial(len(clusters), np.full(len(clusters), 1 / len(clusters)), RESAMPLED)
    base, plain, found = (drawn @ part / (drawn @ sums[3]) for part in sums[:3])
    if np.ptp(np.sign(np.percentile(plain - base, [2.5, 97.5]))) or not (plain - base).all():
        return None
    low, high = np.percentile(1 - (found - base) / (plain - base), [2.5, 97.5])
    return 1 - (trial.value - reference.value) / (rtn.value - reference.value), float(low), float(high)


def moments(model: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """{linear layer: X X^T of what it reads}."""
    found: dict[str, Tensor] = {}

    def visit(name: str, inputs: Any) -> list[str]:
        found[name] = Reads.of(name, inputs).moment
        return []

    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    in_lockstep(model, linears, batches, visit)
    return found


def errors(model: nn.Module, quantized: nn.Module, read: Mapping[str, Tensor]) -> dict[str, float]:
    """{layer: squared error of its outputs}."""
    found = {}
    for name, moment in read.items():
        layer = quantized.get_submodule(name)
        if isinstance(layer, GroupedLinear):
            other = layer.dequantized() if layer.smooth is None else layer.dequantized() / layer.smooth
            found[name] = output_error(model.get_submodule(name).get_parameter("weight").detach(), other, moment)
    return found


def weights(arguments: argparse.Namespace) -> None:
    """Every algorithm at every scheme, against rounding to nearest."""
    print(f"{now()}, {environment()['cpu']}, {environment()['cores']} cores, torch {torch.__version__}\n")
    print("| model | scheme | algorithm | quality | lost | share of RTN's gap closed | output error, calibration: median, worst "
          "| held-out: median, worst | layers below RTN, held-out | plan |\n" + "| --- " * 10 + "|", flush=True)
    done = [json.loads(line) for line in arguments.kept.read_text().splitlines()] if arguments.kept.exists() else []
    for model in arguments.models:
        workload = load_workload(model)
        wanted = [(scheme, algorithm) for scheme in arguments.schemes for algorithm in ALGORITHMS]
        known = {(row["scheme"], row["algorithm"]): row for row in done if row["model"] == model}
        if not all(one in known for one in wanted):
            rows(workload, arguments, known)
        for one in wanted:
            print(line(known[one]), flush=True)


def rows(workload: Workload, arguments: argparse.Namespace, known: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Fill in a model's rows; those of a scheme are made together, since all are compared with rounding to nearest."""
    net = reference(workload)
    base = scores(workload, net, arguments.split)
    # One permutation of the data: its first examples are what methods calibrate on, those after them nobody saw.
    drawn = [torch.cat(parts) for parts in zip(*calibration(workload, SEED, 2 * arguments.examples), strict=True)]
    halves = [[x[:arguments.examples] for x in drawn], [x[arguments.examples:] for x in drawn]]
    read = [moments(net, zip(*(x.split(CALIBRATION_BATCH) for x in half), strict=True)) for half in halves]
    for scheme in arguments.schemes:
        if all((scheme, algorithm) in known for algorithm in ALGORITHMS):
            continue
        plain: Any = None
        for algorithm in ALGORITHMS:
            method = Quantize(scheme, algorithm=algorithm, layers=arguments.layers)
            context = make_context(workload, Target(), SEED, lambda event: None, examples=arguments.examples)
            began = time.perf_counter()
            with torch.no_grad():
                plan = method.plan(net, context)
                seconds = time.perf_counter() - began
                quantized = method.build(copy.deepcopy(net), plan).eval()
            found, lost = scores(workload, quantized, arguments.split), [errors(net, quantized, x) for x in read]
            plain = plain or (found, lost)
            ratios = [[part[name] / rtn[name] for name in part] for part, rtn in zip(lost, plain[1], strict=True)]
            drop = paired_drop(base, found, workload.quality.higher_is_better)
            row = known[scheme, algorithm] = {
                "model": workload.name, "scheme": scheme, "algorithm": algorithm, "split": arguments.split,
                "quality": found.value, "reference": base.value, "drop": [drop.value, drop.low, drop.high],
                "closed": closed(base, plain[0], found), "calibration": ratios[0], "held_out": ratios[1],
                "seconds": seconds, "examples": arguments.examples,
            }
            with arguments.kept.open("a") as file:
                file.write(json.dumps(row) + "\n")


def line(row: Mapping[str, Any]) -> str:
    share = "" if row["algorithm"] == "rtn" else "no significant gap"
    if row["algorithm"] != "rtn" and row["closed"]:
        share = "{:.0%} [{:.0%}, {:.0%}]".format(*row["closed"])
    spread = [f"{np.median(row[part]):.2f}, {max(row[part]):.2f}" for part in ("calibration", "held_out")]
    below = f"{sum(x < 1 for x in row['held_out'])} of {len(row['held_out'])}"
    drop = "{:.4f} [{:.4f}, {:.4f}]".format(*row["drop"])
    return (f"| {row['model']} | {row['scheme']} | {row['algorithm']} | {row['quality']:.4f} ({row['reference']:.4f}) | {drop} | "
            f"{share} | {spread[0]} | {spread[1]} | {below} | {row['seconds']:.0f} s |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("weights", help="weights alone: rtn, hqq, awq, gptq")
    part.add_argument("--models", nargs="+", default=["python-lm", "minilm"])
    part.add_argument("--schemes", nargs="+", default=["w4a16", "w3a16"])
    part.add_argument("--examples", type=int, default=CALIBRATION_EXAMPLES, help="to calibrate on")
    part.add_argument("--split", default="test", choices=["validation", "test"])
    part.add_argument("--threads", type=int, default=cores())
    part.add_argument("--kept", type=Path, default=Path("quantization-weights.jsonl"))
    part.set_defaults(run=weights, layers={".*embedding.*": "fp32"})
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
