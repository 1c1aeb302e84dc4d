"""An artifact's engine, its queue and uvicorn, from the first check to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import importlib.util
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

import numpy as np

from thrifty.artifacts import artifact
from thrifty.artifacts.verification import answers_example
from thrifty.engines import keeps_threads, open_engine, threads_of
from thrifty.engines.parity import relative_error, tolerance
from thrifty.errors import MissingExtra, ThriftyError
from thrifty.serve.batching import Arrays, Batcher, Run, largest, pays

PACKAGES = ("starlette", "uvicorn", "prometheus_client")
COMPILES_EACH_SHAPE = frozenset({"xla", "compiled"})
"""Engines that take seconds for each new number of rows: batches do not pay unless they are asked for."""
MAX_BATCH = 8
SPARE = 3.0
"""Seconds after the grace, at which the process ends whatever still keeps it."""
OTHERS = 256
"""Connections beside those of the requests that may wait."""


class ServeError(ThriftyError):
    """A server that cannot start; the message says what to change."""


class EngineStuck(ThriftyError):
    """The server has ended, and its engine has not; the process should end too."""


@final
@dataclass(frozen=True)
class Settings:
    """How an artifact is served.

    Args:
        host, port: to listen at; port 0 takes one that is free.
        threads: of inference; the artifact's own where None.
        max_batch: rows that run at once, from 1; None for 8, or 1 where they gain nothing by it or the engine compiles for
            each number of them.
        max_wait: seconds that a request waits for others, from 0.
        max_queue: requests that may wait, from 1; more are answered 503.
        max_body: bytes of a request, and of what it unpacks to.
        timeout: seconds in which a request must be answered once it is read, above 0; 504 after them.
        grace: seconds that requests in flight have to be answered in after SIGTERM, above 0.
        hosts: names by which requests may call this server, beside localhost, the machine's name and any address.
        trust_native_code: whether machine code in the artifact may run.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    threads: int | None = None
    max_batch: int | None = None
    max_wait: float = 0.002
    max_queue: int = 256
    max_body: int = 16 * 10**6
    timeout: float = 30.0
    grace: float = 30.0
    hosts: tuple[str, ...] = ()
    trust_native_code: bool = False

    def __post_init__(self) -> None:
        least = {"port": 0, "threads": 1, "max_batch": 1, "max_wait": 0, "max_queue": 1, "max_body": 1,
                 "timeout": 1e-3, "grace": 1e-3}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise ServeError(f"{name} must be {low} or more but is {value}")
        if self.port > 65535:
            raise ServeError(f"port must be 0 to 65535 but is {self.port}")


