"""The post-training search beside uniform recipes on one workload: at equal measured latency, what is left of quality on test.

    python benchmarks/nas_post.py digits --targets 80 60 45 35 25 --keep /tmp/nas_digits

Two passes: the first, with --make, makes and scores what there is and times nothing (kept under --keep and THRIFTY_CACHE); the
second times, on a machine that does nothing else. Uniform recipes are of two kinds: transforms of the whole model, and every
block's own alternative of one kind, distilled like the search's. With --peers-python, a Python that has NNCF, the first pass has
NNCF quantize the same trained model too, uniformly and by its own search for accuracy; the second times its OpenVINO models.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import hashlib
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from peer_engines import MODELS, PEERS, WEIGHTS, once, theirs

from thrifty.artifacts import artifact
from thrifty.errors import ThriftyError
from thrifty.measure.environment import environment, now
from thrifty.measure.statistics import paired_drop
from thrifty.posttraining.nas.alternatives import AS_IT_IS, LEFT_OUT, transforms
from thrifty.posttraining.nas.choosing import OutOfReach, choose, uniform
from thrifty.posttraining.nas.limits import read
from thrifty.posttraining.nas.nas import Nas
from thrifty.posttraining.nas.search import Search, Settings
from thrifty.posttraining.nas.stopwatch import Stopwatch
from thrifty.posttraining.nas.table import Table
from thrifty.recipes.phases import Train
from thrifty.recipes.recipe import Recipe
from thrifty.runs import checkpoint, clock
from thrifty.runs.checkpoint import Checkpoint
from thrifty.runs.context import Measurements, Recall, make_context, training_setup
from thrifty.runs.journal import Journal
from thrifty.target import Target, cores
from thrifty.training.loop import train
from thrifty.workloads.loading import load_workload
from thrifty.workloads.quality import Scores
from thrifty.workloads.workload import Workload

UNIFORM = ("quantize(w8a8)", "quantize(w4a16, group=32)", "prune(ratio=0.25)", "prune(ratio=0.5)", "prune(ratio=0.75)",
           "low_rank(ratio=0.25)", "low_rank(ratio=0.5)", "prune(ratio=0.25) | quantize(w8a8)",
           "prune(ratio=0.5) | quantize(w8a8)", "prune(ratio=0.75) | quantize(w8a8)")


def trained(workload, keep: Path, seed: int) -> nn.Module:
    """The workload's model as its reference leaves it."""
    torch.manual_seed(seed)
    model = workload.model()
    if not workload.reference:
        return model.eval()
    path = keep / "reference.pt"
    if not path.exists():
        for phase in Recipe.parse(workload.reference):
            assert isinstance(phase, Train)
            model = train(training_setup(workload, phase, seed, "cpu", _no_teacher), model).model
        torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def _no_teacher(text: str) -> nn.Module:
    raise ThriftyError("this reference distils, and no teacher is at hand")


def peers(workload: Workload, model: nn.Module, keep: Path, python: str) -> None:
    """NNCF's models of the same weights."""
    name = next(name for name, entry in MODELS.items() if load_workload(entry.workload).source == workload.source)
    context = make_context(workload, Target(threads=1), 0, lambda _: None)
    kept = Checkpoint(workload.source, workload.reference)
    once(keep / "peers" / name / WEIGHTS, lambda out: checkpoint.save(kept, model, out))
    for kind in ("nncf", "nncf-accuracy"):
        try:
            once(keep / "peers" / name / kind,
                 functools.partial(theirs, model, context, [python, PEERS, kind, name, str(keep / "peers")]))
        except RuntimeError as error:
            print(f"{kind}: {' '.join(str(error).split())[-300:]}", flush=True)


def depths(table: Table, int8: str = "quantize(w8a8)") -> dict[str, tuple[str, ...]]:
    """Depth alone: the blocks that cost least on their own left out, one, two, ..., the others as they are, or in int8."""
    skippable = {block: next((row for row in rows if row.name == LEFT_OUT), None) for block, rows in table.blocks.items()}
    order = sorted((block for block, row in skippable.items() if row), key=lambda block: table.loss(skippable[block]))
    found = {}
    for count in range(1, len(order)):
        gone = set(order[:count])
        for rest in (AS_IT_IS, int8):
            has = {block for block, rows in table.blocks.items() if any(row.name == rest for row in rows)}
            found[f"{count} left out, the others {rest}"] = tuple(
                LEFT_OUT if block in gone else rest if block in has else AS_IT_IS for block in table.blocks)
    return found


