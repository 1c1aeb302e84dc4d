"""Products with weights of few bits on a GPU: our kernels against torch's and cuBLAS, and the sweep that chose their sizes.

    python benchmarks/matmul.py sweep w4a16 --shapes 28672x8192 --tokens 1 16 --seconds 240
    python benchmarks/matmul.py sweep int8 fp8 --shapes 8192x8192 --tokens 16 4096 --seconds 240
    python benchmarks/matmul.py table w4a16 --out DIR

A shape is outputs x inputs. Each time is the median over replays of a CUDA graph that calls one kernel again and again, on
copies of the weights taken in turn, together over 300 MB: none is found in the L2 cache. Errors are Frobenius, relative to
the float32 product with the weights that the numbers stand for. Needs torch, Triton and `src` on the path, no more.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import itertools
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

APART = 300e6
"""Bytes of weights that are read before the same ones come again."""
SHAPES = ("28672x8192", "8192x28672")
TOKENS = {"w4a16": (1, 2, 4, 8, 16, 32, 64), "int8": (1, 16, 64, 256, 1024, 4096), "fp8": (1, 16, 64, 256, 1024, 4096)}
LIMIT = {"w4a16": 5e-3, "int8": 3e-3, "fp8": 5e-3}
"""Errors; those of the last two are what rounding the result to bfloat16 costs, and float8's sums a little."""


@dataclass
class Case:
    """One product to time: calls, one for each copy of the weights, and what the first of them should give."""

    wanted: Tensor
    bytes: float
    calls: dict[str, list[Callable[[], Tensor]]] = field(default_factory=dict)
    other: set[str] = field(default_factory=set)
    """Those that give something else, and are timed only."""


# -- timing -----------------------------------------------------------------------------------------------------


