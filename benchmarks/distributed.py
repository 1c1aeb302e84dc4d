"""Trainings spread over the GPUs of one host, against plain torch written by hand in the same run.

    python benchmarks/distributed.py --json distributed.json          # one process a GPU, started here
    python benchmarks/distributed.py --memory                         # the most bytes of a rank, predicted and taken
    python benchmarks/distributed.py --device cpu --ranks 2 --small   # the script itself, tried on a CPU

Two shapes of GPT-2 with an untied head (163 million and 1.42 billion parameters), rows of 1,024 random tokens, bf16 products
(autocast, or FSDP2's own policy with float32 reduction), blocks compiled one by one, fused AdamW. Of a pair both trainings are
built, then timed in turns A B B A A B B A; figures are tokens a second of all GPUs, medians of 4 turns. "+loss" is the head and
the loss in one operation, "+loss8" with its products in 8 bits; "fp8" is the method of that name on the blocks' layers.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from own_loss import OwnLoss
from ranks import started
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from thrifty import AdamW, Bf16, CrossEntropy, Fp8, Train
from thrifty.kernels.linear_loss import linear_cross_entropy
from thrifty.recipes.ranks import Alone
from thrifty.recipes.registry import method_class
from thrifty.training.distributed.parallel import local
from thrifty.training.distributed.replay import Group as Gathered
from thrifty.training.distributed.replay import grouped, peak, sizes
from thrifty.training.optimizers.optimizer import state_bytes
from thrifty.training.ranks import BOTH, Group
from thrifty.training.session import TrainingSession
from thrifty.training.trace import Trace, traced
from thrifty.workloads.workload import Forward, call_model


@dataclass(frozen=True)
class Shape:
    name: str
    width: int
    layers: int
    heads: int
    rows: int
    """A GPU."""
    vocabulary: int = 50_304
    context: int = 1024


SHAPES = (Shape("163M", 768, 12, 12, 32), Shape("1.42B", 2048, 24, 16, 8))
SMALL = (Shape("small", 64, 4, 4, 2, 512, 64),)
HELD = (Shape("163M", 768, 12, 12, 16), Shape("354M", 1024, 24, 16, 4))
"""Whose peaks are predicted: activations weigh most, parameters weigh most."""
PLAINLY = Train(clip=None, schedule="constant", warmup=0.0)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    """ids [batch, tokens] -> logits, or with targets the sum of their losses by the head and the loss in one operation."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(shape.vocabulary, shape.width), nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, ids: Tensor, target: Tensor | None = None, float8: bool = False) -> Tensor:
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x) if target is None else linear_cross_entropy(x, self.head.weight, target, float8=float8)


Step = Callable[[], Any]


