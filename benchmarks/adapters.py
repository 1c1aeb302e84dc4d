"""`python-lm` moved to another domain: full fine-tuning against adapters, in quality, memory and time.

    python benchmarks/adapters.py --base-steps 600 --steps 300 >> benchmarks/training.md

The base learns the standard library's code (`python-lm`); the new domain is prose: the descriptions of the packages that
are installed here (METADATA of every distribution), a fifth of them held out. Each way of training runs in a process of
its own, whose peak resident memory is compared with that before its first step; steps are timed again side by side, in turns.
The best learning rate of each way is chosen on a third of the steps.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import Dataset

from thrifty import AdamW, BitsPerByte, CrossEntropy, Recipe, Train
from thrifty.environment import environment, now
from thrifty.measure.student import student_quantile
from thrifty.training.loop import Fit, fit
from thrifty.training.peft.adapter import load_peft
from thrifty.workloads import python_lm, python_text
from thrifty.workloads.sources import bucket, data_folder

WAYS = {
    "full": ("train({})", (3e-4, 1e-3)),
    "lora": ("train(lora(rank=14), {})", (3e-3, 1e-2)),
    "rslora": ("train(lora(rank=14, variant=rslora), {})", (1e-3, 3e-3)),
    "dora": ("train(lora(rank=13, variant=dora), {})", (3e-3, 1e-2)),
    "pissa": ("train(lora(rank=14, variant=pissa), {})", (1e-3, 3e-3)),
    "lora over nf4": ("train(lora(rank=14, base=nf4), {})", (3e-3, 1e-2)),
    "ia3": ("train(ia3, {})", (1e-2, 3e-2)),
    "vera": ("train(vera, {})", (1e-2, 3e-2)),
}
BATCH = 4


# -- data -------------------------------------------------------------------------------------------------------


@functools.cache
def texts() -> dict[str, str]:
    """Distribution -> its description, those of a kilobyte or more."""
    found = {}
    for distribution in distributions():
        text = distribution.metadata.get_payload() or distribution.metadata.get("Description", "")
        name = distribution.metadata["Name"].lower()
        if isinstance(text, str) and len(text) >= 1000 and name != "thrifty":
            found[f"{name}-{distribution.version}"] = text.replace("\0", "")
    return dict(sorted(found.items()))


def fingerprint() -> str:
    """sha256 of names and texts: results compare only where it is the same."""
    return hashlib.sha256(json.dumps(texts()).encode()).hexdigest()


class Prose(Dataset[tuple[Tensor, object]]):
    """Windows of 256 tokens of a split, as `python_lm.Windows` describes them.

    Args:
        split: "train" or "validation": a fifth of the packages, by hash of the name.
        most: windows of one package.
    """

    def __init__(self, split: str, most: int) -> None:
        import tokenizers

        python_text.tokens("validation")  # the vocabulary is learnt where it is not yet
        folder = data_folder() / (f"python-lm-{python_text.VERSION}-{python_text.VOCABULARY}-"
                                  f"{python_text.fingerprint()[:16]}")
        model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        sizes = np.array(json.loads((folder / "bytes.json").read_text()))
        self.train, self.windows = split == "train", []
        chosen = [text for name, text in texts().items() if (bucket(name, 5) == 0) == (split == "validation")]
        for file, encoded in enumerate(model.encode_batch(chosen)):
            ids = np.array(encoded.ids)
            for start in range(0, len(ids), python_lm.CONTEXT)[:most]:
                part = ids[start:start + python_lm.CONTEXT]
                inputs, target = python_lm.window(part, python_lm.CONTEXT)
                self.windows.append((inputs, target, int(sizes[part].sum()), file))

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, i: int) -> tuple[Tensor, object]:
        inputs, target, size, file = self.windows[i]
        return inputs, target if self.train else (target, size, file)


# -- one way ----------------------------------------------------------------------------------------------------


def phase(way: str, rate: float, steps: int) -> Train:
    """The train phase of one way."""
    (found,) = Recipe.parse(WAYS[way][0].format(f"adamw(lr={rate!r}), steps={steps}"))
    assert isinstance(found, Train)
    return found


def base(place: Path, steps: int) -> None:
    """Train the base on code, as the workload's reference does, for so many steps."""
    workload = python_lm.workload
    torch.manual_seed(0)
    done = fit(workload.model(), [AdamW(lr=2e-3)], workload.train, workload.loss, settings=Train(steps=steps), batch_size=BATCH)
    safetensors.torch.save_model(done.model, str(place))


def load(place: Path) -> torch.nn.Module:
    model = python_lm.workload.model()
    safetensors.torch.load_model(model, str(place))
    return model


def bits(model: torch.nn.Module) -> float:
    """Bits a byte on the held-out packages."""
    with torch.no_grad():
        return BitsPerByte()(lambda inputs: model.eval()(*inputs), Prose("validation", 8)).value


