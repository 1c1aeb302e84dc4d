"""The harness's own overhead on the demo: wall-clock that is none of the work that was asked for.

    python benchmarks/overhead.py --study /tmp/overhead            # a fresh sweep of digits' recipes, then the table
    python benchmarks/overhead.py --study study --wall 412.3       # a sweep that was timed before

Work is what the user asked for: training, teachers, planning (calibration, search), compiling, scoring (evaluation),
process starts, timed calls. All else of the wall-clock, rehearsals included, is overhead.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from thrifty.measure.environment import environment, now
from thrifty.studies.store import Store

WORK = ("training", "calibration", "search", "compilation", "evaluation", "scoring", "start", "timing", "failure")


def spent_by_kind(store: Path) -> Counter[str]:
    """Seconds of every kind of charge that really ran."""
    found: Counter[str] = Counter()
    with Store.open(store) as opened:
        for charge in opened.spent().charges:
            found[charge.kind] += charge.seconds
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--workload", default="digits")
    parser.add_argument("--wall", type=float, help="seconds of a sweep that was run before; it is run now otherwise")
    arguments = parser.parse_args()
    wall = arguments.wall
    if wall is None:
        if arguments.study.exists():
            sys.exit(f"{arguments.study} exists; a resumed sweep would measure nothing")
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "thrifty", "sweep", arguments.workload,
                        "--study", str(arguments.study)], check=True)
        wall = time.perf_counter() - began
    seconds = spent_by_kind(arguments.study)
    work = sum(seconds[kind] for kind in WORK)
    print(f"{now()}, {environment()['cpu']}, {environment()['cores']} cores\n")
    print("| what | seconds | share |\n| --- | --- | --- |")
    for kind, value in seconds.most_common():
        print(f"| {kind} | {value:.1f} | {100 * value / wall:.1f}% |")
    print(f"| everything | {wall:.1f} | 100% |")
    print(f"| **overhead** (everything less work; rehearsals are part of it) | {wall - work:.1f} | "
          f"{100 * (wall - work) / wall:.1f}% |")


if __name__ == "__main__":
    main()