class Bench:
    """One rank's side of every measurement."""

    def __init__(self, ranks: Any, device: str, steps: int, warm: int) -> None:
        self.ranks, self.device, self.steps, self.warm = ranks, device, steps, warm
        self.rows: list[dict[str, Any]] = []

    def model(self, shape: Shape) -> nn.Module:
        torch.manual_seed(0)
        with torch.device(self.device):
            return GPT(shape)

    def batch(self, shape: Shape) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(self.device).manual_seed(1 + self.ranks.index)
        ids = torch.randint(0, shape.vocabulary, (shape.rows, shape.context + 1), generator=generator, device=self.device)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    # -- plain torch ----------------------------------------------------------------------------------------------

    def plain(self, shape: Shape, kind: str) -> tuple[Step, nn.Module, torch.optim.Optimizer]:
        model: Any = self.model(shape)
        inner = model
        for block in model.blocks:
            block.compile()
        if kind.startswith("ddp"):
            model = DistributedDataParallel(model, gradient_as_bucket_view=True, find_unused_parameters=kind == "ddp-unreached")
        if kind.startswith("fsdp"):
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            for block in model.blocks:
                fully_shard(block, mp_policy=policy, reshard_after_forward=kind == "fsdp")
            fully_shard(model, mp_policy=policy)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
        ids, target = self.batch(shape)
        autocast = contextlib.nullcontext if kind.startswith("fsdp") else lambda: torch.autocast(self.device, torch.bfloat16)

        def step() -> Any:
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                loss = F.cross_entropy(model(ids).flatten(0, 1).float(), target.flatten())
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step, inner, optimizer

    # -- ours -----------------------------------------------------------------------------------------------------

    def ours(self, shape: Shape, text: str) -> tuple[Step, nn.Module, torch.optim.Optimizer]:
        name, _, fused = text.removesuffix(" one").partition("+")
        precision = Fp8() if name.endswith(" fp8") else Bf16()
        session = self.session(shape, name.removesuffix(" fp8"), [precision], one=text.endswith(" one"), fused=fused,
                               settings=Train(compiled=True, clip=None, schedule="constant", warmup=0.0))
        ids, target = self.batch(shape)
        return lambda: session.step(((ids,), target)), session.model, session.optimizer

    def session(self, shape: Shape, text: str, precision: list[Any], *, settings: Train, one: bool = False,
                fused: str = "") -> TrainingSession:
        """A training of ours; ``text`` is the stage and, after a colon, how it reshards."""
        name, _, value = text.partition(":")
        methods: list[Any] = [AdamW(lr=1e-4, weight_decay=0.1), *precision]
        if name != "alone":
            methods.append(method_class(name)(**({"reshard": value} if value else {})))
        forward: Forward = call_model
        if fused:
            forward = lambda model, batch: model(batch[0][0], batch[1], fused == "loss8")
        return TrainingSession(self.model(shape), methods, OwnLoss() if fused else CrossEntropy(), steps=10_000,
                               device=self.device, forward=forward, settings=settings,
                               ranks=Alone() if one or name == "alone" else self.ranks)

    # -- memory ---------------------------------------------------------------------------------------------------

    def traced(self, shape: Shape, precision: list[Any]) -> tuple[Trace, list[Gathered], float, int]:
        """One process's step, watched: its events, what is gathered together, and bytes of state and of a gathered parameter."""
        session = self.session(shape, "alone", precision, settings=PLAINLY)
        ids, target = self.batch(shape)
        session.step(((ids,), target))
        session.optimizer.zero_grad(set_to_none=True)
        groups, modules = grouped(session.model)
        trace = traced(session.model, groups, modules, lambda: session.step(((ids,), target)))
        return trace, sizes(groups), state_bytes(session.optimizer), session.products.itemsize

    def peaks(self, shape: Shape, precision: list[Any]) -> None:
        """The most bytes of a step, as one process's step says it and as each rank's allocator counted."""
        trace, numbers, state, gathered = self.traced(shape, precision)
        ids, target = self.batch(shape)
        gc.collect()
        before = torch.cuda.memory_allocated()  # once: after ddp what NCCL still holds goes while the next stage runs
        for text in ("alone", "zero1", "ddp", "zero2", "zero3:always"):
            gc.collect()
            torch.cuda.empty_cache()
            session = self.session(shape, text, precision, settings=PLAINLY)
            for _ in range(2):
                session.step(((ids,), target))
            session.optimizer.zero_grad(set_to_none=True)
            torch.cuda.reset_peak_memory_stats()
            session.step(((ids,), target))
            taken = torch.cuda.max_memory_allocated() - before
            del session
            stage = "" if text == "alone" else text.partition(":")[0]
            guess = peak(trace, numbers, stage, self.ranks.count if stage else 1, state, gathered=gathered)[1]
            products = "bf16" if precision else "fp32"
            self.rows.append({"shape": shape.name, "products": products, "stage": stage, "predicted": guess, "taken": taken})
            if self.ranks.index == 0:
                print(f"{shape.name} {products} {stage or 'one process':12} {guess / 1e9:7.3f} GB predicted "
                      f"{taken / 1e9:7.3f} taken {guess / taken - 1:+.1%}", flush=True)

    # -- timing ---------------------------------------------------------------------------------------------------

    def seconds(self, step: Step) -> float:
        for _ in range(2):  # what the side before left in caches is gone
            step()
        self.wait()
        began = time.perf_counter()
        for _ in range(self.steps):
            loss = step()
        float(loss)
        self.wait()
        return (time.perf_counter() - began) / self.steps

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.ranks.any(False)

    def run(self, shape: Shape, plans: list[tuple[str, str, int]]) -> None:
        """Sides (who, kind, GPUs) that are built together and timed in turns."""
        built = []
        for who, kind, gpus in plans:
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            torch._dynamo.reset()
            try:
                step, model, optimizer = (self.plain if who == "plain" else self.ours)(shape, kind)
                for _ in range(self.warm):
                    step()
                loss = float(step())
            except Exception:
                print(f"{shape.name} {who} {kind} failed on rank {self.ranks.index}", flush=True)
                traceback.print_exc()
                continue
            peak = torch.cuda.max_memory_allocated() - before if self.device == "cuda" else 0
            held = sum(local(p.data).nbytes for p in model.parameters())
            held += sum(local(x).nbytes for state in optimizer.state.values() for x in state.values() if x.numel() > 1)
            built.append((who, kind, gpus, step, peak, held, loss))
        turns: list[list[float]] = [[] for _ in built]
        for i in [*range(len(built)), *reversed(range(len(built)))] * 2:
            turns[i].append(self.seconds(built[i][3]))
        for (who, kind, gpus, _, peak, held, loss), seconds in zip(built, turns, strict=True):
            rate = gpus * shape.rows * shape.context / statistics.median(seconds)
            row = {"shape": shape.name, "who": who, "kind": kind, "gpus": gpus, "tokens_per_second": rate, "peak": peak,
                   "state_bytes": held, "loss": loss, "turns": seconds}
            self.rows.append(row)
            if self.ranks.index == 0:
                print(f"{shape.name:6} {who:6} {kind:14} {gpus} GPU  {rate / 1e3:9.1f} k tok/s  peak {peak / 2**30:6.1f} GiB  "
                      f"held {held / 2**30:6.2f}  "
                      f"loss {loss:.3f}  {[round(1e3 * x, 1) for x in seconds]} ms", flush=True)


