"""Seconds from a fresh start to the first measured trial of a tiny net, beside the same by hand in plain torch.

    python benchmarks/first_hour.py               # three times each, in turns, with an empty cache each time
    python benchmarks/first_hour.py --hand        # what is done by hand, once: this is the process that is timed

By hand means: train the reference and the recipe, export, compile with ONNX Runtime, judge both on validation, and time both in
five pairs of fresh processes, interleaved. It charges nothing, resumes nothing, checks nothing, and has no artifact.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from thrifty.measure.environment import environment, now

ROWS = Path(__file__).resolve().parent.parent / "examples" / "rows.py"
RECIPE = "train(adamw(lr=1e-3), epochs=8) | compile(onnxruntime)"
PAIRS, CYCLES, BLOCK = 5, 4, 0.04


# -- by hand ------------------------------------------------------------------------------------------------------


def by_hand(place: Path, pairs: int) -> None:
    """Train, export, judge, time: what a careful user would write."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    sys.path.insert(0, str(ROWS.parent))
    from rows import net, split

    def trained(rate: float, epochs: int) -> nn.Module:
        torch.manual_seed(0)
        model, data = net(), split(0, 2000)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
        for _ in range(epochs):
            for x, y in DataLoader(data, batch_size=64, shuffle=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        return model.eval()

    reference, model = trained(1e-2, 3), trained(1e-3, 8)
    torch.save(reference.state_dict(), place / "reference.pt")
    torch.onnx.export(model, (torch.zeros(1, 2),), str(place / "model.onnx"), dynamo=True)
    x, y = split(1, 500).tensors
    with torch.no_grad():
        print(json.dumps({"reference": float((reference(x).argmax(1) == y).float().mean()),
                          "model": float((model(x).argmax(1) == y).float().mean())}))
    ratios = []
    for _ in range(pairs):
        workers = [subprocess.Popen([sys.executable, __file__, "--worker", side, "--place", str(place)], stdin=subprocess.PIPE,
                                    stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
                   for side in ("eager", "engine")]
        for worker in workers:
            worker.stdout.readline()
        blocks: dict[int, list[float]] = {0: [], 1: []}
        for index in [0, 1, 1, 0] * CYCLES:
            workers[index].stdin.write("time\n")
            workers[index].stdin.flush()
            blocks[index].append(float(workers[index].stdout.readline()))
        for worker in workers:
            worker.stdin.close()
            worker.wait()
        ratios.append(float(np.median(np.log(blocks[0]) - np.log(blocks[1]))))
    print(json.dumps({"speedup": float(np.exp(np.mean(ratios))), "pairs": len(ratios)}))


def worker(side: str, place: Path) -> None:
    """Load one side, then time a block of calls for each line that comes."""
    zeros = np.zeros((1, 2), np.float32)
    if side == "eager":
        import torch

        sys.path.insert(0, str(ROWS.parent))
        from rows import net

        model = net()
        model.load_state_dict(torch.load(place / "reference.pt"))
        model.eval()
        torch.set_num_threads(1)
        given = torch.from_numpy(zeros)

        def call() -> object:
            with torch.inference_mode():
                return model(given)
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(place / "model.onnx"), options)
        name = session.get_inputs()[0].name

        def call() -> object:
            return session.run(None, {name: zeros})

    end, calls = time.perf_counter() + 0.15, 0
    while time.perf_counter() < end:
        call()
        calls += 1
    count = max(1, round(calls * BLOCK / 0.15))
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds = []
        for _ in range(count):
            at = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - at)
        print(float(np.median(seconds)), flush=True)


# -- both ---------------------------------------------------------------------------------------------------------


def timed(command: list[str], **variables: str) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command}: {done.stderr[-2000:]}")
    return time.perf_counter() - began


def once(pairs: int) -> tuple[float, float]:
    """Seconds of Thrifty, and by hand."""
    with tempfile.TemporaryDirectory(prefix="thrifty-first-") as place:
        ours = timed([sys.executable, "-m", "thrifty", "run", str(ROWS), RECIPE, "--study", f"{place}/study",
                      "--pairs", str(pairs)], THRIFTY_CACHE=f"{place}/cache")
    with tempfile.TemporaryDirectory(prefix="thrifty-first-") as place:
        return ours, timed([sys.executable, __file__, "--hand", "--pairs", str(pairs), "--place", place])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--hand", action="store_true")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--worker", choices=("eager", "engine"))
    parser.add_argument("--place", type=Path)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.place)
    elif arguments.hand:
        by_hand(arguments.place, arguments.pairs)
    else:
        print(f"{now()}, {environment()['cpu']}, {environment()['cores']} cores, load {os.getloadavg()[0]:.1f}\n")
        print("| pairs | Thrifty, s | by hand, s |\n| --- | --- | --- |")
        for pairs in (1, PAIRS):
            found = [once(pairs) for _ in range(arguments.times)]
            ours, hand = (", ".join(f"{value:.1f}" for value in column) for column in zip(*found, strict=True))
            print(f"| {pairs} | {ours} | {hand} |", flush=True)


if __name__ == "__main__":
    main()
