"""Tokens a second of a generating language model: transformers' own eager loop against prefill and decode engines.

    python benchmarks/generation.py --pairs 5

A GPT-2 of 124 million random parameters, a prompt of 32 tokens, 64 new ones, greedy, one sequence. Each side runs in fresh
processes, one after the other in every round, odd rounds backwards; a process answers once to warm up, then three times, and
the fastest counts. The interval is over rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from thrifty.measure.statistics import ratio_interval

PROMPT, NEW, TOKENS = 32, 64, 128
SIDES = ("eager", "onnxruntime", "openvino", "w8a8, onnxruntime", "w8a8, openvino")


def model() -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from thrifty.workloads.huggingface.models import with_linears

    torch.manual_seed(0)
    return with_linears(GPT2LMHeadModel(GPT2Config()).eval())


def prompt() -> list[int]:
    import numpy as np

    found: list[int] = np.random.default_rng(0).integers(0, 50257, PROMPT).tolist()
    return found


def make(side: str, directory: Path) -> None:
    """Lower one side's engines."""
    import torch

    from thrifty import Quantize, lower_generator
    from thrifty.recipes.registry import method_class

    body = model()
    if side.startswith("w8a8"):
        ids = torch.randint(0, 50257, (4, PROMPT), generator=torch.Generator().manual_seed(1))
        body = Quantize()(body, [ids])
    compiler: Any = method_class(side.rpartition(" ")[2])()
    lower_generator(body, compiler, directory, prompt=PROMPT, tokens=TOKENS)


def child(side: str, directory: str, threads: int) -> None:
    """One process: prints seconds of an answer, and the answer."""
    if side == "eager":
        import torch

        torch.set_num_threads(threads)
        body, ids = model(), torch.tensor([prompt()])

        def answer() -> list[int]:
            found = body.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW,
                                  do_sample=False, pad_token_id=0)
            return list(found[0, PROMPT:].tolist())
    else:
        from thrifty import Generator

        generator = Generator.load(directory, threads=threads)

        def answer() -> list[int]:
            return generator.generate(prompt(), NEW)

    tokens, seconds = answer(), []
    for _ in range(3):
        began = time.perf_counter()
        answer()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": min(seconds), "tokens": tokens}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child, arguments.threads)
        return
    with tempfile.TemporaryDirectory() as place:
        for side in SIDES[1:]:
            began = time.perf_counter()
            make(side, Path(place) / side)
            print(f"{side}: lowered in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        tokens: dict[str, list[int]] = {}
        for pair in range(arguments.pairs):
            for side in SIDES if pair % 2 == 0 else SIDES[::-1]:
                done = subprocess.run([sys.executable, __file__, "--threads", str(arguments.threads), "--child", side,
                                       str(Path(place) / side)], capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{side} failed: {done.stderr[-2000:]}")
                told = json.loads(done.stdout.splitlines()[-1])
                seconds[side].append(told["seconds"])
                tokens[side] = told["tokens"]
    print("| side | tokens/s | over eager | tokens as eager's |\n| --- | --- | --- | --- |")
    for side in SIDES:
        ratio = ratio_interval([math.log(a / b) for a, b in zip(seconds["eager"], seconds[side], strict=True)])
        interval = "1" if side == "eager" else f"{ratio.value:.2f}x [{ratio.low or 0:.2f}, {ratio.high or 0:.2f}]"
        same = next((i for i, (a, b) in enumerate(zip(tokens["eager"], tokens[side], strict=True)) if a != b), NEW)
        print(f"| {side} | {NEW / statistics.median(seconds[side]):.1f} | {interval} | {same} of {NEW} |")


if __name__ == "__main__":
    main()
