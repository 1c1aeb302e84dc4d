"""How often do the resampled intervals of a drop hold the true drop?

    python benchmarks/quality_intervals.py > benchmarks/quality_intervals.md

The true drop is that of a million drawn examples. The trial's outputs are the reference's with noise: "apart", of half a standard
deviation, or "alike", of a fiftieth, as a quantized model's are.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import time

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from thrifty import AUC, F1, R2, IoU, Quality, Scores
from thrifty.measure.statistics import paired_drop

QUALITIES: dict[str, Quality] = {"R2": R2(), "AUC": AUC(), "F1": F1(), "IoU": IoU()}
NOISE = {"apart": 0.5, "alike": 0.02}
SIZES = (30, 100, 300)


def drawn(quantities: bool, n: int, noise: float, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of the reference and of the trial, and targets: quantities, or two classes of which one has 30%."""
    target = torch.randn(n, generator=draw) if quantities else (torch.rand(n, generator=draw) < 0.3).long()
    signal = target if quantities else 1.5 * target - 0.5
    output = signal + (0.5 if quantities else 1.0) * torch.randn(n, generator=draw)
    return output, output + noise * torch.randn(n, generator=draw), target


def judged(quality: Quality, outputs: Tensor, target: Tensor) -> Scores:
    return quality(lambda inputs: outputs[inputs[0]], TensorDataset(torch.arange(len(target)), target))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=300)
    draws, began = parser.parse_args().draws, time.perf_counter()
    torch.set_num_threads(1)
    rows = []
    for name, quality in QUALITIES.items():
        for pair, noise in NOISE.items():
            draw = torch.Generator().manual_seed(0)
            *outputs, target = drawn(name == "R2", 1_000_000, noise, draw)
            truth = -np.subtract(*[judged(quality, x, target).value for x in reversed(outputs)])
            cells = []
            for n in SIZES:
                held, widths = 0, []
                for _ in range(draws):
                    *outputs, target = drawn(name == "R2", n, noise, draw)
                    drop = paired_drop(*(judged(quality, x, target) for x in outputs), True)
                    assert drop.low is not None and drop.high is not None
                    held += drop.low <= truth <= drop.high
                    widths.append(drop.high - drop.low)
                cells.append(f"{100 * held / draws:.1f}% ({np.median(widths):.3f})")
            rows.append(f"| {name} | {pair} | {truth:.4f} | {' | '.join(cells)} |")
    print("# Resampled intervals: do they hold the true drop?\n")
    known = 100 * 1.96 * (0.05 * 0.95 / draws) ** 0.5
    print("Shares of 95% intervals that hold it, and their median widths, by the number of examples. The trial's outputs are\n"
          "the reference's with noise: \"apart\", of half a standard deviation, or \"alike\", of a fiftieth, as a quantized\n"
          f"model's are. A share of {draws} draws is known to about {known:.1f} points.\n")
    print(f"| quality | pair | true drop | {' | '.join(f'{n} examples' for n in SIZES)} |")
    print(f"| --- | --- | --- | {' | '.join('---' for _ in SIZES)} |")
    print("\n".join(rows))
    print(f"\n- Command: `python benchmarks/quality_intervals.py --draws {draws}`\n- Machine: {platform.machine()}, one thread, "
          f"on which no figure here depends.\n- Software: Python {platform.python_version()}, torch {torch.__version__}, numpy "
          f"{np.__version__}.\n- Date: {datetime.date.today()}; {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
