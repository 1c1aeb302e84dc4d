"""State-space models against attention and against transformers' own: kernels, language models of equal size, conversion.

    python benchmarks/architectures.py scan              # the state-space dual on this processor, beside transformers
    python benchmarks/architectures.py train --steps 150 # three backbones of `python-lm`, three seeds
    python benchmarks/architectures.py generate          # tokens a second and memory against context
    python benchmarks/architectures.py convert           # `ssm(keep_attention=0.25)` of a trained `python-lm`
    python benchmarks/architectures.py gpu               # the kernels on a GPU (needs Triton)

`scan` under ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 says what a processor without AVX512
would do. Runs of one table are interleaved, in this process.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.architectures.attention import KeysValues
from thrifty.architectures.backbone import Backbone
from thrifty.kernels.ssd import flops, ssd
from thrifty.measure.environment import environment, now


def heading() -> None:
    facts = environment()
    print(f"{now()}, {facts['cpu']}, {facts['cores']} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"{torch.backends.cpu.get_cpu_capability()}\n", flush=True)


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """{name: milliseconds of each round}, the calls taking turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            found[name].append(1e3 * (time.perf_counter() - began))
    return found


def drawn(length: int, heads: int, width: int, size: int, groups: int = 1, **where: Any) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x, B, C = (torch.randn(1, length, *last, **where) for last in ((heads, width), (groups, size), (groups, size)))
    dt = torch.rand(1, length, heads, device=x.device) * 0.1
    return x, dt, -torch.rand(heads, device=x.device) * 8 - 1, B, C, torch.randn(heads, device=x.device)


def scan(given: argparse.Namespace) -> None:
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    heading()
    length, heads, width, size = 2048, 24, 64, 128
    case = x, dt, A, B, C, D = drawn(length, heads, width, size)
    with torch.no_grad():
        peers = {f"transformers, chunk {q}": functools.partial(mamba2_chunk_scan, x, dt, A, B, C, q, D) for q in (256, 64)}
        found = interleaved({"thrifty": functools.partial(ssd, *case), **peers}, given.rounds)
    print(f"SSD forward, L{length} H{heads} P{width} N{size}, fp32, {flops(length, heads, 1, width, size) / 1e9:.2f} GFLOP\n\n"
          "| | ms, median | least | most | chunk 256's time over its own, by round: median (least to most) |\n"
          "| --- | --- | --- | --- | --- |")
    for name, times in found.items():
        ratios = [other / own for other, own in zip(found["transformers, chunk 256"], times, strict=True)]
        print(f"| {name} | {statistics.median(times):.1f} | {min(times):.1f} | {max(times):.1f} | "
              f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |")


# -- language models --------------------------------------------------------------------------------------------


def train(given: argparse.Namespace) -> None:
    from thrifty import AdamW, Train, fit
    from thrifty.runs.context import score
    from thrifty.workloads.embedded import python_lm
    from thrifty.workloads.embedded.python_lm_backbones import hybrid, mamba2, transformer

    heading()
    print(f"{given.steps} steps of {python_lm.workload.batch_size} x {python_lm.CONTEXT} tokens, AdamW(lr={given.lr:g})\n\n"
          "| backbone | parameters | seed | bits per byte, validation | training, s |\n| --- | --- | --- | --- | --- |")
    kept: dict[str, list[float]] = {}
    for seed in range(given.seeds):
        for make in (transformer, mamba2, hybrid):
            torch.manual_seed(seed)
            began = time.perf_counter()
            done = fit(make(), [AdamW(lr=given.lr)], python_lm.workload.train, python_lm.workload.loss,
                       settings=Train(steps=given.steps, evaluations=0), batch_size=python_lm.workload.batch_size, seed=seed)
            seconds = time.perf_counter() - began
            bits = -score(python_lm.workload, done.model)
            kept.setdefault(make.__name__, []).append(bits)
            print(f"| {make.__name__} | {sum(p.numel() for p in done.model.parameters()) / 1e6:.2f}M | {seed} | {bits:.4f} | "
                  f"{seconds:.0f} |", flush=True)
    for name, bits in kept.items():
        less = [b - a for a, b in zip(kept["transformer"], bits, strict=True)]
        print(f"\n{name}: {statistics.mean(bits):.4f}; against the transformer, seed by seed: "
              f"{', '.join(f'{d:+.4f}' for d in less)}", flush=True)


def remembered(cache: Any) -> int:
    """Bytes of what a layer remembers."""
    return sum(v.nbytes for v in vars(cache).values() if isinstance(v, Tensor)) if cache is not None else 0


@torch.no_grad()
def generate(given: argparse.Namespace) -> None:
    from thrifty.workloads.embedded.python_lm_backbones import hybrid, mamba2, transformer

    heading()
    print("One sequence, weights and states random: time and memory do not depend on them.\n\n"
          "| backbone | tokens before | ms a token, median of "
          f"{given.rounds} | tokens/s | MB remembered |\n| --- | --- | --- | --- | --- |")
    models: dict[str, Backbone] = {make.__name__: make().eval() for make in (transformer, mamba2, hybrid)}
    token = torch.zeros(1, 1, dtype=torch.int64)
    for context in (1024, 4096, 8192, 32768):
        caches = {name: model.cache(1, context + given.rounds + 1) for name, model in models.items()}
        for each in caches.values():
            for cache in each:
                if isinstance(cache, KeysValues):
                    cache.done = context
                    cache.there[:, :context] = True
        found = interleaved({name: functools.partial(model, token, caches[name]) for name, model in models.items()}, given.rounds)
        for name, times in found.items():
            ms = statistics.median(times)
            kept = sum(map(remembered, caches[name])) / 1e6
            print(f"| {name} | {context} | {ms:.2f} | {1e3 / ms:.0f} | {kept:.1f} |", flush=True)


def agreement(model: nn.Module, prompts: Tensor, answers: Tensor) -> float:
    """Share of tokens that the model, generating greedily, answers alike."""
    ids = prompts
    same = []
    for t in range(answers.shape[1]):
        token = model(ids)[:, -1].argmax(-1)
        same.append((token == answers[:, t]).float().mean().item())
        ids = torch.cat([ids, token[:, None]], 1)
    return statistics.mean(same)


VERBS: dict[str, Callable[[argparse.Namespace], None]] = {"scan": scan, "train": train, "generate": generate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=2e-3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    VERBS[given.verb](given)


if __name__ == "__main__":
    main()
