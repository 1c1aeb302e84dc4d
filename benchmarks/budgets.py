"""Whether a budget is kept and used, and whether the advice can be trusted: explorations as a user starts them, beside a clock.

    python benchmarks/budgets.py --out budgets.jsonl               # all 12, one after the other: 25 minutes
    python benchmarks/budgets.py --out budgets.jsonl --only rows   # those of one workload
    python benchmarks/budgets.py --out budgets.jsonl --table       # the table of what has run

Each exploration has a study and a cache of its own and is a process of its own; its wall-clock is that process's. Half of them
run while one spinning process a processor competes for the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thrifty.measure.environment import environment, now
from thrifty.target import cores

HERE = Path(__file__).resolve().parent
WORKLOADS = {"rows": str(HERE.parent / "examples" / "rows.py"), "stripes": "thrifty.testing:workload", "digits": "digits",
             "series": str(HERE / "series.py")}
RUNS = sorted(((name, seconds, busy) for name, budgets in (
    ("rows", (60, 120, 180)), ("series", (60, 90, 120)), ("stripes", (60, 90, 120)), ("digits", (120, 240, 300)))
    for seconds, busy in zip(budgets, (False, True, name in ("series", "digits")), strict=True)), key=lambda run: run[1])
"""(workload, seconds, whether other processes compete), the short ones first."""
LEAST, MOST = 0.85, 1.05


@contextlib.contextmanager
def competition(busy: bool) -> Iterator[None]:
    """One spinning process a processor, where asked for."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores() if busy else 0)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def explored(name: str, budget: int, busy: bool) -> dict[str, Any]:
    """One exploration: how long it took, what it said, what it recommends."""
    with tempfile.TemporaryDirectory(prefix="thrifty-budgets-") as place, competition(busy):
        load, began = os.getloadavg()[0], time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "thrifty", "explore", WORKLOADS[name], "--budget", f"{budget}s", "--study", f"{place}/study",
             "--json"], env={**os.environ, "THRIFTY_CACHE": f"{place}/cache"}, capture_output=True, text=True)
        wall = time.perf_counter() - began
    row: dict[str, Any] = {"at": now(), "workload": name, "budget": budget, "busy": busy, "load": [load, os.getloadavg()[0]],
                           "wall": wall, "code": done.returncode}
    try:
        study = json.loads(done.stdout)
    except ValueError:
        return {**row, "error": done.stderr[-2000:]}
    chosen = next((trial for trial in study["trials"] if trial["id"] == study["recommended"]), None)
    ended = study["ended"] or {}
    return {**row, "trials": len(study["trials"]), "failed": sum(trial["status"] == "failed" for trial in study["trials"]),
            "spent": study["spent"]["seconds"], "ended": ended.get("ended"), "why": ended.get("why"),
            "next": len(ended.get("next", ())), "printed": "stopped after" in done.stderr, "keep": study["keep"],
            "recipe": chosen and chosen["recipe"],
            "speedup": chosen and chosen["inference"]["speedup"], "drop": chosen and chosen["quality"]["drop"]}


def holds(row: dict[str, Any]) -> bool:
    """Whether it kept to its budget, used it, said why it ended, and recommends nothing that is not faster."""
    share = row["wall"] / row["budget"]
    kept = (0.0 if row.get("ended") == "nothing left" else LEAST) <= share <= MOST
    sound = row.get("recipe") is None or row["speedup"]["low"] > 1
    return bool(kept and row.get("why") and row.get("printed") and sound)


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| workload | budget, s | beside | wall-clock, s | share | trials | recommended | speed-up | why it ended | holds |",
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        speed = row.get("speedup")
        said = f"{speed['value']:.2f}x [{speed['low']:.2f}, {speed['high']:.2f}]" if speed else ""
        chosen = f"`{row['recipe']}`" if row.get("recipe") else ("the model as it is" if row.get("keep") else "nothing")
        lines.append(f"| {row['workload']} | {row['budget']} | {'a busy machine' if row['busy'] else ''} | {row['wall']:.1f} | "
                     f"{100 * row['wall'] / row['budget']:.0f}% | {row.get('trials', '')} | {chosen} | {said} | "
                     f"{row.get('why') or row.get('error', '')[-200:]} | {'yes' if holds(row) else '**no**'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines: one a run; what is there is not run again")
    parser.add_argument("--only", choices=WORKLOADS)
    parser.add_argument("--beside", choices=("nothing", "spinning"),
                        help="only the runs that have the machine alone, or only the others")
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    known = {(row["workload"], row["budget"], row["busy"]) for row in rows}
    for run in () if arguments.table else RUNS:
        if run in known or arguments.only not in (None, run[0]) or arguments.beside == ("nothing" if run[2] else "spinning"):
            continue
        rows.append(explored(*run))
        with arguments.out.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(f"\n{now()}, {environment()['cpu']}, {environment()['cores']} cores\n\n{table(rows)}")


if __name__ == "__main__":
    main()
