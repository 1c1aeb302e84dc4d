"""GPT-2's shape trained on one GPU, rung by rung: what each way of making training cheaper adds to the one below it.

    python benchmarks/ladder.py --json ladder.json --profile
    python benchmarks/ladder.py --rungs "plain" "loss" --steps 0        # a few rungs, no curves

12 layers of width 768, 12 heads, vocabulary 50,304, tied head, no biases, batches of 32 x 1,024 tokens of Python source.
The rungs up to `plain` (bf16 autocast, torch.compile, fused AdamW) are torch's own. Each rung above changes one thing of the
best so far and stays where it is faster. At the end the best and `plain` are timed in turns (A B B A; the interval is over
cycles of one process), and both are trained from the same seeds on the same batches.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from source_tokens import encoded, source_text
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from thrifty.kernels.linear_loss import linear_cross_entropy
from thrifty.measure.statistics import ratio_interval
from thrifty.training.mixed_precision import fp8

PEAK = 989.4e12
"""Dense bf16 FLOPs a second in the datasheet of H100 SXM and H200: what MFU is a share of."""


# -- the model --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    vocabulary: int = 50_304
    width: int = 768
    layers: int = 12
    heads: int = 12
    context: int = 1024
    batch: int = 32


class Block(nn.Module):
    def __init__(self, shape: Shape, attention: str) -> None:
        super().__init__()
        width, self.heads, self.attention = shape.width, shape.heads, attention
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.attention == "cudnn":
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    """Decoder-only transformer with a tied head: (ids, targets) [batch, tokens] -> mean loss."""

    def __init__(self, shape: Shape, loss: str, attention: str) -> None:
        super().__init__()
        self.loss, self.layers = loss, shape.layers
        self.tokens, self.places = nn.Embedding(shape.vocabulary, shape.width), nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape, attention) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width, bias=False)

    def forward(self, ids: Tensor, target: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.loss == "logits":
            return F.cross_entropy(F.linear(x, self.tokens.weight).flatten(0, 1), target.flatten())
        total = linear_cross_entropy(x, self.tokens.weight, target, float8=self.loss == "float8", logits_bytes=LOGITS[0])
        return total / target.numel()

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """GPT-2's weights at the start; the same whatever they are held in."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() == 1:
                weight.fill_(1.0)
                continue
            std = 0.02 / math.sqrt(2 * self.layers) if name.endswith(("out.weight", "down.weight")) else 0.02
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)


LOGITS = [2**30]
"""Bytes of logits at once where the loss is fused."""


# -- rungs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rung:
    """How one step is made."""

    products: str = "float32"  # or tf32, bf16
    compiled: bool = False
    fused: bool = False  # AdamW's step in one kernel
    attention: str = "default"  # or cudnn
    loss: str = "logits"  # or fused, float8: the head and the loss in one operation
    weights: str = "float32"  # or bfloat16, with float32 ones beside them that the optimizer steps
    linears: str = "bf16"  # or float8: those of the blocks whose shape is faster so
    mode: str | None = None  # of torch.compile


BELOW: dict[str, dict[str, Any]] = {
    "fp32": {}, "tf32": {"products": "tf32"}, "bf16": {"products": "bf16"}, "compile": {"compiled": True},
    "plain": {"fused": True},
}
ABOVE: dict[str, dict[str, Any]] = {
    "attention": {"attention": "cudnn"}, "loss": {"loss": "fused"}, "weights": {"weights": "bfloat16"},
    "loss8": {"loss": "float8"}, "linears8": {"linears": "float8"},
    "autotune": {"mode": "max-autotune-no-cudagraphs"},
}