def one(way: str, rate: float, steps: int, place: Path, seed: int) -> dict[str, Any]:
    """Train one way in this process."""
    settings, loss = phase(way, rate, steps), CrossEntropy(ignore_index=python_lm.IGNORED)
    model, data = load(place), Prose("train", 40)
    load_peft()  # what importing it takes is no part of training
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of loading and tokens, is forgotten
    before = resident("VmRSS")
    done = fit(model, settings.methods, data, loss, settings=settings, batch_size=BATCH, seed=seed)
    after = resident("VmHWM")
    shares = [claim.after for _, claim in done.claims if claim.what == "share of trainable parameters"]
    return {"share": shares[0] if shares else 1.0, "peak": after - before, "seconds": done.seconds / steps,
            "bits": bits(done.model), "loss": statistics.fmean(x for _, x in done.history[-10:])}


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM the most since it was reset (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def state_bytes(way: str, place: Path) -> int:
    """Bytes of gradients and of the optimizer's state after a step."""
    session = session_of(way, place)
    session.step(batch())
    gradients = sum(p.grad.nbytes for p in session.model.parameters() if p.grad is not None)
    return gradients + sum(t.nbytes for state in session.optimizer.state.values() for t in state.values())


def session_of(way: str, place: Path) -> Fit:
    settings = phase(way, WAYS[way][1][0], 1000)
    return Fit(load(place), list(settings.methods), CrossEntropy(ignore_index=python_lm.IGNORED), steps=1000,
               settings=settings)


@functools.cache
def batch() -> tuple[tuple[Tensor], Tensor]:
    rows = [Prose("train", 1)[i] for i in range(BATCH)]
    return (torch.stack([x for x, _ in rows]),), torch.stack([y for _, y in rows])  # type: ignore[misc]


def ratios(ways: list[str], place: Path, rounds: int = 6, steps: int = 3) -> dict[str, tuple[float, float, float]]:
    """Way -> seconds a step over full fine-tuning's, with a 95% interval of Student's t on logs, steps in turns."""
    sessions = {way: session_of(way, place) for way in ways}
    for session in sessions.values():
        session.step(batch())
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for i in range(rounds):
        for way in ways if i % 2 else reversed(ways):
            began = time.process_time()
            for _ in range(steps):
                sessions[way].step(batch())
            taken[way].append(math.log(time.process_time() - began))
    found = {}
    for way in ways:
        logs = [a - b for a, b in zip(taken[way], taken["full"], strict=True)]
        margin = student_quantile(0.975, rounds - 1) * statistics.stdev(logs) / math.sqrt(rounds)
        centre = statistics.fmean(logs)
        found[way] = (math.exp(centre), math.exp(centre - margin), math.exp(centre + margin))
    return found


# -- the page ---------------------------------------------------------------------------------------------------


def in_a_process(way: str, rate: float, steps: int, place: Path, seed: int) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, "--one", way, "--rate", repr(rate), "--steps", str(steps), "--base",
                           str(place), "--seed", str(seed)], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(way, rate, steps, found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="weights of the base; trained now where there are none")
    parser.add_argument("--base-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    place = given.base or Path(tempfile.mkdtemp()) / "base.safetensors"
    if given.one:
        print(json.dumps(one(given.one, given.rate, given.steps, place, given.seed)))
        return
    if "full" not in given.ways:
        sys.exit("--ways must name full: all others are compared with it")
    if not place.exists():
        base(place, given.base_steps)
    before = bits(load(place))
    rows = {}
    for way in given.ways:
        tried = {rate: in_a_process(way, rate, max(1, given.steps // 3), place, 0)["bits"] for rate in WAYS[way][1]}
        rate = min(tried, key=lambda r: tried[r])
        rows[way] = rate, [in_a_process(way, rate, given.steps, place, seed) for seed in range(given.seeds)]
    took = ratios(given.ways, place)
    full = statistics.fmean(run["bits"] for run in rows["full"][1])
    print(f"## PEFT\n\n`python benchmarks/adapters.py {' '.join(sys.argv[1:])}`, {now()}, {environment()['cpu']}, "
          f"torch {torch.__version__}. Base: `python-lm`, {given.base_steps} steps on code, {before:.4f} bits a byte on the "
          f"prose before. {len(texts())} descriptions of packages, sha256 {fingerprint()[:16]}; {given.steps} steps of {BATCH} "
          f"windows, {given.seeds} seed(s), learning rate chosen of two.\n")
    print("| way | lr | trainable | bits a byte | against full | gradients and state, MB | peak memory added, MB | "
          "seconds a step against full, 95% |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    for way, (rate, runs) in rows.items():
        mean = statistics.fmean(run["bits"] for run in runs)
        ratio, low, high = took[way]
        print(f"| {way} | {rate:g} | 1/{1 / runs[0]['share']:.1f} | {mean:.4f} | {100 * (mean / full - 1):+.2f}% | "
              f"{state_bytes(way, place) / 1e6:.1f} | {max(run['peak'] for run in runs) / 1e6:.0f} | "
              f"{ratio:.2f} [{low:.2f}, {high:.2f}] |")


if __name__ == "__main__":
    main()
