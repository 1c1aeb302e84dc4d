"""Time and steps to a fixed loss of a language model: each optimizer at the best of its grid, then over seeds.

    python benchmarks/optimizers_lm.py --device cuda:0 --kept optimizers_lm.jsonl
    python benchmarks/optimizers_lm.py --steps 4800 --every 50 --grid "adamw(lr=0.002, beta2=0.95)" "sophia(lr=0.0008)"
    python benchmarks/optimizers_lm.py --device cpu --tiny --steps 20 --seeds 1 --kept tiny.jsonl

The model is `python-lm`'s architecture over bytes (12.9 million parameters in four layers of width 512), the text that
of the running Python's library and of what is installed beside it, in an order by hash; every tenth file is held out.
Steps of 64 x 512 bytes, cosine after a warm-up of a tenth, gradients clipped to 1. A grid holds what stands in `train(...)`,
a text each; the default is in `GRID`. Each is trained with one seed, and the best of each optimizer with seeds that nothing
was chosen on; an optimizer with one text has nothing to choose.

What is to be attained is the mean final loss of AdamW's best. It counts from the evaluation from which on none is above
it. Trainings share the device (`--sharing`), so that seconds are not theirs: they are steps times the seconds of a step, which
blocks of steps with nothing else on the device say, the optimizers in turns. Each training is kept as soon as it ends, and the
same command goes on after the last; with `--limit` none begins that would not end within so many seconds.

SOAP, Lion and Schedule-Free need pytorch-optimizer, pure Python: unpack its wheel into a folder named in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import math
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from source_tokens import source_text
from torch import Tensor

from thrifty import TrainingSession
from thrifty.compilers.inprocess import compiled
from thrifty.errors import TrainingFailed
from thrifty.measure.statistics import Interval
from thrifty.recipes.phases import Train
from thrifty.recipes.recipe import Recipe
from thrifty.search.attain import Attained, Trained, attained
from thrifty.search.contender import training_of
from thrifty.search.line import FAILED
from thrifty.training.loop import Evaluation
from thrifty.training.mixed_precision import Bf16
from thrifty.workloads.embedded.python_lm import LanguageModel
from thrifty.workloads.workload import CrossEntropy

WARM = 12
"""Steps by which a process has compiled all it needs: an estimate of Sophia's and two bases of SOAP's are in them."""
TIMED, ROUNDS = 50, 3
"""Steps of a block that is timed, and blocks of each optimizer."""
GRID = (
    *(f"adamw(lr={lr}, beta2={beta2}, weight_decay=0.1)" for lr, beta2 in (
        (0.001, 0.95), (0.002, 0.95), (0.004, 0.95), (0.002, 0.999))),
    *(f"adamw(lr={lr}, beta2=0.95, weight_decay=0.1), warmup=0.25" for lr in (0.001, 0.002)),
    *(f"sophia(lr={lr}, gamma={gamma}), warmup=0.25" for lr, gamma in (
        (0.0004, 0.2), (0.0006, 0.2), (0.0008, 0.2), (0.0012, 0.2), (0.0008, "auto"))),
    *(f"muon(lr={lr})" for lr in (0.008, 0.016)),
    *(f"soap(lr={lr}, weight_decay=0.1)" for lr in (0.003, 0.006)),
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What trainings must have in common to be compared."""

    steps: int
    batch: int
    context: int
    layers: int
    width: int
    every: int
    windows: int
    megabytes: int
    eager: bool


@dataclasses.dataclass(frozen=True)
class Job:
    """One training, or a block of steps that is timed.

    Args:
        text: what stands in ``train(...)``.
        seed: 0 to choose by; the number of the block.
        timed: whether it is a block.
    """

    text: str
    seed: int
    timed: bool = False

    @property
    def phase(self) -> Train:
        return training_of(Recipe.parse(f"train({self.text})"))

    @property
    def optimizer(self) -> str:
        """The name of its method."""
        (method,) = self.phase.methods
        return method.name


# -- data ---------------------------------------------------------------------------------------------------------


def texts(setting: Setting) -> dict[str, np.ndarray]:
    """Split -> bytes of Python files, a NUL after each, up to the setting's size; every tenth file is held out."""
    files = [text.encode() + b"\0" for text in source_text(int(setting.megabytes * 1e6))]
    parts = {"held": files[::10], "train": [file for i, file in enumerate(files) if i % 10]}
    return {split: np.frombuffer(b"".join(found), np.uint8) for split, found in parts.items()}


def windows(ids: Tensor, starts: Tensor, context: int) -> tuple[tuple[Tensor, ...], Tensor]:
    rows = ids[starts[:, None] + torch.arange(context + 1, device=ids.device)].long()
    return (rows[:, :-1],), rows[:, 1:]


