"""`python-lm` moved to another domain: full fine-tuning against adapters, in quality, memory and time.

    python benchmarks/adapters.py --device cuda --jobs 6 --base-steps 2000 --base-batch 32 --batch 8 >> benchmarks/training.md

The base learns the standard library's code (`python-lm`). The new domain is one project's code, the Python files of an
installed package, or prose, the descriptions of the packages that are installed (METADATA of every distribution). A fifth of
its files is held out to choose each way's learning rate on, with the first seed; another fifth is what the table shows, for
all seeds, several at a time. Memory and seconds of a step are measured at the end, with nothing beside: memory in processes of
their own, steps of all ways in turns.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import json
import math
import multiprocessing
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from thrifty import AdamW, BitsPerByte, CrossEntropy, Recipe, Train, TrainingSession
from thrifty.measure.environment import environment, now
from thrifty.measure.statistics import Interval, ratio_interval
from thrifty.training.loop import fit
from thrifty.training.peft.adapter import load_peft
from thrifty.workloads.embedded import python_lm, python_text
from thrifty.workloads.embedded.sources import bucket, data_folder

WAYS = {
    "full": ("train({})", (1e-4, 2e-4, 3e-4, 6e-4)),
    "lora": ("train(lora(rank=14), {})", (1e-3, 2e-3, 3e-3, 1e-2)),
    "lora, norms too": ("train(lora(rank=14, norms=4), {})", (7e-4, 1.4e-3, 2e-3, 4e-3)),
    "lora, embedding too": ("train(lora(rank=13, targets=\"embedding|query|key|value|out|up|down|head\"), {})",
                            (1e-3, 3e-3, 1e-2, 3e-2)),
    "rslora": ("train(lora(rank=14, variant=rslora), {})", (3e-4, 1e-3, 3e-3, 1e-2)),
    "dora": ("train(lora(rank=13, variant=dora), {})", (1e-3, 3e-3, 1e-2, 3e-2)),
    "pissa": ("train(lora(rank=14, variant=pissa), {})", (3e-4, 1e-3, 3e-3, 1e-2)),
    "lora over nf4": ("train(lora(rank=14, base=nf4), {})", (1e-3, 3e-3, 1e-2, 3e-2)),
    "ia3": ("train(ia3, {})", (3e-3, 1e-2, 3e-2, 1e-1)),
    "vera": ("train(vera, {})", (3e-3, 1e-2, 3e-2, 1e-1)),
}
PROSE = "prose"


@dataclass(frozen=True)
class Job:
    """One training: of a way, in a domain.

    Args:
        way, domain: names.
        windows: of the domain that are trained on.
        rate: learning rate.
        seed: of the order of the data and of what is drawn.
        steps, batch: as in `train`.
        base: file of the base's weights.
        device: "cpu" or "cuda".
    """

    way: str
    domain: str
    windows: int
    rate: float
    seed: int
    steps: int
    batch: int
    base: str
    device: str

    @property
    def phase(self) -> Train:
        (found,) = Recipe.parse(WAYS[self.way][0].format(f"adamw(lr={self.rate!r}), steps={self.steps}"))
        assert isinstance(found, Train)
        return found


# -- data -------------------------------------------------------------------------------------------------------


@functools.cache
def texts(domain: str) -> Mapping[str, str]:
    """File -> its text: descriptions of distributions, or the code of an installed package without its tests."""
    if domain == PROSE:
        found = {}
        for distribution in distributions():
            text = distribution.metadata.get_payload() or distribution.metadata.get("Description", "")
            name = distribution.metadata["Name"].lower()
            if isinstance(text, str) and len(text) >= 1000 and name != "thrifty":
                found[f"{name}-{distribution.version}"] = text.replace("\0", "")
        return dict(sorted(found.items()))
    spec = importlib.util.find_spec(domain)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"--domains {domain}: no such package is installed; name one that is, or {PROSE}")
    root = Path(spec.submodule_search_locations[0])
    files = {str(path.relative_to(root)): path for path in root.rglob("*.py") if "tests" not in path.parts}
    return {name: path.read_text(errors="replace").replace("\0", "") for name, path in sorted(files.items())}


def fingerprint(domain: str) -> str:
    """sha256 of names and texts: results compare only where it is the same."""
    return hashlib.sha256(json.dumps(texts(domain)).encode()).hexdigest()[:16]


class Domain(Dataset[tuple[Tensor, object]]):
    """Windows of 256 tokens of a split, as `python_lm.Windows` describes them; files go to splits by hash of the name.

    Args:
        domain: its name.
        split: "train" (three fifths), "validation" or "test".
        most: windows of one file.
        total: windows in all, of files in the order of their hash.
    """

    def __init__(self, domain: str, split: str, most: int, total: int) -> None:
        import tokenizers

        python_text.tokens("validation")  # the vocabulary is learnt where it is not yet
        folder = data_folder() / (f"python-lm-{python_text.VERSION}-{python_text.VOCABULARY}-"
                                  f"{python_text.fingerprint()[:16]}")
        model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        sizes = np.array(json.loads((folder / "bytes.json").read_text()))
        self.train, self.windows = split == "train", []
        names = sorted(texts(domain), key=lambda name: hashlib.sha256(name.encode()).digest())
        for file, name in enumerate(names):
            if {0: "validation", 1: "test"}.get(bucket(name, 5), "train") != split or len(self.windows) >= total:
                continue
            ids = np.array(model.encode(texts(domain)[name]).ids)
            for start in range(0, len(ids), python_lm.CONTEXT)[:most]:
                part = ids[start:start + python_lm.CONTEXT]
                inputs, target = python_lm.window(part, python_lm.CONTEXT)
                self.windows.append((inputs, target, int(sizes[part].sum()), file))

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, i: int) -> tuple[Tensor, object]:
        inputs, target, size, file = self.windows[i]
        return inputs, target if self.train else (target, size, file)


@functools.cache
def training_data(domain: str, windows: int) -> Domain:
    return Domain(domain, "train", 40, windows)


@functools.cache
def held_out(domain: str, split: str) -> Domain:
    return Domain(domain, split, 8, 600)


# -- one way ----------------------------------------------------------------------------------------------------


def make_base(place: Path, steps: int, batch: int, device: str) -> None:
    """Train the base on code, with the optimizer of the workload's reference, for so many steps."""
    workload = python_lm.workload
    torch.manual_seed(0)
    done = fit(workload.model(), [AdamW(lr=2e-3)], workload.train, workload.loss, settings=Train(steps=steps),
               batch_size=batch, device=device)
    safetensors.torch.save_model(done.model, str(place))


