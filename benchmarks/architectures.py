"""State-space models against attention and against transformers' own: kernels, language models of equal size, conversion.

    python benchmarks/architectures.py scan              # the state-space dual on this processor, beside transformers
    python benchmarks/architectures.py experts           # few tokens through experts of few bits on this processor
    python benchmarks/architectures.py train --steps 150 # three backbones of `python-lm`, three seeds
    python benchmarks/architectures.py generate          # tokens a second and memory against context
    python benchmarks/architectures.py convert           # `ssm(keep_attention=0.25)` of a trained `python-lm`
    python benchmarks/architectures.py gpu               # the kernels on a GPU (needs Triton)

`scan` under ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 says what a processor without AVX512
would do. Runs of one table are interleaved, in this process.
"""

from __future__ import annotations

import argparse
import copy
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


def experts(given: argparse.Namespace) -> None:
    from thrifty import Quantize
    from thrifty.architectures.moe import MoE

    heading()
    width, hidden, count, top_k = 1024, 512, 64, 8
    torch.manual_seed(0)
    layer = nn.Sequential(MoE(width, hidden, count, top_k, rate=0)).eval()
    calibration = [torch.randn(16, width)]
    int8, int4 = Quantize("w8a16", algorithm="rtn"), Quantize("w4a16", algorithm="rtn", group=128)
    forms = {"fp32": layer, "bf16": copy.deepcopy(layer).to(torch.bfloat16), "int8": int8(layer, calibration),
             "int4": int4(layer, calibration)}
    print(f"MoE D{width} I{hidden} E{count} K{top_k}, routing included, ms: median (least) of {given.rounds} rounds in turns\n\n"
          f"| tokens | {' | '.join(forms)} |\n| --- {'| --- ' * len(forms)}|")
    for tokens in (1, 16, 64):
        x = torch.randn(tokens, width)
        with torch.no_grad():
            calls = {name: functools.partial(form, x.bfloat16() if name == "bf16" else x) for name, form in forms.items()}
            found = interleaved(calls, given.rounds)
        print(f"| {tokens} | {' | '.join(f'{statistics.median(ms):.1f} ({min(ms):.1f})' for ms in found.values())} |", flush=True)


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


@torch.no_grad()
def agreement(model: nn.Module, prompts: Tensor, answers: Tensor) -> tuple[float, float]:
    """(share of tokens that the model, generating greedily from each prompt, answers alike; share of answers begun alike)."""
    ids = prompts
    for _ in range(answers.shape[1]):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
    same = ids[:, prompts.shape[1]:] == answers
    return float(same.float().mean()), float(same[:, :8].all(1).float().mean())


def convert(given: argparse.Namespace) -> None:
    from thrifty import AdamW, Distill, Ssm, Train, fit
    from thrifty.runs.context import make_context, score
    from thrifty.target import Target
    from thrifty.workloads.embedded import python_lm

    heading()
    workload = python_lm.workload
    recovery = given.steps // 3
    print(f"Trained {given.steps} steps, aligned {given.align} steps on calibration data, distilled {recovery} steps; greedy "
          "generation of 32 tokens from 32 windows of validation, 64 tokens each\n\n"
          "| model | seed | bits per byte | tokens answered as before | answers whose first 8 are | seconds |\n"
          "| --- | --- | --- | --- | --- | --- |")

    def more(model: nn.Module, methods: list[Any], steps: int, seed: int, teacher: Any = None) -> nn.Module:
        return fit(model, methods, workload.train, workload.loss, settings=Train(steps=steps, evaluations=0),
                   batch_size=workload.batch_size, seed=seed, teachers=lambda text: teacher).model

    for seed in range(given.seeds):
        torch.manual_seed(seed)
        began = time.perf_counter()
        model = more(workload.model(), [AdamW(lr=given.lr)], given.steps, seed)
        prompts = torch.stack([workload.validation[8 * i][0][:64] for i in range(32)])
        answers = prompts
        with torch.no_grad():
            for _ in range(32):
                answers = torch.cat([answers, model(answers)[:, -1:].argmax(-1)], 1)
        answers = answers[:, 64:]

        def tell(name: str, found: nn.Module, began: float, seed: int = seed, prompts: Tensor = prompts,
                 answers: Tensor = answers) -> None:
            same, begun = agreement(found.eval(), prompts, answers)
            print(f"| {name} | {seed} | {-score(workload, found):.4f} | {100 * same:.1f}% | {100 * begun:.1f}% | "
                  f"{time.perf_counter() - began:.0f} |", flush=True)

        tell("as trained", model, began)
        for keep in (0.25, 0.5):
            began = time.perf_counter()
            method = Ssm(keep_attention=keep, steps=given.align)
            with torch.no_grad():
                plan = method.plan(model, make_context(workload, Target(), seed, lambda event: None))
            after = method.build(copy.deepcopy(model), plan)
            tell(f"ssm(keep_attention={keep:g})", after, began)
            after = more(after, [AdamW(lr=given.lr / 2), Distill()], recovery, seed, model)
            tell(f"ssm(keep_attention={keep:g}), distilled", after, began)