# -- one process --------------------------------------------------------------------------------------------------


class Bench:
    """A device with the data and one model, compiled once, that every training begins anew."""

    def __init__(self, device: str, setting: Setting, folder: Path) -> None:
        self.device, self.setting = device, setting
        self.train, self.held = (torch.from_numpy(np.load(folder / f"{split}.npy")).to(device)
                                 for split in ("train", "held"))
        self.model = self.fresh().to(device)
        if not setting.eager:
            torch._dynamo.config.automatic_dynamic_shapes = False
            compiled(self.model, dynamic=False)

    def fresh(self) -> LanguageModel:
        at = self.setting
        return LanguageModel(256, at.width, at.layers, max(1, at.width // 64), 4 * at.width, at.context)

    def run(self, job: Job) -> dict[str, Any]:
        """Points of (step, bits a byte on held-out text); of a block, the seconds of a step."""
        began = time.perf_counter()
        name = torch.cuda.get_device_name() if self.device == "cuda" else "CPU"
        found: dict[str, Any] = {"points": [], "error": "", "device": name, "torch": torch.__version__}
        try:
            if job.timed:
                found["pace"] = self.pace(job)
            else:
                found["points"] = self.points(job)
        except TrainingFailed as failed:
            found["error"] = str(failed)
        return {**found, "wall": time.perf_counter() - began}

    def session(self, job: Job) -> TrainingSession:
        torch.manual_seed(job.seed)
        self.model.load_state_dict(self.fresh().state_dict())
        return TrainingSession(self.model, [*job.phase.methods, Bf16()], CrossEntropy(), steps=self.setting.steps,
                               device=self.device, settings=job.phase.but(methods=()))

    def starts(self, seed: int) -> Tensor:
        """Where the windows of every step begin."""
        last = len(self.train) - self.setting.context - 1
        order = torch.Generator().manual_seed(seed)
        return torch.randint(last, (self.setting.steps, self.setting.batch), generator=order).to(self.device)

    def points(self, job: Job) -> list[tuple[int, float]]:
        session, points = self.session(job), []
        for step, starts in enumerate(self.starts(job.seed), 1):
            session.step(windows(self.train, starts, self.setting.context))
            if step % self.setting.every == 0 or step == self.setting.steps:
                points.append((step, self.bits(session.evaluated())))
                session.model.train()
        return points

    def pace(self, job: Job) -> float:
        """Seconds of a step, after those that compile."""
        session, starts = self.session(job), self.starts(job.seed)
        for step in range(WARM + TIMED):
            if step == WARM:
                self.wait()
                began = time.perf_counter()
            session.step(windows(self.train, starts[step % len(starts)], self.setting.context))
        self.wait()
        return (time.perf_counter() - began) / TIMED

    @torch.no_grad()
    def bits(self, model: torch.nn.Module) -> float:
        """Bits a byte, on windows evenly spread over the held-out text."""
        model.eval()
        count, context = self.setting.windows, self.setting.context
        starts = torch.linspace(0, len(self.held) - context - 1, count, device=self.device, dtype=torch.float64).long()
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        for part in starts.split(self.setting.batch):
            batch = windows(self.held, part, context)
            with torch.autocast(self.device, dtype=torch.bfloat16):
                logits = model(*batch[0])
            total += CrossEntropy()(logits, batch)[0]
        return float(total) / (count * context * math.log(2))

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def serve(device: str, setting: Setting, folder: Path) -> None:
    """Jobs from stdin, results to stdout, one a line."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no result
    bench = Bench(device, setting, folder)
    for line in sys.stdin:
        print(json.dumps(bench.run(Job(**json.loads(line)))), file=out, flush=True)


# -- all processes ------------------------------------------------------------------------------------------------


class Worker:
    """A process that trains on one device, and the thread that feeds it."""

    def __init__(self, device: str, setting: Setting, folder: Path) -> None:
        kind, _, index = device.partition(":")
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": index} if index else {})}
        given = json.dumps([kind, dataclasses.asdict(setting), str(folder)])
        self.process = subprocess.Popen([sys.executable, __file__, "--serve", given], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env=environment)

    def run(self, job: Job) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {job} ended with exit code {self.process.wait()}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Kept:
    """Trainings of one setting in a file of JSON lines, which may hold others' too."""

    def __init__(self, file: Path, identity: str) -> None:
        self.file, self.identity, self.mutex = file, identity, threading.Lock()
        whole = (file.read_text() if file.is_file() else "").rpartition("\n")[0]  # what follows was being written
        if file.is_file():
            file.write_text(whole + "\n" * bool(whole))
        self.found: dict[Job, dict[str, Any]] = {
            Job(**line["job"]): line for line in map(json.loads, whole.splitlines()) if line["setting"] == identity}

    def add(self, job: Job, found: dict[str, Any]) -> None:
        line = {"setting": self.identity, "job": dataclasses.asdict(job), **found}
        with self.mutex, self.file.open("a") as out:
            print(json.dumps(line), file=out, flush=True)
            self.found[job] = line
        end = f"{found['points'][-1][1]:.4f} bits a byte" if found["points"] else found["error"][:60]
        print(f"{job.text} seed {job.seed}: {1e3 * found['pace']:.2f} ms a step" if job.timed else
              f"{job.text} seed {job.seed}: {end}, {found['wall']:.1f} s", file=sys.stderr)

    def walls(self, optimizer: str, timed: bool) -> float:
        """The longest that one of its trainings (or blocks) took; 0 where none is known."""
        return max((line["wall"] for job, line in list(self.found.items())
                    if (job.optimizer, job.timed) == (optimizer, timed)), default=0.0)


def work(jobs: Iterable[Job], start: Callable[[], Worker], workers: int, kept: Kept, until: float) -> None:
    """Do what is not kept yet, so many at once; none begins that would not end in time."""
    waiting, mutex = [job for job in jobs if job not in kept.found], threading.Lock()
    failures: queue.Queue[BaseException] = queue.Queue()

    def following() -> Job | None:
        with mutex:
            for job in waiting:
                if time.monotonic() + 1.1 * kept.walls(job.optimizer, job.timed) < until:
                    waiting.remove(job)
                    return job
        return None

    def feed() -> None:
        try:
            if (job := following()) is None:
                return
            worker = start()
            while job is not None:
                kept.add(job, worker.run(job))
                job = following()
            worker.end()
        except BaseException as error:
            failures.put(error)
            raise

    threads = [threading.Thread(target=feed, daemon=True) for _ in range(min(workers, len(waiting)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)
            if not failures.empty():
                raise failures.get()


def of_each(grid: Sequence[str]) -> dict[str, list[str]]:
    """{optimizer: its texts}, in the grid's order."""
    found: dict[str, list[str]] = {}
    for text in grid:
        found.setdefault(Job(text, 0).optimizer, []).append(text)
    return found


def trials(grid: Sequence[str]) -> list[Job]:
    """One seed of every text, for optimizers that have more than one."""
    return [Job(text, 0) for texts in of_each(grid).values() if len(texts) > 1 for text in texts]


def chosen(grid: Sequence[str], kept: Kept) -> dict[str, str]:
    """{optimizer: its best text}; without those of which no training came to its end, or not yet."""
    found = {}
    for name, texts in of_each(grid).items():
        done = {text: trained(Job(text, 0), kept).quality for text in texts if Job(text, 0) in kept.found}
        if len(texts) == 1:
            found[name] = texts[0]
        elif len(done) == len(texts) and max(done.values()) > FAILED:
            found[name] = max(done, key=done.__getitem__)
    return found


# -- the table ----------------------------------------------------------------------------------------------------


def trained(job: Job, kept: Kept, pace: float = 1.0) -> Trained:
    """A training, a step of which takes so long alone."""
    line = kept.found[job]
    return Trained(job.seed, tuple(Evaluation(step, step * pace, 0.0, -bits) for step, bits in line["points"]),
                   line["wall"], error=line["error"])


def report(grid: Sequence[str], seeds: int, kept: Kept, setting: Setting) -> None:
    first = next(iter(kept.found.values()))
    print(f"\n{first['device']}, torch {first['torch']}, {setting}\n")
    best = chosen(grid, kept)
    if jobs := [job for job in trials(grid) if job in kept.found]:
        print("| tried, seed 0 | bits a byte |\n| --- | --- |")
        for job in jobs:
            bits, mark = -trained(job, kept).quality, "**" if best.get(job.optimizer) == job.text else ""
            print(f"| `{job.text}` | {mark}{f'{bits:.4f}' if math.isfinite(bits) else 'diverged'}{mark} |")
    runs = {name: [trained(job, kept, pace(text, kept)) for seed in range(1, seeds + 1)
                   if (job := Job(text, seed)) in kept.found] for name, text in best.items()}
    baseline = runs.get("adamw", [])
    if not baseline or any(not run.curve for run in baseline):
        print("\nNo final training of AdamW, which the others are compared with, came to its end")
        return
    goal = statistics.fmean(run.quality for run in baseline)
    print(f"\nTo {-goal:.4f} bits a byte, looked at every {setting.every} steps:\n\n| recipe | bits a byte at the end "
          "| mean | fewer than AdamW's by | attained by | steps | ms a step, alone | seconds | speed against AdamW |\n"
          "| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, found in runs.items():
        shared = {run.seed for run in found} & {run.seed for run in baseline}
        mine, theirs = ([run for run in some if run.seed in shared] for some in (found, baseline))
        if mine:
            print(row(best[name], mine, attained(mine, theirs, goal), paces(best[name], kept)))


def paces(text: str, kept: Kept) -> list[float]:
    """Seconds of a step in each block."""
    return [line["pace"] for job, line in kept.found.items() if job.timed and job.text == text]


def pace(text: str, kept: Kept) -> float:
    """Seconds of a step, alone; NaN where no block was timed yet."""
    return statistics.median(paces(text, kept) or [math.nan])


def row(text: str, runs: list[Trained], found: Attained, blocks: list[float]) -> str:
    bits = ", ".join(f"{-run.quality:.4f}" if run.curve else "diverged" for run in runs)
    mean = f"{-statistics.fmean(run.quality for run in runs):.4f}" if all(run.curve for run in runs) else "-"
    speed = f"{interval(found.speedup, '.2f')} {found.verdict}" if found.speedup else "not attained by all"
    timed = f"{1e3 * statistics.median(blocks):.2f} ({1e3 * min(blocks):.2f} to {1e3 * max(blocks):.2f})" if blocks else "-"
    return (f"| `{text}` | {bits} | {mean} | {interval(found.change, '.4f')} | {found.attained} of {len(found.seeds)} "
            f"| {interval(found.steps, '.0f')} | {timed} | {interval(found.seconds, '.2f')} | {speed} |")


def interval(found: Interval | None, digits: str) -> str:
    if found is None:
        return "-"
    ends = "no interval" if found.low is None or found.high is None else f"{found.low:{digits}}, {found.high:{digits}}"
    return f"{found.value:{digits}} [{ends}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="or cpu")
    parser.add_argument("--grid", nargs="+", default=GRID, help="what stands in train(...), a text each")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which no training may end")
    for name, default, says in (
        ("seeds", 3, "of the final trainings; 0 for none"),
        ("sharing", 3, "trainings at once on the device"),
        ("steps", 1600, ""), ("batch", 64, ""), ("context", 512, ""), ("layers", 4, ""), ("width", 512, ""),
        ("every", 20, "steps between two evaluations"), ("windows", 1024, "of held-out text"),
        ("megabytes", 64, "of text"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=says)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--tiny", action="store_true", help="two layers of width 64, to see that it runs")
    parser.add_argument("--kept", type=Path, default=Path("optimizers_lm.jsonl"))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        device, setting, folder = json.loads(given.serve)
        serve(device, Setting(**setting), Path(folder))
        return
    if given.tiny:
        vars(given).update(batch=8, context=64, layers=2, width=64, windows=16, megabytes=2, every=min(5, given.steps))
    setting = Setting(given.steps, given.batch, given.context, given.layers, given.width, given.every, given.windows,
                      given.megabytes, given.eager or given.tiny)
    compare(given, setting, 1 if given.device == "cpu" else given.sharing, time.monotonic() + given.limit)


def compare(given: argparse.Namespace, setting: Setting, sharing: int, until: float) -> None:
    grid = list(dict.fromkeys(map(rehearsed, given.grid)))
    with tempfile.TemporaryDirectory() as folder:
        whole = hashlib.sha256(json.dumps(dataclasses.asdict(setting)).encode())
        for split, ids in texts(setting).items():
            np.save(Path(folder, f"{split}.npy"), ids)
            whole.update(ids.tobytes())
        kept = Kept(given.kept, whole.hexdigest()[:12])
        start = functools.partial(Worker, given.device, setting, Path(folder))
        work(trials(grid), start, sharing, kept, until)
        seeds = range(1, given.seeds + 1)
        best = list(chosen(grid, kept).values())
        blocks = [Job(text, number, timed=True) for number in range(ROUNDS) for text in best if seeds]
        work(blocks, start, 1, kept, until)
        work([Job(text, seed) for seed in seeds for text in best], start, sharing, kept, until)
        if kept.found:
            report(grid, given.seeds, kept, setting)


def rehearsed(text: str) -> str:
    """The text, after one step on a small model: what is wrong or not installed is told before anything else."""
    phase = Job(text, 0).phase
    session = TrainingSession(LanguageModel(256, 16, 1, 1, 16, 8), [*phase.methods], CrossEntropy(), steps=1)
    session.step(((torch.zeros(2, 8, dtype=torch.int64),), torch.zeros(2, 8, dtype=torch.int64)))
    return text


if __name__ == "__main__":
    main()
