"""The verbs of the command line that take an artifact: measured again, verified, served."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.options import DONE, FAILED, JsonOption, TrustOption
from thrifty.cli.output import emit
from thrifty.report.words import shortened

ArtifactThreadsOption = Annotated[int | None, typer.Option(
    "--threads", min=1,
    help="Threads for inference; as measured for the artifact by default. Inductor's artifacts keep theirs.")]


def bench(artifact: Annotated[Path, typer.Argument(help="An artifact's directory.")],
          threads: ArtifactThreadsOption = None,
          rounds: Annotated[int, typer.Option("--rounds", min=1, help="The number of fresh processes to measure in.")] = 5,
          trust_native_code: TrustOption = False, as_json: JsonOption = False) -> None:
    """Measure an artifact again, in fresh processes.

    Example: thrifty bench study-digits/artifacts/6f3ad6fd8ef4
    """
    from thrifty.artifacts.bench import bench as bench_artifact
    from thrifty.report import terminal

    found = bench_artifact(artifact, threads=threads, rounds=rounds, trust_native_code=trust_native_code)
    emit(found) if as_json else terminal.print_bench(found)


def verify(artifact: Annotated[Path, typer.Argument(help="An artifact's directory.")],
           threads: Annotated[int, typer.Option("--threads", min=1, help="Threads for inference.")] = 1,
           trust_native_code: TrustOption = False, as_json: JsonOption = False) -> None:
    """Verify an artifact: checksums, processor, packages, and its answer to the example request stored with it.

    Example: thrifty verify study-digits/artifacts/6f3ad6fd8ef4
    """
    from thrifty.artifacts.apart import verify_apart
    from thrifty.report.artifacts import print_verification

    found = verify_apart(artifact, threads=threads, trust_native_code=trust_native_code)
    emit(found.to_json()) if as_json else print_verification(found)
    raise typer.Exit(DONE if found.sound else FAILED)


def serve(artifact: Annotated[Path, typer.Argument(help="An artifact's directory.")],
          port: Annotated[int, typer.Option("--port", help="The port to listen on; 0 picks a free one.")] = 8000,
          host: Annotated[str, typer.Option(
              "--host", help="The address to listen on; 0.0.0.0 for all interfaces.")] = "127.0.0.1",
          threads: ArtifactThreadsOption = None,
          max_batch: Annotated[int | None, typer.Option(
              "--max-batch", help="The largest batch, if the artifact's batch size varies; 8 by default if that pays.")] = None,
          max_wait: Annotated[str, typer.Option(
              "--max-wait", help="How long a request waits for others to be batched with: 0, 2ms.")] = "2ms",
          max_queue: Annotated[int, typer.Option(
              "--max-queue", help="The number of requests that may wait; more are answered 503.")] = 256,
          max_body: Annotated[str, typer.Option("--max-body", help="The largest request body: 500kB, 16MB.")] = "16MB",
          timeout: Annotated[str, typer.Option(
              "--timeout", help="The time limit for a request, which is then answered 504.")] = "30s",
          grace: Annotated[str, typer.Option("--grace", help="The time for running requests to finish after SIGTERM.")] = "30s",
          allow_host: Annotated[list[str] | None, typer.Option(
              "--allow-host", help="A host name that requests may use for this server, besides localhost; * for any.")] = None,
          trust_native_code: TrustOption = False) -> None:
    """Serve an artifact over HTTP until Ctrl-C or SIGTERM: /predict, /health, /metadata, /example, /metrics.

    Example: thrifty serve study-digits/artifacts/6f3ad6fd8ef4 --port 8000
    """
    from thrifty.serve.server import EngineStuck, Settings
    from thrifty.serve.server import serve as serve_artifact
    from thrifty.units import seconds, size
    from thrifty.workloads.blame import leave

    settings = Settings(host, port, threads, max_batch, 0.0 if max_wait == "0" else seconds(max_wait), max_queue,
                        size(max_body), seconds(timeout), seconds(grace), tuple(allow_host or ()), trust_native_code)
    try:
        serve_artifact(artifact, settings, announce=lambda text: print(shortened(text, 4000), flush=True))
    except EngineStuck as error:
        print(f"thrifty: {error}", file=sys.stderr, flush=True)
        leave(FAILED)  # what Python does at its end would wait for the engine