def of_artifact(place: Path, workload: Workload, own: clock.Call) -> tuple[float, Scores]:
    """What a call takes for each second of the model as it is, and its scores on test, request by request."""
    with contextlib.closing(artifact.load(place, threads=1, trust_native_code=True)) as theirs:
        native = theirs.engine.native([x.numpy() for x in workload.example(1)])

        def answers(inputs: tuple[Tensor, ...]) -> Tensor:
            return torch.cat([theirs(*(x[i : i + 1] for x in inputs)) for i in range(len(inputs[0]))])

        taken = clock.ratio(functools.partial(theirs.engine.run, native), own, Target(threads=1))
        return taken, workload.quality(answers, workload.test)


def scores(workload: Workload, model: nn.Module, kept: Path) -> Scores:
    """On test; they do not depend on how quiet the machine is, and are kept."""
    path = kept / f"{hashlib.sha256(_values(model)).hexdigest()[:16]}.npz"
    if not path.exists():
        kept.mkdir(exist_ok=True)
        torch.set_num_threads(cores())  # nothing is timed meanwhile
        with torch.inference_mode():
            found = workload.quality(lambda inputs: answers(model, inputs), workload.test)
        torch.set_num_threads(1)
        np.savez(path, numerator=found.numerator, denominator=found.denominator, cluster=found.cluster)
    with np.load(path) as found:
        return Scores(found["numerator"], found["denominator"], found["cluster"])


