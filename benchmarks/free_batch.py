"""AOTInductor where the batch is free: weights of convolutions packed when compiled, against left plain, against eager fp32.

    python benchmarks/free_batch.py --models digits resnet18-64 >> benchmarks/compilers.md
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/free_batch.py ...  # as a processor with AVX2 alone

One request, one thread; all sides in the same rounds of fresh processes.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))  # a worker imports these files by their path
import auto
import zoo

from thrifty.measure.sides import ArtifactSide, CallableSide, Side
from thrifty.measure.timing import compare

LARGEST = 64


def row(model: str, rounds: int) -> str:
    from thrifty import Inductor, lower
    from thrifty.compilers import inductor

    entry = zoo.entries()[model]
    net, example = entry.make(), entry.example(1, 0)
    with tempfile.TemporaryDirectory() as place:
        sides: dict[str, Side] = {"eager": CallableSide(f"{Path(auto.__file__).resolve()}:eager_{model}")}
        for name in ("plain", "packed"):
            plain = mock.patch.object(inductor, "packed_for", return_value=contextlib.nullcontext())
            with plain if name == "plain" else contextlib.nullcontext():
                lower(net, Inductor(), Path(place) / name, example, shapes={i: {0: (1, LARGEST)} for i in range(len(example))})
            sides[name] = ArtifactSide(str(Path(place) / name), trust_native_code=True)
        done = compare(sides, "eager", [x.numpy() for x in example], rounds=rounds)
        size = {name: (Path(place) / name / inductor.FILE).stat().st_size for name in ("plain", "packed")}
    gain = done.ratio("packed", "plain")
    cells = [f"{done.figures[name].p50 * 1e3:.2f} ms" for name in ("eager", "plain", "packed")]
    between = auto.interval([gain.value, gain.low, gain.high]) if gain else "no interval"
    return f"| {model} | {' | '.join(cells)} | {between} | {size['plain'] / 1e6:.2f}, {size['packed'] / 1e6:.2f} MB |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["digits", "resnet18-64"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print("| model | eager fp32 | plain | packed | plain's time over packed's | bytes |\n| --- | --- | --- | --- | --- | --- |",
          flush=True)
    for model in arguments.models:
        print(row(model, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
