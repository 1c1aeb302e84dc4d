"""Integer models against those of ONNX Runtime's quantizer, NNCF and Neural Compressor: batch 1, one thread.

    python -m venv PEERS && PEERS/bin/pip install torch==2.13.0 -e ".[minilm,workloads]" onnxruntime==1.32.0 onnx==1.23.2 \\
        onnxscript==0.7.2 openvino==2026.4.1 nncf==3.4.0 "neural-compressor[pt]==3.10"
    python benchmarks/quantization_peers.py prepare --peers-python PEERS/bin/python --store STORE
    python benchmarks/quantization_peers.py measure --store STORE --rounds 5 >> benchmarks/quantization_peers.md

`prepare` trains what comes untrained, has every tool make its engine (the others in an environment of their own,
`peer_quantizers.py`) and judges each engine on test; none of it is a timing, so the machine may be busy. `measure` times all
engines of a model and its eager fp32 module in the same rounds of fresh processes, on a machine that does nothing else. Both take
``--models``, keep in STORE what is done and go on there when called again; to have an engine made anew, remove its folder.

All engines are opened by the same code with the same options of their runtimes: what differs is the model alone. A row says
what the engine is, and, for another tool's, how the fastest of ours compares with it: in the same rounds, on the same examples.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from peer_engines import MODELS, OURS, engines, weights

from thrifty.artifacts import artifact
from thrifty.measure.comparison import Comparison, Reading
from thrifty.measure.environment import environment, now
from thrifty.measure.predict import predictor
from thrifty.measure.process import Worker
from thrifty.measure.sides import ArtifactSide, ModuleSide, Side
from thrifty.measure.statistics import Interval, paired_drop
from thrifty.measure.timing import compare
from thrifty.workloads.loading import load_workload
from thrifty.workloads.quality import Quality, Scores

EAGER = "eager"
DEFAULT = ("resnet18-64", "minilm", "digits", "resnet18-224")


def sides(name: str, store: Path) -> dict[str, Side]:
    """The eager module and every engine that is there."""
    found: dict[str, Side] = {EAGER: ModuleSide(MODELS[name].workload, str(weights(name, store)))}
    for place in sorted((store / name).iterdir()):
        if (place / "artifact.json").is_file() and not place.name.startswith("."):
            found[place.name] = ArtifactSide(str(place), trust_native_code=True)
    return found


def is_ours(engine: str) -> bool:
    return engine.startswith(OURS)


# -- quality -----------------------------------------------------------------------------------------------------


def judge(name: str, store: Path) -> None:
    """Score every engine on test that has not been: one request at a time, as it is timed."""
    workload = load_workload(MODELS[name].workload)
    for engine, side in sides(name, store).items():
        kept = store / name / f"{engine}.npz"
        if kept.is_file() or not MODELS[name].judged:
            continue
        with Worker(side) as worker:
            worker.load()
            found = workload.quality(predictor(worker, batch=1), workload.test)
        np.savez(kept, numerator=found.numerator, denominator=found.denominator, cluster=found.cluster)
        print(f"{name}: {engine}: {found.value:.4f}", file=sys.stderr, flush=True)


def scores(name: str, engine: str, store: Path) -> Scores | None:
    kept = store / name / f"{engine}.npz"
    if not kept.is_file():
        return None
    with np.load(kept) as found:
        return Scores(found["numerator"], found["denominator"], found["cluster"])


# -- time --------------------------------------------------------------------------------------------------------


def timed(name: str, store: Path, rounds: int) -> Comparison:
    """All engines in the same rounds, those kept of the same engines among them."""
    found, kept = sides(name, store), store / name / "rounds.jsonl"
    made = hashlib.sha256("".join((Path(side.directory) / "artifact.json").read_text() for side in found.values()
                                  if isinstance(side, ArtifactSide)).encode()).hexdigest()
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    readings = [Reading.from_json(r) for line in lines if line["made"] == made for r in line["readings"]]

    def keep(index: int, fresh: list[Reading]) -> None:
        with kept.open("a") as file:
            file.write(json.dumps({"made": made, "readings": [dataclasses.asdict(r) for r in fresh]}) + "\n")

    inputs = [x.numpy() for x in load_workload(MODELS[name].workload).example(1)]
    return compare(found, EAGER, inputs, rounds=rounds, kept=readings, on_round=keep)


# -- the table ---------------------------------------------------------------------------------------------------


def interval(found: Interval | None, digits: int = 2) -> str:
    if found is None:
        return ""
    ends = "" if found.low is None else f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return f"{found.value:.{digits}f}{ends}"


def lost(quality: Quality, reference: Scores | None, trial: Scores | None) -> Interval | None:
    """How much worse, in points where the measure is a share and in its own units where it is none."""
    if reference is None or trial is None:
        return None
    drop = paired_drop(reference, trial, quality.higher_is_better)
    scale = 100.0 if quality.higher_is_better else 1.0
    return Interval(drop.value * scale, *(None if x is None else x * scale for x in (drop.low, drop.high)), drop.n)


def rows(name: str, store: Path, done: Comparison) -> list[str]:
    quality = load_workload(MODELS[name].workload).quality
    best = min(filter(is_ours, done.sides), key=lambda engine: done.figures[engine].p50)
    judged = {engine: scores(name, engine, store) for engine in done.sides}
    found = []
    for engine in sorted(done.sides, key=lambda engine: done.figures[engine].p50):
        of = judged[engine]
        manifest = {} if engine == EAGER else artifact.read(store / name / engine)
        cells = [name, f"**{engine}**" if engine == best else engine, f"{done.figures[engine].p50 * 1e3:.3f}",
                 "" if engine == EAGER else interval(done.ratios[engine]),
                 "" if of is None else f"{of.value:.4f}", "" if engine == EAGER else interval(lost(quality, judged[EAGER], of)),
                 str(int(manifest["facts"]["integer_layers"])) if manifest else "",
                 f"{artifact.size(store / name / engine) / 1e6:.1f}" if manifest else ""]
        cells += ["", ""] if engine == EAGER or is_ours(engine) else [
            interval(done.ratio(best, engine), 3), interval(lost(quality, of, judged[best]))]
        found.append(f"| {' | '.join(cells)} |")
    return found


HEADER = ("| model | engine | ms | over eager | quality | lost against eager | integer layers | MB | speed of **ours** over it | "
          "quality **ours** loses against it |\n" + "| --- " * 10 + "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("prepare", "measure"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(DEFAULT))
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--peers-python", type=Path, help="of the environment that the other tools are installed in")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    store = given.store.resolve()
    if given.verb == "prepare":
        if given.peers_python is None or not given.peers_python.is_file():
            parser.error(f"prepare needs --peers-python PATH, a Python that has the other tools, but it is {given.peers_python}")
        for name in given.models:
            for engine, why in engines(name, store, given.peers_python).items():
                print(f"{name}: {engine}: {why}", file=sys.stderr, flush=True)
            judge(name, store)
        return
    if missing := [name for name in given.models if not any(filter(is_ours, sides(name, store)))]:
        parser.error(f"no engine of {', '.join(missing)} is in {store}: prepare them first")
    print(f"{now()}, {environment()['cpu']}, one thread, batch 1, {given.rounds} rounds of fresh processes, 95% intervals; "
          f"losses in points, of bits a byte in bits\n\n{HEADER}", flush=True)
    for name in given.models:
        done = timed(name, store, given.rounds)
        print("\n".join(rows(name, store, done)), flush=True)
        for warning in done.warnings:
            print(f"{name}: {warning}", file=sys.stderr)


if __name__ == "__main__":
    main()