# -- on a GPU ---------------------------------------------------------------------------------------------------


def gpu(given: argparse.Namespace) -> None:
    """The kernels at the sizes at which mamba-ssm was measured, and one decoding step of 64 sequences."""
    from triton.testing import do_bench

    from thrifty.kernels.mamba2_step import mamba2_step

    heads, width, size = 128, 64, 128
    half: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    print(f"{now()}, {torch.cuda.get_device_name()}, torch {torch.__version__}; B1 H{heads} P{width} N{size} G1, bfloat16\n\n"
          "| tokens | forward, ms | forward and backward, ms | million tokens/s forward |\n| --- | --- | --- | --- |")
    for length in (1024, 8192, 65536, 131072):
        case = [v.requires_grad_() for v in drawn(length, heads, width, size, **half)]
        with torch.no_grad():
            forward = do_bench(functools.partial(ssd, *case), return_mode="median")
        upstream = torch.randn_like(case[0])

        def both(case: list[Tensor] = case, upstream: Tensor = upstream) -> None:
            torch.autograd.grad(ssd(*case)[0], case, upstream)

        back = do_bench(both, return_mode="median")
        print(f"| {length} | {forward:.4f} | {back:.4f} | {length / forward / 1e3:.1f} |", flush=True)
    channels, batch = heads * width + 2 * size, 64
    row, conv, weight, bias, norm = (torch.randn(*shape, **half) for shape in (
        (batch, channels + heads * width + heads), (batch, 3, channels), (channels, 4), (channels,), (heads * width,)))
    state, (dt_bias, decay, D) = torch.randn(batch, heads, width, size, device="cuda"), torch.rand(3, heads, device="cuda")
    step = functools.partial(mamba2_step, row, conv, state, weight, bias, dt_bias, -decay, D, norm)
    print(f"\none token of {batch} sequences, float32 state, convolution, gate and norm included: "
          f"{do_bench(step, return_mode='median'):.4f} ms")
    mixtures()


def mixtures() -> None:
    """The layer as it is, its experts alone, and the same of torch's grouped product, as the layer was before its kernels."""
    from triton.testing import do_bench

    from thrifty.architectures.moe import MoE
    from thrifty.architectures.moe.layer import collected, gated
    from thrifty.kernels.grouped_linear import grouped_linear
    from thrifty.kernels.moe import moe

    time_of = functools.partial(do_bench, return_mode="median")
    print("\n| tokens, experts, width, hidden, top_k | what | forward, ms | captured in a graph, ms | with backward, ms |\n"
          "| --- | --- | --- | --- | --- |")
    experts, top_k = 128, 8
    for tokens, width, hidden in ((8192, 2048, 768), (24576, 1536, 256), (128, 2048, 768)):
        torch.manual_seed(0)
        layer = MoE(width, hidden, experts, top_k).to("cuda", torch.bfloat16).eval()
        x, upstream = (torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        with torch.no_grad():
            routing = layer.router(x)
        weights = routing.weights.clone().requires_grad_()
        given = [x.requires_grad_(), layer.gate_up, layer.down]

        def grouped(routing: Any = routing, layer: Any = layer, x: Tensor = x) -> Tensor:
            rows = x[routing.order // routing.chosen.shape[1]]
            return collected(grouped_linear(gated(grouped_linear(rows, layer.gate_up, routing.ends)), layer.down, routing.ends),
                             routing)

        def own(routing: Any = routing, layer: Any = layer, x: Tensor = x, weights: Tensor = weights) -> Tensor:
            return moe(x, layer.gate_up, layer.down, weights, routing.order, routing.ends)

        for name, call, wanted in (("layer", functools.partial(layer, x), [*given, layer.router.weight]),
                                   ("experts", own, [*given, weights]), ("experts by torch._grouped_mm", grouped, given)):
            with torch.no_grad():
                forward = time_of(call)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    call()
                captured = time_of(graph.replay)
            back = time_of(lambda call=call, wanted=wanted, upstream=upstream: torch.autograd.grad(call(), wanted, upstream))
            print(f"| {tokens}, {experts}, {width}, {hidden}, {top_k} | {name} | {forward:.4f} | {captured:.4f} | {back:.4f} |",
                  flush=True)


VERBS: dict[str, Callable[[argparse.Namespace], None]] = {
    "scan": scan, "experts": experts, "train": train, "generate": generate, "convert": convert, "gpu": gpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--align", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=2e-3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    VERBS[given.verb](given)


if __name__ == "__main__":
    main()