def answers(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """The model's answers; those of texts under a mask, the second input, without what pads them, the short ones together."""
    if len(inputs) == 1:
        return model(*inputs)
    order = inputs[1].sum(1).argsort()
    found = [model(*(x[rows, : int(inputs[1][rows].sum(1).max())] for x in inputs)) for rows in order.split(8)]
    return torch.cat(found)[order.argsort()]


def _values(model: nn.Module) -> bytes:
    tensors = [x.detach().cpu().reshape(-1).view(torch.uint8) for x in (*model.parameters(), *model.buffers()) if x.numel()]
    return str(model).encode() + b"".join(x.numpy().tobytes() for x in tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload")
    parser.add_argument("--targets", type=float, nargs="+", default=[80, 60, 45, 35, 25],
                        help="percent of the compiled model's latency")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--judge", default="both")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--make", action="store_true", help="make and score alone, time nothing")
    parser.add_argument("--peers-python", help="with --make: of an environment that has NNCF")
    arguments = parser.parse_args()
    arguments.keep.mkdir(exist_ok=True, parents=True)
    torch.set_num_threads(1)
    workload = load_workload(arguments.workload)
    model = trained(workload, arguments.keep, 0)
    target = Target(threads=1)
    measured = Measurements(workload, target, "cpu", 0, Journal())
    recall = Recall(f"{arguments.workload}/nas benchmark")
    context = make_context(workload, target, 0, lambda event: print(getattr(event, "text", event), flush=True),
                           measurements=measured, recall=recall)
    if arguments.make:
        context = dataclasses.replace(context, time=None, recall=lambda key, compute: recall(f"{key}/made", compute))
    else:
        made = Recall(f"{arguments.workload}/nas benchmark")
        context = dataclasses.replace(context, recall=lambda key, compute: made(f"{key}/made", compute))
    method = Nas(engine=arguments.engine, judge=arguments.judge, steps=arguments.steps)
    texts = (*method.alternatives, "prune(ratio=0.75) | quantize(w8a8)", "low_rank(ratio=0.5) | quantize(w8a8)", "left out")
    settings = Settings(texts, "", arguments.engine, arguments.judge, arguments.steps, 300.0, False)
    began = time.perf_counter()
    search = Search(copy.deepcopy(model), settings, context)
    if not arguments.make:  # timings are taken anew: the first pass kept bytes in their place
        anew = dataclasses.replace(context, recall=lambda key, compute: compute())
        search._stopwatch = Stopwatch(anew, arguments.engine, False, search.model)
    with torch.no_grad():
        table = search.table()
    print(f"{now()}, {environment()['cpu']}, one thread, torch {torch.__version__}; {arguments.engine}\n")
    print(f"table: {sum(map(len, table.blocks.values()))} alternatives of {len(table.blocks)} blocks in "
          f"{time.perf_counter() - began:.0f} s")
    for block, found in table.refused.items():
        for name, why in found.items():
            print(f"  {block}: {name}: {why[:150]}")
    if arguments.make:
        if arguments.peers_python:
            peers(workload, model, arguments.keep, arguments.peers_python)
        return
    on_test = functools.partial(scores, workload, kept=arguments.keep / "scores")
    reference = on_test(model)
    print(f"as it is: {1e3 * table.own.seconds:.3f} ms, {reference.value:.4f} on test\n")
    with torch.no_grad():
        wholes = [whole for names in uniform(table) if (whole := search.whole(names)) is not None]
    table = dataclasses.replace(table, wholes=tuple(wholes))
    rivals: dict[str, tuple[float, Scores]] = {}
    for whole in wholes:
        kind = next(name for name in whole.names if name != AS_IT_IS)
        rivals[f"all blocks: {kind}"] = (whole.row.seconds, on_test(_built(search, whole.names)))
    for name, names in depths(table).items():
        with torch.no_grad():
            if (whole := search.whole(names)) is not None:
                rivals[name] = (whole.row.seconds, on_test(_built(search, names)))
    for text in UNIFORM:
        try:
            smaller = copy.deepcopy(model)
            with torch.no_grad():
                for phase in transforms(text):
                    plain = make_context(workload, target, 0, lambda _: None)
                    smaller = phase.build(smaller, phase.plan(copy.deepcopy(smaller), plain)).eval()
                rivals[text] = (search._stopwatch.seconds(smaller, workload.example(1)), on_test(smaller))
        except ThriftyError as error:
            print(f"{text}: {error}")
    if places := sorted((arguments.keep / "peers").glob("*/nncf*")):
        with clock.opened(copy.deepcopy(model), workload.example(1), target, arguments.engine) as own:
            for place in places:
                share, found = of_artifact(place, workload, own)
                rivals[f"{place.name} (OpenVINO)"] = (share * table.own.seconds, found)
    print("| uniform recipe | latency | on test |\n| --- | --- | --- |")
    for name, (seconds, found) in sorted(rivals.items(), key=lambda item: -item[1][0]):
        print(f"| {name} | {1e3 * seconds:.3f} ms | {found.value:.4f} |")
    print("\n| target | searched: latency | on test | drop from the reference | best uniform within that latency | on test | "
          "searched less uniform, 95% interval | predicted |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    for percent in arguments.targets:
        limits = read(f"latency<={percent:g}%")
        try:
            with torch.no_grad():
                chosen = choose(dataclasses.replace(table, wholes=()), limits, "loss", 6, search.whole, uniform(table))
        except OutOfReach as error:
            print(f"| {percent:g}% | {error} |")
            continue
        table = dataclasses.replace(table, wholes=tuple({w.names: w for w in (*table.wholes, *chosen.table.wholes)}.values()))
        found = on_test(_built(search, chosen.names))
        within = {name: pair for name, pair in rivals.items()
                  if pair[0] <= max(chosen.whole.row.seconds, percent / 100 * table.own.seconds)}
        drop = paired_drop(reference, found, higher_is_better=True)
        off = abs(table.predicted(chosen.names, "latency") / chosen.whole.row.seconds - 1)
        share = chosen.whole.row.seconds / table.own.seconds
        line = f"| {percent:g}% | {1e3 * chosen.whole.row.seconds:.3f} ms ({100 * share:.1f}%) | "
        line += f"{found.value:.4f} | {100 * drop.value:.1f} [{100 * drop.low:.1f}, {100 * drop.high:.1f}] | "
        if within:
            name, (seconds, best) = max(within.items(), key=lambda item: item[1][1].value)
            gain = paired_drop(found, best, higher_is_better=True)
            line += (f"{name}, {1e3 * seconds:.3f} ms | {best.value:.4f} | {100 * gain.value:+.1f} [{100 * gain.low:+.1f}, "
                     f"{100 * gain.high:+.1f}] | ")
        else:
            line += "none | | | "
        print(f"{line}{100 * off:.1f}% off |", flush=True)
        print(f"    {dict(zip(table.blocks, chosen.names, strict=True))}", flush=True)
    errors = sorted(table.errors())
    print(f"\nlatency table: median error {100 * float(np.median(errors)):.1f}% over {len(errors)} whole models, the largest "
          f"{100 * errors[-1]:.1f}%; search {time.perf_counter() - began:.0f} s")


def _built(search: Search, names) -> nn.Module:
    """A chosen model."""
    from thrifty.numerics import graph as graphs

    model = copy.deepcopy(search.model)
    made = {one.name: search.made[one.name][name] for one, name in zip(search.blocks, names, strict=True)}
    for name, module in search._modules(made).items():
        graphs.replace(model, name, module)
    return model.eval()


if __name__ == "__main__":
    main()