def microseconds(calls: list[Callable[[], Tensor]], replays: int = 12) -> float:
    """Of one call, its median over replays of a graph of at least 12."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    turns = max(1, math.ceil(12 / len(calls)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls * turns:
            call()
    graph.replay()
    torch.cuda.synchronize()
    found = []
    for _ in range(replays):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        found.append(first.elapsed_time(last) * 1e3 / (turns * len(calls)))
    return statistics.median(found)


def error(y: Tensor, wanted: Tensor) -> float:
    return float((y.float() - wanted).norm() / wanted.norm())


# -- cases ------------------------------------------------------------------------------------------------------


def copies(size: float) -> int:
    return max(4, math.ceil(APART / size))


def w4a16(tokens: int, rows: int, inputs: int, group: int, dtype: torch.dtype, configs: list[Any], peers: bool) -> Case:
    from thrifty.kernels.matmul_w4a16 import naive, prepare
    from thrifty.kernels.matmul_w4a16 import triton as kernel

    x = torch.randn(tokens, inputs, device="cuda").to(dtype)
    size = rows * inputs / 2 + rows * inputs / group * 4
    q = [torch.randint(0, 16, (rows, inputs), dtype=torch.uint8, device="cuda") for _ in range(copies(size))]
    scale = torch.rand(rows, inputs // group, device="cuda") * 0.02 + 0.001
    zero = torch.randint(4, 12, (rows, inputs // group), dtype=torch.uint8, device="cuda")
    weight = naive.dequantized(q[0], scale, zero)
    case = Case(_exact(x, weight), size + tokens * (inputs + rows) * 2)
    held = [prepare(one, scale, zero) for one in q]
    for config in configs:
        case.calls[str(config)] = [functools.partial(kernel.product, x, *one, None, rows, group, config) for one in held]
    if peers and dtype == torch.bfloat16:
        try:
            packed = [torch.ops.aten._convert_weight_to_int4pack((one[:, ::2] << 4 | one[:, 1::2]).contiguous(), 8) for one in q]
            pair = torch.stack([scale, (8 - zero.float()) * scale], 2).transpose(0, 1).to(torch.bfloat16).contiguous()
            case.calls["torch int4pack"] = [functools.partial(torch.ops.aten._weight_int4pack_mm, x, one, group, pair)
                                            for one in packed]
        except (RuntimeError, NotImplementedError) as wrong:  # a peer that is not there costs the others nothing
            print(f"  torch int4pack: {str(wrong)[:200]}", flush=True)
    if peers:
        low = weight.to(dtype)
        case.calls[f"torch {str(dtype)[6:]}"] = [functools.partial(torch.nn.functional.linear, x, low.clone())
                                                for _ in range(copies(rows * inputs * 2))]
    return case


def eight(kind: torch.dtype, tokens: int, rows: int, inputs: int, configs: list[Any], peers: bool) -> Case:
    from thrifty.kernels.matmul_int8 import triton as kernel

    size = rows * inputs
    whole = kind == torch.int8

    def drawn(n: int) -> Tensor:
        x = torch.randn(n, inputs, device="cuda") * (40 if whole else 100)
        return x.round().clamp(-127, 127).to(kind)

    x, weight = drawn(tokens), [drawn(rows) for _ in range(copies(size))]
    token, row = (torch.rand(n, device="cuda") * 0.01 + 0.001 for n in (tokens, rows))
    case = Case(_exact(x.float(), weight[0].float()) * token[:, None] * row, size + tokens * (inputs + 2 * rows))
    for config in configs:
        case.calls[str(config)] = [functools.partial(kernel.product, x, one, token, row, torch.bfloat16, None, config)
                                   for one in weight]
    if peers and whole:
        filled = torch.nn.functional.pad(x, (0, 0, 0, max(0, 32 - tokens)))  # it takes no fewer than 17 tokens

        def apart(one: Tensor) -> Tensor:
            return (torch._int_mm(filled, one.t())[:tokens] * token[:, None] * row).to(torch.bfloat16)

        case.other.add("torch _int_mm alone")
        case.calls["torch _int_mm alone"] = [functools.partial(torch._int_mm, filled, one.t()) for one in weight]
        case.calls["torch _int_mm, scaled"] = [functools.partial(apart, one) for one in weight]
    elif peers:
        for fast in (False, True):
            case.calls[f"torch _scaled_mm{', fast sums' if fast else ''}"] = [functools.partial(
                torch._scaled_mm, x, one.t(), token[:, None], row[None, :], out_dtype=torch.bfloat16, use_fast_accum=fast)
                for one in weight]
    if peers:
        low = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
        xs = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16)
        case.other.add("torch bfloat16")
        case.calls["torch bfloat16"] = [functools.partial(torch.nn.functional.linear, xs, low.clone())
                                        for _ in range(copies(2 * size))]
    return case


def _exact(x: Tensor, weight: Tensor) -> Tensor:
    """In float32 that is not cut to tf32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    return x.float() @ weight.T


def made(what: str, tokens: int, rows: int, inputs: int, configs: list[Any], peers: bool, group: int, dtype: str) -> Case:
    torch.manual_seed(time.time_ns())
    if what == "w4a16":
        return w4a16(tokens, rows, inputs, group, getattr(torch, dtype), configs, peers)
    return eight(torch.int8 if what == "int8" else torch.float8_e4m3fn, tokens, rows, inputs, configs, peers)


# -- the sweep --------------------------------------------------------------------------------------------------


def candidates(what: str, tokens: int) -> list[Any]:
    """What may be fast at so many tokens, the likeliest first."""
    return list(_few_bits(tokens) if what == "w4a16" else _eight_bits(tokens))


def _few_bits(tokens: int) -> Iterator[Any]:
    from thrifty.kernels.matmul_w4a16.triton import Config

    for stages, strips, warps, before in itertools.product((0, 4, 3, 6, 2, 1), (2, 1, 4, 8), (4, 8, 2, 1, 16), (False, True)):
        for tiles in (1,) if tokens <= 8 else (2, 1) if tokens <= 16 else (4, 2, 8):
            held = 4 * tiles * strips  # registers of sums
            ahead = (8 + 2) * strips + 16 * tiles if stages == 0 else 0
            shared = stages * warps * 32 * (40 * strips + 64 * tiles)
            if held * (1 if before else 1.5) + ahead <= 170 and shared <= 220_000 and not (before and tokens <= 8):
                yield Config(tiles, strips, warps, stages, before)