class Session:
    """A training under way on one rung."""

    def __init__(self, rung: Rung, shape: Shape, tokens: Tensor, steps: int, device: str) -> None:
        self.rung, self.shape, self.tokens, self.steps, self.device = rung, shape, tokens, steps, device
        self.model = GPT(shape, rung.loss, rung.attention).to(device)
        self.run = torch.compile(self.model, mode=rung.mode) if rung.compiled else self.model
        self.reset(0)
        if rung.linears == "float8":
            with self._arithmetic():
                shapes = fp8.shapes_of(self.model, lambda: self.model(*self.batch(self.generator)))
            choices = fp8.choose(shapes, device, rung.compiled)
            fp8.install(self.model, choices)
            print(f"in 8 bits: {dict(Counter((shapes[name], way) for name, way in choices.items()))}", flush=True)

    def reset(self, seed: int) -> None:
        """Weights, optimizer and batches as at the start; what was compiled stays."""
        self.model.to(torch.float32).draw(seed)
        self.number, self.generator = 0, torch.Generator(self.device).manual_seed(seed)
        self.stepped = list(self.model.parameters())
        if self.rung.weights != "float32":
            self.stepped = [nn.Parameter(p.detach().clone()) for p in self.stepped]
            self.model.to(getattr(torch, self.rung.weights))
            for p in self.stepped:
                p.grad = torch.zeros_like(p)
        decayed, others = [p for p in self.stepped if p.dim() > 1], [p for p in self.stepped if p.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=6e-4, betas=(0.9, 0.95),
            fused=self.rung.fused, foreach=not self.rung.fused)

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        length = self.shape.context
        starts = torch.randint(len(self.tokens) - length - 1, (self.shape.batch, 1), device=self.device, generator=generator)
        ids = self.tokens[starts + torch.arange(length + 1, device=self.device)]
        return ids[:, :-1], ids[:, 1:]

    def step(self) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = 6e-4 * rate(self.number, self.steps)
        self.number += 1
        with self._arithmetic():
            loss: Tensor = self.run(*self.batch(self.generator))
            loss.backward()
        self._update()
        return loss.detach()

    def _update(self) -> None:
        if self.rung.weights == "float32":
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            return
        low = list(self.model.parameters())
        torch._foreach_copy_([p.grad for p in self.stepped], [p.grad for p in low])
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(low, self.stepped)
        for p in low:
            p.grad = None

    @contextlib.contextmanager
    def _arithmetic(self) -> Iterator[None]:
        torch.backends.cuda.matmul.allow_tf32 = self.rung.products != "float32"
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.rung.products == "bf16"):
            yield

    @torch.no_grad()
    def score(self, tokens: Tensor, batches: int) -> float:
        """Mean loss on held-out text, measured in one way whatever the rung: uncompiled, bf16, all logits."""
        held, way = Session.__new__(Session), self.model.loss
        held.__dict__.update(self.__dict__, tokens=tokens)
        generator, self.model.loss = torch.Generator(self.device).manual_seed(12345), "logits"
        with torch.autocast(self.device, dtype=torch.bfloat16):
            found = [self.model(*held.batch(generator)) for _ in range(batches)]
        self.model.loss = way
        return float(torch.stack(found).mean())