def load(place: str) -> nn.Module:
    model = python_lm.workload.model()
    safetensors.torch.load_model(model, place)
    return model


def bits(model: nn.Module, data: Any, device: str) -> float:
    """Bits a byte."""
    model = model.eval().to(device)
    with torch.no_grad():
        return BitsPerByte()(lambda inputs: model(*(x.to(device) for x in inputs)).cpu(), data).value


def one(job: Job) -> dict[str, Any]:
    """A training in this process."""
    loss, settings = CrossEntropy(ignore_index=python_lm.IGNORED), job.phase
    model, data = load(job.base).to(job.device), training_data(job.domain, job.windows)
    load_peft()  # what importing it takes is no part of training
    memory = Memory(job.device)
    done = fit(model, settings.methods, data, loss, settings=settings, batch_size=job.batch, seed=job.seed, device=job.device)
    peak = memory.added()
    shares = [claim.after for _, claim in done.claims if claim.what == "share of trainable parameters"]
    found = {"share": shares[0] if shares else 1.0, "peak": peak, "loss": statistics.fmean(x for _, x in done.history[-10:]),
             **{split: bits(done.model, held_out(job.domain, split), job.device) for split in ("validation", "test")}}
    print(job.domain, job.windows, job.way, job.rate, job.seed, found, file=sys.stderr, flush=True)
    return found