def _eight_bits(tokens: int) -> Iterator[Any]:
    from thrifty.kernels.matmul_int8.triton import Config

    if tokens <= 64:
        m = max(16, 1 << (tokens - 1).bit_length())
        for n, k, warps, stages in itertools.product((64, 128, 32, 16), (256, 128, 512), (4, 8, 2), (4, 3, 6, 8)):
            for swap in (True, False):
                if stages * (m + n) * k <= 220_000 and n * m <= 128 * 32 * warps:
                    yield Config(m, n, k, warps, stages, swap)
        return
    for m, n, k, warps, stages in itertools.product((128, 256, 64), (256, 128), (128, 64), (8, 4), (3, 4, 5)):
        if stages * (m + n) * k <= 220_000 and m * n <= 128 * 32 * warps:
            yield Config(m, n, k, warps, stages)


def ready(task: tuple[str, int, int, int, int, str, Any]) -> tuple[Any, str]:
    """Compile one configuration, in a process of its own among several: (it, what was wrong)."""
    what, tokens, rows, inputs, group, dtype, config = task
    try:
        if what == "w4a16":
            from thrifty.kernels.matmul_w4a16 import triton as few

            words = torch.zeros(-(-rows // 16), -(-inputs // 128) * 2, 32, 4, dtype=torch.int32, device="cuda")
            grids = torch.zeros(-(-inputs // group), -(-rows // 16) * 16, dtype=torch.int32, device="cuda")
            x = torch.zeros(tokens, inputs, dtype=getattr(torch, dtype), device="cuda")
            few.product(x, words, grids, None, rows, group, config)
        else:
            from thrifty.kernels.matmul_int8 import triton as many

            kind = torch.int8 if what == "int8" else torch.float8_e4m3fn
            x, weight = (torch.zeros(n, inputs, dtype=torch.int8, device="cuda").view(kind) for n in (tokens, rows))
            token, row = (torch.zeros(n, device="cuda") for n in (tokens, rows))
            many.product(x, weight, token, row, torch.bfloat16, None, config)
        torch.cuda.synchronize()
    except Exception as wrong:  # out of shared memory or registers: it stands in the log
        return config, f"{type(wrong).__name__}: {str(wrong)[:120]}"
    return config, ""


def sweep(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time every configuration that compiles within its share of the seconds; print them, the fastest last."""
    found = []
    cases = list(_cases(arguments))
    share = arguments.seconds / len(cases)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(arguments.processes, mp_context=context) as pool:
        for what, tokens, rows, inputs in cases:
            began = time.monotonic()
            configs = candidates(what, tokens)[:arguments.most]
            tasks = [pool.submit(ready, (what, tokens, rows, inputs, arguments.group, arguments.dtype, c)) for c in configs]
            concurrent.futures.wait(tasks, timeout=0.7 * share)
            for task in tasks:
                task.cancel()
            concurrent.futures.wait(tasks, timeout=60.0)  # what runs already ends: nothing disturbs the times
            results = [task.result() for task in tasks if task.done() and not task.canceled()]
            compiled = [config for config, wrong in results if not wrong]
            for config, wrong in results:
                if wrong and arguments.verbose:
                    print(f"  {config}: {wrong}")
            lines = measured(what, tokens, rows, inputs, compiled, True, arguments, time.monotonic() + 0.4 * share)
            print(f"== {what}, {tokens} x {inputs} x {rows}: of {len(configs)} configurations {len(results)} tried, "
                  f"{len(compiled)} compiled, {time.monotonic() - began:.0f} s", flush=True)
            for line in sorted(lines, key=lambda x: -x["us"])[-arguments.lines:]:
                _tell(line)
            found += lines
    return found


def measured(what: str, tokens: int, rows: int, inputs: int, configs: list[Any], peers: bool, arguments: argparse.Namespace,
             until: float = math.inf) -> list[dict[str, Any]]:
    case = made(what, tokens, rows, inputs, configs, peers, arguments.group, arguments.dtype)
    lines = []
    # Peers first: a sweep that runs out of time has them.
    for name, calls in sorted(case.calls.items(), key=lambda item: not item[0].startswith("torch")):
        if time.monotonic() > until and not name.startswith("torch"):
            break
        line = {"what": what, "tokens": tokens, "rows": rows, "inputs": inputs, "name": name}
        try:
            off = 0.0 if name in case.other else error(calls[0](), case.wanted)
            us = microseconds(calls)
        except Exception as wrong:
            print(f"  {name}: {type(wrong).__name__}: {str(wrong)[:300]}", flush=True)
            continue
        lines.append({**line, "us": us, "error": off, "tb_s": case.bytes / us / 1e6,
                      "tflops": 2 * tokens * rows * inputs / us / 1e6, "right": bool(off < LIMIT[what])})
    case.calls.clear()
    torch.cuda.empty_cache()
    return lines


def _cases(arguments: argparse.Namespace) -> Iterator[tuple[str, int, int, int]]:
    for what, shape in itertools.product(arguments.kinds, arguments.shapes):
        rows, inputs = map(int, shape.split("x"))
        for tokens in arguments.tokens or TOKENS[what]:
            yield what, tokens, rows, inputs


def _tell(line: dict[str, Any]) -> None:
    print(f"{line['us']:9.1f} us {line['tb_s']:6.2f} TB/s {line['tflops']:7.1f} TF/s  error {line['error']:.1e}"
          f"{'' if line['right'] else ' WRONG'}  {line['name']}", flush=True)


def table(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Ours as it is set, beside its peers."""
    found = []
    for what, tokens, rows, inputs in _cases(arguments):
        lines = measured(what, tokens, rows, inputs, [None], True, arguments)
        for line in lines:
            line["name"] = "ours" if line["name"] == "None" else line["name"]
            print(f"{what} {tokens:5d} x {inputs} x {rows}: ", end="")
            _tell(line)
        found += lines
    return found


def page(lines: list[dict[str, Any]], where: str) -> str:
    """Markdown: a row a product, a column a side, microseconds."""
    text = [where, ""]
    for what in dict.fromkeys(line["what"] for line in lines):
        chosen = [line for line in lines if line["what"] == what]
        names = list(dict.fromkeys(line["name"] for line in chosen))
        text.append(f"| {what}: outputs x inputs | tokens | {' | '.join(names)} | error of ours |")
        text.append("| --- " * (len(names) + 3) + "|")
        for key, group in itertools.groupby(chosen, lambda line: (line["rows"], line["inputs"], line["tokens"])):
            by = {line["name"]: line for line in group}
            cells = [f"{by[name]['us']:.1f} us" if name in by else "-" for name in names]
            off = f"{by['ours']['error']:.1e}" if "ours" in by else "-"
            text.append(f"| {key[0]} x {key[1]} | {key[2]} | {' | '.join(cells)} | {off} |")
        text.append("")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("sweep", "table"))
    parser.add_argument("kinds", nargs="+", choices=("w4a16", "int8", "fp8"))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="outputs x inputs")
    parser.add_argument("--tokens", nargs="+", type=int)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16", help="of w4a16's activations: bfloat16 or float16")
    parser.add_argument("--seconds", type=float, default=240.0, help="for the whole sweep")
    parser.add_argument("--most", type=int, default=400, help="configurations a product")
    parser.add_argument("--lines", type=int, default=14, help="of the fastest to print")
    parser.add_argument("--processes", type=int, default=14, help="that compile")
    parser.add_argument("--out", type=Path, help="a folder for matmul-VERB.json and .md")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    where = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    print(where)
    lines = sweep(arguments) if arguments.verb == "sweep" else table(arguments)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"matmul-{arguments.verb}.json").write_text(json.dumps({"where": where, "lines": lines}, indent=1))
        if arguments.verb == "table":
            (arguments.out / "matmul-table.md").write_text(page(lines, where))
    if arguments.verb == "sweep":
        for (what, rows, inputs, tokens), group in itertools.groupby(
                lines, lambda x: (x["what"], x["rows"], x["inputs"], x["tokens"])):
            several = [x for x in group if x["right"]]
            ours = [x for x in several if not x["name"].startswith("torch")]
            if ours:
                print(f"best {what} {tokens} x {inputs} x {rows}: ", end="")
                _tell(min(ours, key=lambda x: x["us"]))


if __name__ == "__main__":
    main()