def rate(step: int, steps: int) -> float:
    """Linear warm-up over a tenth, then a cosine to a tenth."""
    warm = max(1, steps // 10)
    done = min(1.0, max(0.0, (step - warm) / max(1, steps - warm)))
    return min((step + 1) / warm, 0.55 + 0.45 * math.cos(math.pi * done))


# -- timing -----------------------------------------------------------------------------------------------------


def block(session: Session, steps: int) -> float:
    """Seconds a step."""
    synchronize(session.device)
    began = time.perf_counter()
    for _ in range(steps):
        session.step()
    synchronize(session.device)
    return (time.perf_counter() - began) / steps


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def flops_per_token(session: Session) -> float:
    """Six times the weights (positions left out), and attention's 12 layers x width x context."""
    weights = sum(p.numel() for name, p in session.model.named_parameters() if not name.startswith("places"))
    return 6.0 * weights + 12.0 * session.shape.layers * session.shape.width * session.shape.context


def measure(name: str, session: Session, seconds: float, others: int) -> dict[str, Any]:
    """Compile, warm up, then blocks of a fifth of the time each; ``others`` are bytes that other sessions hold."""
    began = time.perf_counter()
    session.step()
    synchronize(session.device)
    first = time.perf_counter() - began
    guess = block(session, 3)
    if session.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    blocks = [block(session, max(1, round(seconds / 5 / guess))) for _ in range(5)]
    step, shape = statistics.median(blocks), session.shape
    speed = shape.batch * shape.context / step
    memory = (torch.cuda.max_memory_allocated() - others) / 2**30 if session.device == "cuda" else 0.0
    row = {"rung": name, "tokens_per_second": speed, "milliseconds": step * 1e3, "peak_gib": memory,
           "mfu": speed * flops_per_token(session) / PEAK, "first_step_seconds": first, "blocks": blocks,
           **dataclasses.asdict(session.rung)}
    print(f"{name:10} {speed:10,.0f} tokens/s  {step * 1e3:8.2f} ms  MFU {row['mfu']:.1%}  peak {memory:5.2f} GiB  "
          f"(first step {first:.1f} s, blocks {min(blocks) * 1e3:.2f} to {max(blocks) * 1e3:.2f})", flush=True)
    session.model.zero_grad(set_to_none=True)
    return row


def profile(name: str, session: Session) -> list[tuple[str, float, int]]:
    """Kernels of a step by time: name, milliseconds, calls."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    with profiled(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(3):
            session.step()
        torch.cuda.synchronize()
    rows = sorted(((e.key, e.self_device_time_total / 3e3, e.count // 3) for e in seen.key_averages()), key=lambda r: -r[1])
    print(f"\n{name}: {sum(r[1] for r in rows):.2f} ms of kernels a step")
    for key, milliseconds, calls in rows[:24]:
        print(f"  {milliseconds:7.3f} ms {calls:4d} x  {key[:130]}")
    return rows


def turns(plain: Session, best: Session, cycles: int, seconds: float) -> dict[str, Any]:
    """The ratio of their speeds, blocks in turns."""
    steps = max(1, round(seconds / block(plain, 3)))
    block(best, 3)
    logs = []
    for cycle in range(cycles):
        order = (plain, best, best, plain) if cycle % 2 == 0 else (best, plain, plain, best)
        found = [(session is best, block(session, steps)) for session in order]
        logs.append(0.5 * sum(math.log(s) * (-1 if ours else 1) for ours, s in found))
    ratio = ratio_interval(logs)
    print(f"\nbest over plain: {ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}], {cycles} cycles of A B B A, one process")
    return ratio.to_json()


def curves(sides: dict[str, Session], seeds: Sequence[int], held: Tensor) -> dict[str, Any]:
    """Losses of every side from every seed, and held-out loss at the end."""
    found: dict[str, Any] = {}
    for seed in seeds:
        for name, session in sides.items():
            session.reset(seed)
            losses = torch.stack([session.step() for _ in range(session.steps)]).tolist()
            found[f"{name}, seed {seed}"] = {"losses": losses, "held_out": session.score(held, 16)}
    window = max(1, len(losses) // 10)
    print(f"\nmean training loss of every {window} steps, then held-out loss")
    for name, run in found.items():
        means = [statistics.fmean(run["losses"][i:i + window]) for i in range(0, len(run["losses"]), window)]
        print(f"{name:16} {' '.join(f'{x:.3f}' for x in means)}  {run['held_out']:.4f}")
    return found


# -- the ladder -------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rungs", nargs="*", default=[name for name in (*BELOW, *ABOVE) if name != "autotune"],
                        help="`plain` is always measured; autotune, which compiles for minutes, only where it is named")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each rung")
    parser.add_argument("--limit", type=float, default=480.0, help="of everything: rungs that no longer fit are left out")
    parser.add_argument("--cycles", type=int, default=6)
    parser.add_argument("--steps", type=int, default=250, help="of each curve; 0 trains none")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--bytes", type=int, default=40_000_000, help="of text")
    parser.add_argument("--logits-bytes", type=int, default=LOGITS[0], help="at once, where the loss is fused")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50_304)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--profile", action="store_true", help="kernels of `plain` and of the best")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    began, LOGITS[0] = time.perf_counter(), arguments.logits_bytes
    torch._dynamo.config.recompile_limit = 64  # rungs share the model's code
    shape = Shape(arguments.vocabulary, arguments.width, arguments.layers, arguments.width // 64, arguments.context,
                  arguments.batch)
    tokens = encoded(source_text(arguments.bytes), shape.vocabulary).to(arguments.device)
    train, held = tokens[: -len(tokens) // 20], tokens[-len(tokens) // 20:]
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, {len(tokens):,} tokens, {int(tokens.max()) + 1:,} numbers, "
          f"text read in {time.perf_counter() - began:.1f} s", flush=True)
    # What must still fit after the rungs: turns and curves, at plain's speed of some 0.07 s a step.
    reserve = arguments.cycles * 4.0 + 2 * arguments.seeds * arguments.steps * 0.07 + 30.0
    found: dict[str, Any] = {"device": where, "torch": torch.__version__, "shape": dataclasses.asdict(shape), "rungs": []}

    def climb(name: str, rung: Rung) -> tuple[Session, float]:
        gc.collect()
        others = torch.cuda.memory_allocated() if arguments.device == "cuda" else 0
        session = Session(rung, shape, train, max(1, arguments.steps), arguments.device)
        found["rungs"].append(measure(name, session, arguments.seconds, others))
        return session, found["rungs"][-1]["tokens_per_second"]

    rung = Rung()
    for name, changes in BELOW.items():
        rung = dataclasses.replace(rung, **changes)
        if name in arguments.rungs and name != "plain":
            climb(name, rung)
            torch.compiler.reset()
    plain, speed = climb("plain", rung)
    best, best_speed = plain, speed
    for name, changes in ABOVE.items():
        if name not in arguments.rungs:
            continue
        if time.perf_counter() - began > arguments.limit - reserve - 60:
            print(f"{name:10} left out: no time")
            continue
        try:
            session, speed = climb(name, dataclasses.replace(best.rung, **changes))
        except Exception as error:  # a rung that this torch or GPU cannot climb must not lose the others
            print(f"{name:10} failed: {type(error).__name__}: {str(error)[:400]}", flush=True)
            found["rungs"].append({"rung": name, "error": str(error)})
            continue
        if speed > best_speed * 1.002:
            best, best_speed = session, speed
        del session
    if arguments.profile:
        found["kernels"] = {name: profile(name, session) for name, session in {"plain": plain, "best": best}.items()}
    if best is not plain:
        found["ratio"] = turns(plain, best, arguments.cycles, 1.0)
    if best is not plain and arguments.steps:
        found["curves"] = curves({"plain": plain, "best": best}, range(arguments.seeds), held)
    found["seconds"] = time.perf_counter() - began
    print(f"\nbest: {best.rung}; {found['seconds']:.0f} s in all")
    if arguments.json:
        arguments.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