class Memory:
    """The most that is held, above what was held when this was made: of the GPU by torch, or of this process (Linux)."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of loading and tokens, is forgotten
            self.before = resident("VmRSS")

    def added(self) -> int:
        return (torch.cuda.max_memory_allocated() if self.cuda else resident("VmHWM")) - self.before


def resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


# -- time and state, side by side -------------------------------------------------------------------------------


class Side:
    """A way's training, step by step."""

    def __init__(self, job: Job) -> None:
        self.session = TrainingSession(load(job.base), list(job.phase.methods), CrossEntropy(ignore_index=python_lm.IGNORED),
                                       steps=1000, settings=job.phase, device=job.device)
        data = training_data(job.domain, job.windows)
        rows = [data[i] for i in range(job.batch)]
        self.batch: Any = ((torch.stack([x for x, _ in rows]),), torch.stack([y for _, y in rows]))  # type: ignore[misc]
        self.session.step(self.batch)

    def state_bytes(self) -> int:
        """Of gradients and of the optimizer's state."""
        gradients = sum(p.grad.nbytes for p in self.session.model.parameters() if p.grad is not None)
        return gradients + sum(t.nbytes for state in self.session.optimizer.state.values() for t in state.values())

    def seconds(self, steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            self.session.step(self.batch)
        if self.session.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def ratios(sides: Mapping[str, Side], rounds: int = 8, steps: int = 5) -> dict[str, Interval]:
    """Way -> seconds a step over full fine-tuning's, with a 95% interval of Student's t on logs, steps in turns."""
    for side in sides.values():
        side.seconds(2)
    taken: dict[str, list[float]] = {way: [] for way in sides}
    for i in range(rounds):
        for way in sides if i % 2 else reversed(sides):
            taken[way].append(math.log(sides[way].seconds(steps)))
    return {way: ratio_interval([a - b for a, b in zip(logs, taken["full"], strict=True)]) for way, logs in taken.items()}


def shown(found: Interval, change: bool = False) -> str:
    """A ratio with its interval, or as so many percent more or less; one value has none."""
    numbers = [f"{x - 1:+.2%}" if change else f"{x:.2f}" for x in (found.value, found.low, found.high) if x is not None]
    return numbers[0] + (f" [{', '.join(numbers[1:])}]" if numbers[1:] else "")


# -- the page ---------------------------------------------------------------------------------------------------


def workers(jobs: int, tasks: int | None = None) -> ProcessPoolExecutor:
    """Processes that train, each so many times."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads,
                               initargs=(max(1, (os.cpu_count() or 1) // jobs),), max_tasks_per_child=tasks)


def compare(domain: str, windows: int, given: argparse.Namespace, base: str, pool: ProcessPoolExecutor) -> dict[str, Job]:
    """Print the table of a domain and a size of it; way -> the job that was best."""
    steps = round(given.epochs * windows / given.batch)

    def job(way: str, rate: float, seed: int = 0) -> Job:
        return Job(way, domain, windows, rate, seed, steps, given.batch, base, given.device)

    grid = [(way, rate) for way in given.ways for rate in WAYS[way][1]]
    tried = dict(zip(grid, pool.map(one, [job(*pair) for pair in grid]), strict=True))
    best = {way: min(WAYS[way][1], key=lambda rate: tried[way, rate]["validation"]) for way in given.ways}
    more = [job(way, rate, seed) for way, rate in best.items() for seed in range(1, given.seeds)]
    found = list(pool.map(one, more))
    runs = {way: [tried[way, rate], *(r for j, r in zip(more, found, strict=True) if j.way == way)]
            for way, rate in best.items()}
    before = bits(load(base), held_out(domain, "test"), given.device)
    print(f"\n{domain}: {len(texts(domain))} files, sha256 {fingerprint(domain)}, {windows} windows to train on, {steps} steps; "
          f"{before:.4f} bits a byte before.\n")
    print("| way | lr | bits a byte, held out | against full, 95% |\n| --- | --- | --- | --- |")
    for way, rate in best.items():
        against = ratio_interval([math.log(a["test"] / b["test"]) for a, b in zip(runs[way], runs["full"], strict=True)])
        ends = ", ".join(f"{run['test']:.4f}" for run in runs[way])
        print(f"| {way} | {rate:g}{edge(rate, WAYS[way][1])} | {ends} | {shown(against, change=True)} |", flush=True)
    return {way: job(way, rate) for way, rate in best.items()}


def cost(jobs: Mapping[str, Job]) -> None:
    """Print the table of what a training takes, each alone."""
    with workers(1, tasks=1) as single:
        alone = dict(zip(jobs, single.map(one, jobs.values()), strict=True))
    sides = {way: Side(job) for way, job in jobs.items()}
    took = ratios(sides)
    print("\n| way | trainable | gradients and state, MB | memory added, MB | seconds a step against full, 95% |\n"
          "| --- | --- | --- | --- | --- |")
    for way in jobs:
        print(f"| {way} | 1/{1 / alone[way]['share']:.1f} | {sides[way].state_bytes() / 1e6:.1f} | "
              f"{alone[way]['peak'] / 1e6:.0f} | {shown(took[way])} |", flush=True)


def edge(rate: float, grid: tuple[float, ...]) -> str:
    """A mark where the best rate is the grid's first or last."""
    return " (edge)" if rate in (grid[0], grid[-1]) else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="weights of the base; trained now where there are none")
    parser.add_argument("--base-steps", type=int, default=600)
    parser.add_argument("--base-batch", type=int, default=4, help="windows a step")
    parser.add_argument("--domains", nargs="+", default=["sympy", "matplotlib", "transformers", PROSE], help="packages, or prose")
    parser.add_argument("--windows", type=int, nargs="+", default=[300, 1000], help="of a domain, that are trained on")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--batch", type=int, default=4, help="windows a step")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, where nothing is timed")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args()
    if "full" not in given.ways:
        sys.exit("--ways must name full: all others are compared with it")
    for domain in given.domains:
        texts(domain)
    place = given.base or Path(tempfile.mkdtemp()) / "base.safetensors"
    if not place.exists():
        make_base(place, given.base_steps, given.base_batch, given.device)
    facts, own = environment(), bits(load(str(place)), python_lm.workload.validation, given.device)
    print(f"## PEFT\n\n`python benchmarks/adapters.py {shlex.join(sys.argv[1:])}`, {now()}, "
          f"{torch.cuda.get_device_name() if given.device == 'cuda' else facts['cpu']}, torch {torch.__version__}. Base: "
          f"`python-lm`, {own:.4f} bits a byte on its own validation. "
          f"{given.epochs:g} epochs in steps of {given.batch} windows, {given.seeds} seed(s), learning rate chosen of "
          f"{len(WAYS['full'][1])}.", flush=True)
    with workers(given.jobs) as pool:
        for domain in given.domains:
            for windows in given.windows:
                jobs = compare(domain, windows, given, str(place), pool)
    cost(jobs)


if __name__ == "__main__":
    main()