PAIRS = (
    ("plain", "one", "alone", "zero3:auto one"),
    ("plain", "ddp", "ddp", "ddp+loss", "ddp+loss8"),
    ("plain", "fsdp", "zero3:always"),
    ("plain", "fsdp-kept", "zero3:never", "zero2", "zero2+loss8", "zero2 fp8+loss8"),
)


def rank(arguments: argparse.Namespace) -> None:
    """What each process does."""
    index, count, device = arguments.rank, arguments.ranks, arguments.device
    if device == "cuda":
        torch.cuda.set_device(index)
    with Group(dist.FileStore(arguments.meet, count), index, count, backend=BOTH if device == "cuda" else "gloo") as ranks:
        bench = Bench(ranks, device, arguments.steps, arguments.warm)
        if arguments.memory:
            torch.zeros(64, 64, device=device).matmul(torch.zeros(64, 64, device=device))  # the libraries' own memory is there
            for shape in HELD:
                for precision in ([], [Bf16()]):
                    bench.peaks(shape, precision)
            errors = [abs(row["predicted"] / row["taken"] - 1) for row in bench.rows]
            print(f"rank {index}: median error {statistics.median(errors):.1%}, worst {max(errors):.1%}", flush=True)
            if arguments.json:
                Path(f"{arguments.json}.{index}").write_text(json.dumps(bench.rows))
            return
        began = time.perf_counter()
        for shape in SMALL if arguments.small else SHAPES:
            if arguments.only and shape.name not in arguments.only:
                continue
            for who, kind, *others in PAIRS:
                if arguments.pairs and kind not in arguments.pairs:
                    continue
                if ranks.any(time.perf_counter() - began > arguments.limit):
                    print("out of time", flush=True)
                    break
                gpus = 1 if kind == "one" else count
                bench.run(shape, [(who, kind, gpus), *(("ours", other, gpus) for other in others)])
                if index == 0 and arguments.json:
                    Path(arguments.json).write_text(json.dumps({"torch": torch.__version__, "rows": bench.rows}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warm", type=int, default=4)
    parser.add_argument("--limit", type=float, default=1e9, help="seconds after which no new pair is begun")
    parser.add_argument("--only", nargs="*", help="shapes")
    parser.add_argument("--pairs", nargs="*", help="the plain sides whose pairs are timed; all by default")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--memory", action="store_true", help="predict and count the most bytes instead")
    parser.add_argument("--json")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--meet")
    arguments = parser.parse_args()
    if arguments.rank is not None:
        rank(arguments)
        return
    sys.exit(started(arguments.ranks, 4))


if __name__ == "__main__":
    main()
