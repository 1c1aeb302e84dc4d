"""Time and steps to a fixed loss of a language model: optimizers tuned alike, then three seeds of the best of each.

    python benchmarks/optimizers_lm.py --devices cuda:0 --kept optimizers_lm.jsonl
    python benchmarks/optimizers_lm.py --devices cpu --tiny --steps 20 --kept tiny.jsonl

The model is `python-lm`'s architecture over bytes (12.9 million parameters in four layers of width 512), the text that
of the running Python's library and of torch; every tenth file is held out. Each optimizer gets the same number of
learning rates, one seed, the same steps, all else at its defaults: as in `thrifty tune`, bracketed around its default,
beyond the edge where the best stands there, then between the best's neighbours. The best of each is trained with seeds
that nothing was tuned on.

What is to be attained is the mean final loss of AdamW's best. It counts from the evaluation from which on none is above
it. Seconds are those of training: evaluations, compilation and the first steps of a process are apart. Trainings share
the device while learning rates are sought; the final ones run alone on it. Each is kept as soon as it ends, and the
same command goes on after the last.

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thrifty import TrainingSession
from thrifty.compilers.inprocess import compiled
from thrifty.errors import TrainingFailed
from thrifty.measure.statistics import Interval
from thrifty.recipes.phases import Train
from thrifty.search.attain import Attained, Trained, attained
from thrifty.search.contender import optimizer_of
from thrifty.search.line import FAILED, Line, best, inside
from thrifty.training.loop import Evaluation
from thrifty.training.mixed_precision import Bf16
from thrifty.workloads.embedded.python_lm import LanguageModel
from thrifty.workloads.embedded.sources import bucket, library_files, library_root
from thrifty.workloads.workload import CrossEntropy

WARM = 12
"""Steps by which a process has compiled all it needs: an estimate of Sophia's and two bases of SOAP's are in them."""


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
    """One training: tuning has seed 0."""

    optimizer: str
    exponent: float
    lr: float
    seed: int


# -- data ---------------------------------------------------------------------------------------------------------


def texts(setting: Setting) -> dict[str, np.ndarray]:
    """Split -> bytes of Python files, a NUL after each: the library's, then torch's, up to the setting's size."""
    package = Path(torch.__file__).parent
    files = [(library_root(), name) for name in library_files()]
    files += [(package, str(name)) for name in sorted(file.relative_to(package) for file in package.rglob("*.py"))]
    parts: dict[str, list[bytes]] = {"train": [], "held": []}
    room = setting.megabytes * 1e6
    for folder, name in files:
        text = (folder / name).read_bytes()
        room -= len(text)
        parts["train" if bucket(name, 10) else "held"].append(text + b"\0")
        if room < 0:
            break
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
        self.warm: set[str] = set()

    def fresh(self) -> LanguageModel:
        at = self.setting
        return LanguageModel(256, at.width, at.layers, max(1, at.width // 64), 4 * at.width, at.context)

    def run(self, job: Job) -> dict[str, Any]:
        """Points of (step, seconds of training, bits a byte on held-out text)."""
        if job.optimizer not in self.warm:
            self.warm.add(job.optimizer)
            self.points(dataclasses.replace(job, lr=1e-5), WARM)
        began = time.perf_counter()
        try:
            points, error = self.points(job, self.setting.steps), ""
        except TrainingFailed as failed:
            points, error = [], str(failed)
        name = torch.cuda.get_device_name() if self.device == "cuda" else "CPU"
        wall = time.perf_counter() - began
        return {"points": points, "error": error, "wall": wall, "device": name, "torch": torch.__version__}

    def points(self, job: Job, steps: int) -> list[tuple[int, float, float]]:
        torch.manual_seed(job.seed)
        self.model.load_state_dict(self.fresh().state_dict())
        method = dataclasses.replace(optimizer_of(job.optimizer), lr=job.lr)  # type: ignore[call-arg]
        session = TrainingSession(self.model, [method, Bf16()], CrossEntropy(), steps=self.setting.steps, device=self.device,
                      settings=Train(warmup=0.1))
        order, points, spent = torch.Generator().manual_seed(job.seed), [], 0.0
        last = len(self.train) - self.setting.context - 1
        starts = torch.randint(last, (steps, self.setting.batch), generator=order).to(self.device)
        self.wait()
        began = time.perf_counter()
        for step in range(1, steps + 1):
            session.step(windows(self.train, starts[step - 1], self.setting.context))
            if step % self.setting.every == 0 or step == steps:
                self.wait()
                spent += time.perf_counter() - began
                points.append((step, spent, self.bits(session.evaluated())))
                session.model.train()
                self.wait()
                began = time.perf_counter()
        return points

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
        end = f"{found['points'][-1][2]:.4f} bits a byte" if found["points"] else f"diverged: {found['error'][:60]}"
        print(f"{job.optimizer} lr {job.lr:g} seed {job.seed}: {end}, {found['wall']:.1f} s", file=sys.stderr)


def work(workers: list[Worker], following: Callable[[], Job | None], kept: Kept) -> None:
    """Keep every worker busy until there is no job left; ``following`` blocks while there may yet be one."""
    failures: queue.Queue[BaseException] = queue.Queue()

    def feed(worker: Worker) -> None:
        try:
            while (job := following()) is not None:
                kept.add(job, worker.run(job))
        except BaseException as error:
            failures.put(error)
            raise

    threads = [threading.Thread(target=feed, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)
            if not failures.empty():
                raise failures.get()


class Search:
    """Which learning rate next, of which optimizer: the one with the fewest trials, so that all are done together."""

    def __init__(self, optimizers: list[str], trials: int, kept: Kept) -> None:
        self.lines = {name: Line("lr", optimizer_of(name).lr) for name in optimizers}  # type: ignore[attr-defined]
        self.trials, self.kept, self.mutex = trials, kept, threading.Lock()
        self.begun: dict[str, set[float]] = {name: set(self.known(name)) for name in optimizers}

    def known(self, name: str) -> dict[float, float]:
        """{exponent: quality} of what was tried."""
        return {job.exponent: trained(job, self.kept).quality
                for job in list(self.kept.found) if job.optimizer == name and job.seed == 0}

    def following(self) -> Job | None:
        while True:
            with self.mutex:
                waiting = [name for name in self.lines if len(self.begun[name]) < self.trials]
                if not waiting:
                    return None
                for name in sorted(waiting, key=lambda name: len(self.begun[name])):
                    exponent = self.next(name)
                    if exponent is not None:
                        self.begun[name].add(exponent)
                        return Job(name, exponent, self.lines[name].value(exponent), 0)
                if all(set(self.known(name)) == self.begun[name] for name in waiting):
                    return None  # nothing is left to halve
            time.sleep(0.05)

    def next(self, name: str) -> float | None:
        """The three of the bracket at once; after them what the search says, once all that was begun is known."""
        for exponent in (0.0, -1.0, 1.0):
            if exponent not in self.begun[name]:
                return exponent
        known = self.known(name)
        return self.lines[name].following(known) if set(known) == self.begun[name] else None


def finals(search: Search, seeds: int) -> Iterator[Job]:
    """The best of each optimizer with seeds that nothing was tuned on, the seeds in turn."""
    for seed in range(1, seeds + 1):
        for name, line in search.lines.items():
            known = search.known(name)
            if max(known.values()) > FAILED:
                yield Job(name, best(known), line.value(best(known)), seed)


# -- the table ----------------------------------------------------------------------------------------------------


def trained(job: Job, kept: Kept) -> Trained:
    line = kept.found[job]
    return Trained(job.seed, tuple(Evaluation(step, seconds, 0.0, -bits) for step, seconds, bits in line["points"]),
                   line["wall"], error=line["error"])


def report(search: Search, seeds: int, kept: Kept, setting: Setting) -> None:
    jobs = list(finals(search, seeds))
    runs = {name: [trained(job, kept) for job in jobs if job.optimizer == name] for name in search.lines}
    baseline = runs.get("adamw", [])
    if not baseline or any(not run.curve for run in baseline):
        raise SystemExit("AdamW is what the others are compared with: name it among the optimizers")
    goal = statistics.fmean(run.quality for run in baseline)
    first = kept.found[jobs[0]]
    print(f"\n{first['device']}, torch {first['torch']}, {setting}; to {-goal:.4f} bits a byte, looked at every "
          f"{setting.every} steps\n")
    print("| optimizer | learning rates tried: bits a byte, seed 0 | optimum |\n| --- | --- | --- |")
    for name, line in search.lines.items():
        known = search.known(name)
        tried = "; ".join(f"{line.value(exponent):g}: {f'{-quality:.4f}' if quality > FAILED else 'diverged'}"
                          for exponent, quality in sorted(known.items()))
        where = f"{line.value(best(known)):g}" + ("" if inside(known) else ", at the edge: not tuned")
        print(f"| `{name}` | {tried} | {where} |")
    print("\n| optimizer | bits a byte at the end | fewer than AdamW's by | attained by | steps | seconds "
          "| speed against AdamW | seconds in all |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, found in runs.items():
        if found:
            print(row(name, found, attained(found, baseline, goal)))


def row(name: str, runs: list[Trained], found: Attained) -> str:
    bits = ", ".join(f"{-run.quality:.4f}" if run.curve else "diverged" for run in runs)
    whole = ", ".join(f"{run.curve[-1].seconds:.2f}" for run in runs if run.curve)
    speed = f"{interval(found.speedup, '.2f')} {found.verdict}" if found.speedup else "not attained by all"
    return (f"| `{name}` | {bits} | {interval(found.change, '.4f')} | {found.attained} of {len(found.seeds)} "
            f"| {interval(found.steps, '.0f')} "
            f"| {interval(found.seconds, '.2f')} | {speed} | {whole} |")


def interval(found: Interval | None, digits: str) -> str:
    if found is None:
        return "-"
    ends = "no interval" if found.low is None or found.high is None else f"{found.low:{digits}}, {found.high:{digits}}"
    return f"{found.value:{digits}} [{ends}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", "--device", nargs="+", default=["cuda:0"], help="cuda:0 cuda:1, or cpu")
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "sophia", "muon", "soap"])
    for name, default, says in (
        ("trials", 5, "learning rates of each optimizer"), ("seeds", 3, "of the final trainings"),
        ("sharing", 3, "trainings at once on a device while learning rates are sought"),
        ("steps", 400, ""), ("batch", 64, ""), ("context", 512, ""), ("layers", 4, ""), ("width", 512, ""),
        ("every", 10, "steps between two evaluations"), ("windows", 256, "of held-out text"),
        ("megabytes", 24, "of text"),
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
    on_cpu = given.devices == ["cpu"]
    setting = Setting(given.steps, given.batch, given.context, given.layers, given.width, given.every, given.windows,
                      given.megabytes, given.eager or given.tiny)
    compare(given, setting, 1 if on_cpu else given.sharing)


def compare(given: argparse.Namespace, setting: Setting, sharing: int) -> None:
    for name in given.optimizers:
        rehearse(name)
    with tempfile.TemporaryDirectory() as folder:
        whole = hashlib.sha256(json.dumps(dataclasses.asdict(setting)).encode())
        for split, ids in texts(setting).items():
            np.save(Path(folder, f"{split}.npy"), ids)
            whole.update(ids.tobytes())
        kept = Kept(given.kept, whole.hexdigest()[:12])
        search = Search(given.optimizers, given.trials, kept)
        start = functools.partial(Worker, setting=setting, folder=Path(folder))
        workers = [start(device) for _ in range(sharing) for device in given.devices]
        work(workers, search.following, kept)
        alone, rest = workers[: len(given.devices)], workers[len(given.devices):]
        for worker in rest:
            worker.end()
        waiting, mutex = iter([job for job in finals(search, given.seeds) if job not in kept.found]), threading.Lock()

        def following() -> Job | None:
            with mutex:
                return next(waiting, None)

        work(alone, following, kept)
        for worker in alone:
            worker.end()
        report(search, given.seeds, kept, setting)


def rehearse(name: str) -> None:
    """One step on a small model: what is not installed is told before anything is trained."""
    session = TrainingSession(LanguageModel(256, 16, 1, 1, 16, 8), [optimizer_of(name)], CrossEntropy(), steps=1)
    session.step(((torch.zeros(2, 8, dtype=torch.int64),), torch.zeros(2, 8, dtype=torch.int64)))


if __name__ == "__main__":
    main()
