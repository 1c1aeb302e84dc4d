"""The model card of an artifact: what it is, how it was made, what was measured, how to load it."""

from __future__ import annotations

from pathlib import Path

from thrifty.artifacts.manifest import read
from thrifty.studies.trial import Trial
from thrifty.units import fixed, plainly


def write_card(directory: Path, trial: Trial) -> None:
    """Write the model card: what it is, how it was made, what was measured, how to load it."""
    manifest = read(directory)
    lines = [f"# {trial.workload}: `{trial.recipe}`", "", *figure_lines(trial)]
    shapes = ", ".join(f"{x['name']} {x['dtype']} {x['shape']}" for x in manifest["inputs"])
    flags = ", trust_native_code=True" if manifest.get("native") else ""
    lines += [f"- engine: {manifest['engine']} ({manifest['precision']}); needs: {', '.join(manifest['needs'])}",
              f"- inputs: {shapes}", "", "```python", "import thrifty", "",
              f'model = thrifty.load("."{flags})', "outputs = model(*inputs)", "```", ""]
    (directory / "README.md").write_text("\n".join(lines))


def figure_lines(trial: Trial) -> list[str]:
    """What was measured, as a model card lists it."""
    quality, inference, training = trial.quality, trial.inference, trial.training
    lines = []
    if quality is not None:
        drop, low, high = (fixed(value, sign="+") for value in (quality.drop.value, quality.drop.low, quality.drop.high))
        lines += [f"- {quality.name} on {quality.split}: {fixed(quality.value)} (reference {fixed(quality.baseline)}; drop "
                  f"{drop}, 95% interval {low} to {high})"]
    if inference is not None:
        ratio = inference.speedup
        interval = "one pair, no interval" if ratio.low is None else f"95% interval {ratio.low:.2f} to {ratio.high:.2f}"
        lines += [f"- {inference.scenario}: median {inference.latency_p50 * 1e3:.3f} ms, "
                  f"{ratio.value or 0:.2f}x eager fp32 ({interval}), on {plainly(trial.target)}"]
    if training is not None:
        lines += [f"- it cost {training.seconds:.1f} s before serving"]
    return lines
