"""Packed against padded training of a causal language model on the standard library's functions.

    python benchmarks/packing.py >> benchmarks/training.md

A Llama of transformers; texts are the sources of 2,000 functions, cut at 256 tokens. Both sides take as many rows of 256 a step.
Steps run in turns, padded packed packed padded, in one process, making of the rows included; the interval is Student's t on
the logs of ratios of pairs.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from thrifty import AdamW, CrossEntropy, Train, TrainingSession
from thrifty.measure.environment import environment, now
from thrifty.measure.statistics import ratio_interval
from thrifty.training.packing import PackedLoader, Sequences, make_loader
from thrifty.workloads.embedded import python_lm, python_text
from thrifty.workloads.embedded.functions import pairs
from thrifty.workloads.embedded.sources import data_folder
from thrifty.workloads.huggingface.models import TokenLogits, quiet

SPLITS = ("validation", "test")  # of another workload's: its names for two thousand functions, all trained on here


def functions() -> TensorDataset:
    """(inputs [n, 256], targets [n, 256]) of the functions' sources, as `python_lm.window` makes them."""
    import tokenizers

    python_text.tokens("validation")  # the vocabulary is learnt where it is not yet
    folder = data_folder() / f"python-lm-{python_text.VERSION}-{python_text.VOCABULARY}-{python_text.fingerprint()[:16]}"
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = tokenizer.encode_batch([function.code for split in SPLITS for function in pairs(split)])
    windows = [python_lm.window(np.array(text.ids[: python_lm.CONTEXT]), python_lm.CONTEXT) for text in found]
    inputs, targets = (torch.stack(part) for part in zip(*windows, strict=True))
    return TensorDataset(inputs, targets)


def model() -> TokenLogits:
    with quiet() as transformers:
        torch.manual_seed(0)
        return TokenLogits(transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=python_text.VOCABULARY, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=python_lm.CONTEXT)))


@dataclass
class Side:
    """A training under way and its batches."""

    session: TrainingSession
    batches: Any
    steps_per_epoch: int

    def block(self, steps: int) -> tuple[float, int]:
        """Seconds of so many steps and the valid targets in them."""
        began, tokens = time.perf_counter(), 0
        for _ in range(steps):
            batch: tuple[tuple[Tensor, ...], Tensor] = next(self.batches)
            self.session.step(batch)
            tokens += int((batch[1] != python_lm.IGNORED).sum())
        return time.perf_counter() - began, tokens


def side(data: TensorDataset, packing: bool, batch_size: int) -> Side:
    loss, settings = CrossEntropy(), Train(steps=1000, packing=packing)
    loader = make_loader(data, batch_size, 0, None, packing, loss)
    session = TrainingSession(model(), [AdamW()], loss, steps=1000, settings=settings)
    loader.check(session)
    return Side(session, loader.batches(), loader.steps(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="of padded packed packed padded")
    parser.add_argument("--steps", type=int, default=3, help="a block")
    parser.add_argument("--batch-size", type=int, default=8, help="rows")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = functions()
    sides = {"padded": side(data, False, given.batch_size), "packed": side(data, True, given.batch_size)}
    for each in sides.values():
        each.block(1)
    rates: dict[str, list[float]] = {name: [] for name in sides}  # valid tokens a second
    seconds: dict[str, list[float]] = {name: [] for name in sides}  # an epoch
    for _ in range(given.rounds):
        for name in ("padded", "packed", "packed", "padded"):
            took, tokens = sides[name].block(given.steps)
            rates[name].append(tokens / took)
            seconds[name].append(took / given.steps * sides[name].steps_per_epoch)
    pairs_of = {what: [math.log(b / a) for a, b in zip(found["padded"], found["packed"], strict=True)]
                for what, found in (("valid tokens a second", rates), ("seconds an epoch", seconds))}
    print(f"## Packing\n\n`python benchmarks/packing.py --rounds {given.rounds} --steps {given.steps} "
          f"--batch-size {given.batch_size}`, {now()}, {environment()['cpu']}, {given.threads} threads, torch "
          f"{torch.__version__}. {len(data)} functions, {given.batch_size} rows of {python_lm.CONTEXT} a step, "
          f"{sum(p.numel() for p in sides['packed'].session.model.parameters()) / 1e6:.1f}M parameters.\n")
    print("| | padding | steps an epoch | valid tokens a second | seconds an epoch |\n| --- | --- | --- | --- | --- |")
    padding = PackedLoader(Sequences(data, python_lm.IGNORED), given.batch_size, 0).padding
    for share, (name, each) in zip(padding, sides.items(), strict=True):
        print(f"| {name} | {100 * share:.1f}% | {each.steps_per_epoch} | {statistics.fmean(rates[name]):.0f} | "
              f"{statistics.fmean(seconds[name]):.1f} |")
    ratios = [f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]" for found in map(ratio_interval, pairs_of.values())]
    print(f"| packed over padded, 95% | | | {ratios[0]} | {ratios[1]} |")


if __name__ == "__main__":
    main()
