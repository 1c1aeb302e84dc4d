"""Draw a study's frontier as an SVG: quality lost against speed, with intervals.

    python benchmarks/frontier_svg.py study docs/frontier.svg
"""

from __future__ import annotations

import math
import sys
from html import escape
from pathlib import Path

from thrifty.studies.frontier import Standing, frontier
from thrifty.studies.store import Store

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 420, 70, 20, 40, 60
STEP = 0.005
LOST = 0.05
"""A drop beyond it is off the picture."""
COLORS = {"front": "#0b6e4f", "tied": "#b7791f", "dominated": "#9aa0a6"}


def main() -> None:
    study, place = Path(sys.argv[1]), Path(sys.argv[2])
    with Store.open(study) as store:
        standings = tuple(s for s in frontier(store.trials()).standings
                          if s.trial.quality and s.trial.quality.drop.value <= LOST)
    place.write_text(draw(standings))


def draw(standings: tuple[Standing, ...]) -> str:
    """The picture: x is speed over eager fp32 (logarithmic), y the drop in quality (less is better, so down is worse)."""
    speeds = [s.trial.inference.speedup.value or 1.0 for s in standings if s.trial.inference]
    drops = [d for s in standings if s.trial.quality for d in (s.trial.quality.drop.low, s.trial.quality.drop.high)]
    left, right = math.log(min(*speeds, 1.0) / 1.15), math.log(max(speeds) * 1.15)
    low, high = min(drops), max(drops)

    def x(speed: float) -> float:
        return LEFT + (math.log(speed) - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def y(drop: float) -> float:
        return TOP + (drop - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    trial = standings[0].trial
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(trial.workload)}: quality lost against speed, 95% intervals; '
        f"{escape(str(trial.environment.get('cpu')))}, {trial.target['threads']} thread, {trial.created[:10]}</text>",
    ]
    parts += [f'<path d="M{x(speed):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#e8eaed"/>'
              f'<text x="{x(speed):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{speed:g}x</text>'
              for speed in (0.5, 1, 2, 5, 10, 20, 50) if left <= math.log(speed) <= right]
    parts += [f'<path d="M{LEFT} {y(i * STEP):.1f}H{WIDTH - RIGHT}" stroke="#e8eaed"/>'
              f'<text x="{LEFT - 8}" y="{y(i * STEP) + 4:.1f}" text-anchor="end">{100 * i * STEP:+.1f}pt</text>'
              for i in range(math.ceil(low / STEP), math.floor(high / STEP) + 1)]
    order = sorted(standings, key=lambda s: s.trial.inference.latency_p50 if s.trial.inference else 0)
    parts += [point(standing, x, y, -6 if i % 2 else 16) for i, standing in enumerate(order)]  # neighbours' labels part
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 12}" text-anchor="middle">speed over eager fp32; '
                 "labels: seconds it cost before serving; green: on the front, gray: dominated, amber: tied</text></svg>")
    return "\n".join(parts) + "\n"


def point(standing: Standing, x, y, below: int) -> str:  # type: ignore[no-untyped-def]
    """One trial: its point, its intervals, its cost, its recipe as a tooltip."""
    trial, color = standing.trial, COLORS[standing.status]
    if not trial.quality or not trial.inference or not trial.training or not trial.inference.speedup.value:
        return ""
    speed, drop = trial.inference.speedup, trial.quality.drop
    cx, cy = x(speed.value), y(drop.value)
    bars = f"M{cx:.1f} {y(drop.low):.1f}V{y(drop.high):.1f}"
    if speed.low and speed.high:
        bars += f"M{x(speed.low):.1f} {cy:.1f}H{x(speed.high):.1f}"
    return (f'<g><title>{escape(trial.recipe)}</title><path d="{bars}" stroke="{color}" stroke-opacity="0.5"/>'
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="5" fill="{color}"/>'
            f'<text x="{cx + 8:.1f}" y="{cy + below:.1f}" fill="{color}">{trial.training.seconds:.0f} s</text></g>')


if __name__ == "__main__":
    main()
