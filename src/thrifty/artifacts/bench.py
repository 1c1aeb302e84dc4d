"""An artifact measured again, in clean processes, where neither the workload nor the training code is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thrifty.artifacts import artifact
from thrifty.engines import keeps_threads, threads_of
from thrifty.engines.parity import relative_error
from thrifty.measure.environment import environment
from thrifty.measure.process import Worker
from thrifty.measure.sides import ArtifactSide
from thrifty.measure.timing import alone

ROUNDS = 5


def bench(directory: str | Path, *, threads: int | None = None, rounds: int = ROUNDS,
          trust_native_code: bool = False) -> dict[str, Any]:
    """Load an artifact in clean processes and measure it again.

    Args:
        directory: directory of the artifact.
        threads: threads for inference; those that it was measured with where None.
        rounds: fresh processes.
        trust_native_code: needed by AOTInductor's artifacts.

    Returns:
        latency, throughput, memory, first inference, and the largest difference from the stored outputs.

    Raises:
        ArtifactError: it is damaged or for another machine.
    """
    path = Path(directory)
    manifest = artifact.verify(path)
    inputs, outputs = artifact.example(path)
    side = ArtifactSide(str(path), trust_native_code=trust_native_code)
    used = threads_of(manifest, threads)
    with Worker(side, threads=used, device=manifest.get("device", "cpu")) as worker:
        worker.load()
        error = max(relative_error(a, b) for a, b in zip(outputs, worker.run(inputs), strict=True))
    figures = alone(side, inputs, threads=used, device=manifest.get("device", "cpu"), rounds=rounds)
    return {
        "artifact": {"path": str(path), "bytes": artifact.size(path), "engine": manifest["engine"],
                     "precision": manifest["precision"], "recipe": manifest.get("recipe")},
        "inference": {
            "latency_seconds": {"p50": figures.p50, "p90": figures.p90},
            "throughput_per_second": figures.throughput_per_second,
            "peak_memory_bytes": figures.peak_memory_bytes,
            "first_inference_seconds": figures.first_inference_seconds,
        },
        "threads": used,
        "threads_note": keeps_threads(manifest, threads) or None,
        "output_error": error,
        "environment": environment(),
    }
