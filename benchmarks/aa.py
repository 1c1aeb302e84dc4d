"""A against A with real processes: how often does the harness's interval cover 1.0 when nothing differs?

    python benchmarks/aa.py --comparisons 40 > benchmarks/aa.md

Progress goes to stderr, the page to stdout, raw readings to the file of ``--raw``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from thrifty.measure.comparison import Comparison
from thrifty.measure.sides import CallableSide
from thrifty.measure.statistics import Interval
from thrifty.measure.timing import compare


def network() -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """The side: a small convolutional network in eager fp32, about 1.5 ms a call on one core."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    ).eval()

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            return [net(torch.from_numpy(arrays[0])).numpy()]

    return call


def share(hits: int, n: int) -> tuple[float, float, float]:
    """A share with its Wilson interval at 95%."""
    z, p = 1.959964, hits / n
    center, margin = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    return p, (center - margin) / (1 + z * z / n), (center + margin) / (1 + z * z / n)


def processor() -> str:
    names = (
        [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        if Path("/proc/cpuinfo").exists()
        else []
    )
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} processors"


def page(
    ratios: list[Interval], found: list[Comparison], seconds: float, load: tuple[float, float], asked: int
) -> str:
    """The result page."""
    covered = sum(r.low <= 1.0 <= r.high for r in ratios if r.low is not None and r.high is not None)
    p, low, high = share(covered, len(ratios))
    widths = [100 * (math.log(r.high) - math.log(r.low)) / 2 for r in ratios if r.low and r.high]
    errors = [100 * abs(math.log(r.value)) for r in ratios]
    readings = [reading for comparison in found for reading in comparison.readings]
    warned = sum(bool(comparison.warnings) for comparison in found)
    return f"""# A against A: does the interval cover 1.0 when nothing differs?

Two workers hold the same small convolutional network (eager fp32, batch 1, one thread) and are compared as any two
sides are: fresh pairs of processes, blocks A B B A, the idle worker stopped, a Student t interval on the mean log
ratio of {found[0].readings[-1].round + 1} pairs. A sound 95% interval covers 1.0 in 95% of the comparisons. The
simulation with 2,000 comparisons is a test (`tests/measure/test_coverage.py`); this page is real processes.

| figure | value |
| --- | --- |
| intervals that cover 1.0 | {covered} of {len(ratios)}: {100 * p:.1f}% [{100 * low:.1f}, {100 * high:.1f}] |
| half-width of the interval, median (90th percentile) | {np.median(widths):.2f}% ({np.percentile(widths, 90):.2f}%) |
| error of the ratio, median (90th percentile) | {np.median(errors):.2f}% ({np.percentile(errors, 90):.2f}%) |
| mean of all log ratios | {100 * np.mean([math.log(r.value) for r in ratios]):+.2f}% |
| latency, median over processes | {1000 * np.median([r.p50 for r in readings]):.3f} ms |
| spread of blocks within a process, median | {100 * np.median([r.spread for r in readings]):.1f}% |
| comparisons with an instability warning | {warned} of {len(found)} |
| wall-clock of a pair | {seconds / len(readings) * 2:.2f} s |

- Command: `python {shlex.join([os.path.relpath(sys.argv[0]), *sys.argv[1:]])}`
- Machine: {processor()}; {platform.system()} {platform.release()}; load average {load[0]:.1f} at the
  start and {load[1]:.1f} at the end, of which the harness itself is 1.
- Software: Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}.
- Asked for {asked} comparisons, ended with {len(found)}{" at its time limit" if len(found) < asked else ""}.
- Date: {datetime.date.today().isoformat()}; {seconds:.0f} s.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comparisons", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no comparison after this time")
    parser.add_argument("--raw", type=Path, help="write raw readings as JSON")
    options = parser.parse_args()
    side = CallableSide(f"{Path(__file__).resolve()}:network")
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    start, load = time.monotonic(), os.getloadavg()[0]
    found: list[Comparison] = []
    while len(found) < options.comparisons and time.monotonic() - start < 60 * options.minutes:
        found.append(compare({"a": side, "b": side}, "a", [image], rounds=options.pairs))
        ratio = found[-1].ratios["b"]
        assert ratio is not None
        assert ratio.low is not None
        assert ratio.high is not None
        line = f"{len(found)}: {ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]"
        print(line, file=sys.stderr, flush=True)
    ratios = [comparison.ratios["b"] for comparison in found]
    seconds = time.monotonic() - start
    if options.raw:
        options.raw.write_text(json.dumps([comparison.to_json() for comparison in found]))
    print(
        page(
            [r for r in ratios if r is not None],
            found,
            seconds,
            (load, os.getloadavg()[0]),
            options.comparisons,
        ),
        end="",
    )


if __name__ == "__main__":
    main()
