"""Every model of the zoo through every compiler: is what comes out right, and how long does it take to make?

    python benchmarks/compilers.py cells --models gru mlp --compilers onnxruntime xla >> benchmarks/compilers.md

A cell is a process of its own: it lowers the model, writes the artifact, loads it as a server would and compares it with the
model, on the example and on random requests of odd batch sizes (and of another number of tokens, where that may vary). A
backend that cannot let all of these dimensions vary is tried with fewer; the table says which vary. Each cell is kept in
a file of JSON lines as soon as it is known, so that a run that was killed goes on where it stood.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMPILERS = ("inductor", "onnxruntime", "openvino", "xla", "tvm")
ODD = (3, 7, 13)
SHORTER = 7
VARYING = ("batch+tokens", "batch", "nothing")


def cell(model: str, compiler: str) -> dict[str, Any]:
    """One model through one compiler, in this process."""
    import torch
    import zoo

    from thrifty.target import cores

    torch.set_num_threads(cores())
    entry, said = zoo.entries()[model], ""
    for varying in VARYING if entry.tokens else VARYING[1:]:
        try:
            return {"varying": varying, **one(entry, compiler, varying), "because": said}
        except Exception as error:  # of whatever kind a backend raises: the table says it
            said = said or f"{type(error).__name__}: {error}".split("\n")[0][:400]
    return {"error": said}


def one(entry: Any, compiler: str, varying: str) -> dict[str, Any]:
    """Lower, write, load, compare; raises where anything of it fails."""
    import torch

    from thrifty import Context
    from thrifty.artifacts import artifact
    from thrifty.compilers.parity import ParityError
    from thrifty.engines.parity import relative_error, tolerance
    from thrifty.recipes.registry import method_class

    net, example = entry.make(), entry.example(1, 0)
    context = Context(example=example, calibration=lambda: iter(()), shapes=entry.shapes(varying))
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        directory, began = Path(place), time.perf_counter()
        lowered = method_class(compiler)().lower(net, example, directory, context)  # type: ignore[attr-defined]
        seconds = time.perf_counter() - began
        artifact.write(directory, lowered, {}, [x.numpy() for x in example], [leaves(net(*example))[0].numpy()])
        engine = artifact.load(directory, trust_native_code=True)
        requests = [example] if varying == "nothing" else [entry.example(n, n) for n in (1, *ODD)]
        if varying == "batch+tokens":
            requests.append(tuple(x[:, :SHORTER] if i in entry.tokens else x for i, x in enumerate(entry.example(3, 3))))
        worst = max(relative_error(a.numpy(), b.numpy()) for request in requests
                    for a, b in zip(leaves(net(*request)), leaves(engine(*request)), strict=True))
    if not worst <= tolerance(lowered.precision):
        raise ParityError(f"the outputs differ by {worst:.3g}")
    return {"worst": worst, "seconds": seconds}


def leaves(outputs: Any) -> list[Any]:
    """An engine's or a model's outputs as a list."""
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def apart(model: str, compiler: str, seconds: float) -> dict[str, Any]:
    """A cell in a process of its own."""
    command = [sys.executable, __file__, "cell", model, compiler]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:g} s"}
    if done.returncode:
        return {"error": f"its process ended with {done.returncode}: {done.stderr.strip()[-300:]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(cells: dict[tuple[str, str], dict[str, Any]], models: list[str], compilers: list[str]) -> str:
    """A row a model, a column a compiler; under it the share that is right, and what the others say."""
    lines = ["| model | " + " | ".join(compilers) + " |", "| --- |" + " --- |" * len(compilers)]
    notes: list[str] = []
    for model in models:
        shown = []
        for compiler in compilers:
            found = cells.get((model, compiler))
            if found is None:
                shown.append("")
            elif "error" in found:
                notes.append(f"{len(notes) + 1}. {model}, {compiler}: {found['error']}")
                shown.append(f"**error** ({len(notes)})")
            else:
                note = ""
                if found["because"]:
                    notes.append(f"{len(notes) + 1}. {model}, {compiler}, as only {found['varying']} may vary: "
                                 f"{found['because']}")
                    note = f" ({len(notes)})"
                shown.append(f"{found['worst']:.0e}, {found['varying']}, {found['seconds']:.0f} s{note}")
        lines.append(f"| {model} | " + " | ".join(shown) + " |")
    right = [f"{sum('worst' in cells.get((m, c), {}) for m in models)}/{len(models)}" for c in compilers]
    return "\n".join([*lines, "| right | " + " | ".join(right) + " |", "", *notes])


def read(place: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The cells of a file, the last line of each; a line that was cut off by a kill is left out."""
    found = {}
    for line in place.read_text().splitlines() if place.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found[row.pop("model"), row.pop("compiler")] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    many = verbs.add_parser("cells", help="the whole table, or a part of it")
    many.add_argument("--models", nargs="+", help="of the zoo; all where none is named")
    many.add_argument("--compilers", nargs="+", default=list(COMPILERS))
    many.add_argument("--kept", type=Path, default=Path("cells.jsonl"), help="where cells are kept; those in it are not run")
    many.add_argument("--again", choices=("errors", "all"), help="run these although they are kept")
    many.add_argument("--timeout", type=float, default=600, help="seconds a cell may take")
    many.add_argument("--json", action="store_true", help="print JSON lines in the place of the table")
    single = verbs.add_parser("cell", help="one cell, in this process, as JSON")
    single.add_argument("model")
    single.add_argument("compiler")
    given = parser.parse_args()
    if given.verb == "cell":
        print(json.dumps(cell(given.model, given.compiler)))
        return
    import zoo

    from thrifty.measure.environment import environment, now

    models = given.models or list(zoo.entries())
    if unknown := set(models) - set(zoo.entries()):
        sys.exit(f"the zoo has no {', '.join(sorted(unknown))}; it has {', '.join(zoo.entries())}")
    known = read(given.kept)
    for model in models:
        for compiler in given.compilers:
            kept = known.get((model, compiler))
            if kept is not None and given.again != "all" and not (given.again == "errors" and "error" in kept):
                continue
            known[model, compiler] = found = apart(model, compiler, given.timeout)
            print(model, compiler, found, file=sys.stderr, flush=True)
            with given.kept.open("a") as file:
                file.write(json.dumps({"model": model, "compiler": compiler, **found}) + "\n")
    if given.json:
        for (model, compiler), found in known.items():
            print(json.dumps({"model": model, "compiler": compiler, **found}))
        return
    facts = environment()
    print(f"## Cells\n\n`python benchmarks/compilers.py {' '.join(sys.argv[1:])}`, {now()}, {facts['cpu']}, "
          + ", ".join(f"{name} {facts[name]}" for name in ("torch", "onnxruntime", "openvino", "jax") if name in facts)
          + ". The largest relative Frobenius error of the outputs, the dimensions that vary, seconds to compile.\n")
    print(table(known, models, given.compilers))


if __name__ == "__main__":
    main()