def serve(directory: Path | str, settings: Settings = Settings(), announce: Callable[[str], None] = lambda text: None) -> None:
    """Serve an artifact until SIGINT or SIGTERM; requests in flight are then answered.

    Args:
        directory: of the artifact.
        settings: of the server.
        announce: told once it listens, in two lines: where, and how to try it.

    Raises:
        MissingExtra: starlette, uvicorn or prometheus_client is not installed.
        ArtifactError, EngineError: the artifact cannot be opened here.
        ServeError: the address cannot be listened at, the artifact takes what HTTP does not carry, or its engine answers the
            stored example with something else here.
        EngineStuck: the engine did not end within the grace; its thread still runs.
        KeyboardInterrupt: it was SIGINT that ended it.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "serve")
    import uvicorn

    from thrifty.serve import connections, hosts
    from thrifty.serve.app import Service, make_app
    from thrifty.serve.metrics import Metrics

    manifest = artifact.verify(directory)
    _check_dtypes(manifest)
    metrics = Metrics()
    with contextlib.closing(_listening(settings)) as listening:
        batcher = Batcher(lambda: start(Path(directory), manifest, settings), wait=settings.max_wait,
                          queue=settings.max_queue, patience=settings.timeout, heard=metrics.ran)
        metrics.watch(lambda: batcher.waiting)
        try:
            app = make_app(Service(manifest, artifact.example(directory)[0], batcher, metrics, settings.max_body,
                                   settings.timeout, hosts.known(settings.host, settings.hosts)))
            most = connections.most_connections(settings.max_queue + OTHERS)
            listening.listen(connections.WAITING)
            announce(_announcement(directory, listening, manifest, batcher.most))
            if note := keeps_threads(manifest, settings.threads):
                announce(f"threads: {threads_of(manifest, settings.threads)}, {note}")
            config = uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off", ws="none",
                                    server_header=False, timeout_graceful_shutdown=settings.grace,  # type: ignore[arg-type]
                                    http=connections.protocol(most), backlog=connections.ACCEPTED)
            server = _server(config, batcher)
            server.run(sockets=[listening])
        finally:
            ended = batcher.close(2.0)  # it is idle, unless the grace is over
    faulthandler.cancel_dump_traceback_later()
    if not ended:
        raise EngineStuck(f"the engine did not finish within {settings.grace:g} s: its requests were answered with 503")
    if server.interrupted:
        raise KeyboardInterrupt


@contextlib.contextmanager
def start(directory: Path, manifest: Mapping[str, Any], settings: Settings) -> Iterator[tuple[Run, int]]:
    """Open the engine and try it: its call, and the most rows that it answers at once as it does one by one.

    Its first answers, which are the slowest, are given here.
    """
    engine = open_engine(directory, manifest, threads=threads_of(manifest, settings.threads),
                         device=manifest.get("device", "cpu"), trust_native_code=settings.trust_native_code)
    inputs, _ = artifact.example(directory)
    bound = tolerance(manifest["precision"], manifest.get("device", "cpu"))

    def run(arrays: Arrays) -> Arrays:
        return engine.arrays(engine.run(engine.native(arrays)))

    def same(one: Arrays, other: Arrays) -> bool:
        return all(a.shape == b.shape and relative_error(a, b) <= bound for a, b in zip(one, other, strict=True))

    with contextlib.closing(engine):
        status, said = answers_example(directory, manifest, engine)
        if status == "failed":  # made elsewhere, perhaps: a wrong answer is worse than none
            raise ServeError(f"{directory} cannot be served: {said}")
        most = largest(run, inputs, max_batch(manifest, settings), same)
        yield run, most if most == 1 or settings.max_batch or pays(run, inputs, most) else 1


def max_batch(manifest: Mapping[str, Any], settings: Settings) -> int:
    """Rows that may run at once: more than one only where every input and output has a first dimension that varies.

    Where the manifest says within which range, no more than that.
    """
    specs = [*manifest["inputs"], *manifest["outputs"]]
    if not manifest["inputs"] or not all(spec["shape"][:1] == [-1] for spec in specs):
        return 1
    asked = settings.max_batch or (1 if manifest["engine"] in COMPILES_EACH_SHAPE else MAX_BATCH)
    return min([asked, *(high for spec in manifest["inputs"] for d, _, _, high in spec.get("varies", ()) if d == 0)])


def _check_dtypes(manifest: Mapping[str, Any]) -> None:
    for spec in manifest["inputs"]:
        try:
            known = np.dtype(spec["dtype"]).kind in "biuf"
        except TypeError:
            known = False
        if not known:
            raise ServeError(f"input {spec['name']} is {spec['dtype']}, which no request body can carry: give the model float32 "
                             "inputs")


def _listening(settings: Settings) -> socket.socket:
    """The address, taken before anything is opened for it."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off on what it accepts; without it an answer's second packet
    # waits 40 ms for the first one's acknowledgment.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((settings.host, settings.port))
    except OSError as error:
        made.close()
        raise ServeError(f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}; "
                         "choose another --port (0 picks a free one) or --host") from error
    return made


def _announcement(directory: Path | str, listening: socket.socket, manifest: Mapping[str, Any], most: int) -> str:
    host, port = listening.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    together = f"up to {most} rows at once" if most > 1 else "requests one by one"
    return (f"serving {directory} on {url} ({manifest['engine']}, {together}; Ctrl-C ends it)\n"
            f"try: curl -s {url}/example | curl -s {url}/predict -H 'content-type: application/json' -d @-")


def _server(config: Any, batcher: Batcher) -> Any:
    """uvicorn's server, ended by SIGTERM without raising it again: a server that was told to end has not failed."""
    import uvicorn

    from thrifty.serve import connections

    grace = config.timeout_graceful_shutdown

    class Server(uvicorn.Server):
        interrupted = False

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for listening in sockets or ():  # asyncio takes one number for what waits and for what is accepted at once
                listening.listen(connections.WAITING)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            loop = asyncio.get_running_loop()

            def end(number: int) -> None:
                self.interrupted |= number == signal.SIGINT
                if not self.should_exit:
                    loop.call_later(max(0.5 * grace, grace - 1), batcher.abandon)
                    # By a thread that waits for no lock of Python's; what it would print of the stack goes nowhere.
                    faulthandler.dump_traceback_later(grace + SPARE, exit=True, file=_nowhere())
                self.handle_exit(number, None)

            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, end, number)
            yield

    return Server(config)


@functools.cache
def _nowhere() -> IO[bytes]:
    return open(os.devnull, "wb")
