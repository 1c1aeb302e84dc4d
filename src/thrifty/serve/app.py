"""The routes of a served artifact: health, metadata, example, predict, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thrifty.engines import EngineError
from thrifty.serve import codec, hosts
from thrifty.serve.batching import Arrays, Batcher, Closed, QueueFull, Stuck
from thrifty.serve.codec import BodyError
from thrifty.serve.metrics import MEDIA, Metrics

BUSY, TIMED_OUT, OVERDUE, FAILED, MISDIRECTED = 503, 408, 504, 500, 421
LATEST = 30.0
"""Seconds that a body may take to come."""
BODIES = 3
"""Times the largest body that all requests may take together, from their first byte to their answer."""
LARGE = 10**6
"""Bytes of a body from which one is read at a time."""
DECODERS = 2
"""Threads that read bodies and write answers."""
PATHS = ("/health", "/metadata", "/example", "/predict", "/metrics")


@final
@dataclass(frozen=True)
class Service:
    """What the routes answer with.

    Args:
        manifest: of the artifact.
        example: its stored inputs.
        batcher: that owns its engine.
        metrics: of this server.
        max_body: bytes of a request, and of what it unpacks to.
        timeout: seconds that a request may wait for its answer, once it is read.
        names: hosts that requests may be addressed to, of `hosts.known`.
    """

    manifest: Mapping[str, Any]
    example: Sequence[np.ndarray]
    batcher: Batcher
    metrics: Metrics
    max_body: int
    timeout: float = 30.0
    names: Collection[str] = (hosts.ANY,)

    def expected(self) -> dict[str, Any]:
        """What `/predict` takes, as errors and `/metadata` say it."""
        return {"inputs": self.manifest["inputs"], "max_body_bytes": self.max_body,
                "content_types": [codec.JSON, codec.NPY, codec.NPZ, codec.SAFETENSORS]}

    def health(self) -> str:
        """"ok", or what is wrong."""
        return "failed" if not self.batcher.alive else "overdue" if self.batcher.overdue else "ok"


@final
class Room:
    """Bytes that requests take, together no more than ``most``."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0

    @contextlib.contextmanager
    def part(self, size: int) -> Iterator[Part]:
        """Room for one request; given back when the context ends.

        Raises:
            QueueFull: there is none left.
        """
        made = Part(self)
        try:
            made.resize(size)
            yield made
        finally:
            self.taken -= made.size


@final
class Part:
    """What one request takes of a `Room`."""

    def __init__(self, room: Room) -> None:
        self.room, self.size = room, 0

    def resize(self, size: int) -> None:
        more = size - self.size
        if more > 0 and self.room.taken and self.room.taken + more > self.room.most:
            raise QueueFull(f"requests already take {self.room.taken} bytes of the {self.room.most} allowed")
        self.room.taken += more
        self.size = size


def make_app(service: Service) -> ASGIApp:
    """An ASGI application; whoever runs it closes the service's batcher afterwards."""
    manifest, batcher = service.manifest, service.batcher
    names = [spec["name"] for spec in manifest["outputs"]]
    varies = bool(manifest["inputs"]) and all(spec["shape"][:1] == [-1] for spec in manifest["inputs"])
    room, pool, large = Room(BODIES * service.max_body), ThreadPoolExecutor(DECODERS, "codec"), asyncio.Semaphore(1)

    async def health(request: Request) -> Response:
        status = service.health()
        return JSONResponse({"status": status}, 200) if status == "ok" else JSONResponse(
            {"status": status, "error": f"the engine is {status}"}, BUSY)

    async def metadata(request: Request) -> Response:
        told = {key: manifest.get(key) for key in ("recipe", "workload", "engine", "precision", "outputs")}
        return JSONResponse({**told, **service.expected(), "max_batch_rows": batcher.most})

    async def example(request: Request) -> Response:
        named = {spec["name"]: x.tolist() for spec, x in zip(manifest["inputs"], service.example, strict=True)}
        return JSONResponse({"inputs": named})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type=MEDIA)

    def read(media: str, body: bytearray) -> list[np.ndarray]:
        inputs = codec.decode(media, body, manifest["inputs"], service.max_body)
        if varies and len({len(x) for x in inputs}) > 1:
            raise BodyError(codec.UNFIT, "the inputs' first dimensions, their rows, must be the same but are "
                                         f"{', '.join(str(len(x)) for x in inputs)}")
        return inputs

    async def predict(request: Request) -> Response:
        loop, media = asyncio.get_running_loop(), codec.media_of(request.headers.get("content-type"))
        with room.part(_length(request, service.max_body)) as part:
            body = await _body(request, service.max_body)
            media = codec.sniffed(media, body)
            async with large if len(body) > LARGE else contextlib.nullcontext():
                inputs = await loop.run_in_executor(pool, read, media, body)
            del body
            part.resize(sum(x.nbytes for x in inputs))
            outputs = await _answer(batcher, inputs, service.timeout)
            media, content = await loop.run_in_executor(pool, codec.encode, media, dict(zip(names, outputs, strict=True)))
        return Response(content, media_type=media)

    async def body_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, BodyError)
        # A body that was not read to its end cannot be followed by another request.
        unread = {"connection": "close"} if error.status in (codec.TOO_LARGE, codec.UNSUPPORTED, TIMED_OUT) else {}
        return JSONResponse({"error": str(error), "expected": service.expected()}, error.status, unread)

    async def busy(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"{error}; try again"}, BUSY, {"retry-after": "1", "connection": "close"})

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = {"/predict": "POST"} | {path: "GET" for path in PATHS if path != "/predict"}
        return JSONResponse({"error": f"{request.method} {request.url.path[:200]}: {error.detail}", "expected": known},
                            error.status_code, error.headers)

    async def failure(request: Request, error: Exception) -> Response:
        logging.getLogger(__name__).error("thrifty: %s failed: %s: %s", request.url.path, type(error).__name__,
                                          str(error).partition("\n")[0][:300])
        return JSONResponse({"error": f"the engine failed: {type(error).__name__}"}, FAILED)

    handlers = {"/health": health, "/metadata": metadata, "/example": example, "/metrics": metrics}
    app = Starlette(
        routes=[*(Route(path, handler) for path, handler in handlers.items()), Route("/predict", predict, methods=["POST"])],
        exception_handlers={BodyError: body_error, QueueFull: busy, Closed: busy, Stuck: busy, HTTPException: http_error,
                            Exception: failure},
    )
    return _Counted(app, service.metrics, service.names)


def _length(request: Request, limit: int) -> int:
    """Bytes that a body will have, as its header says; as many as there may be where none does.

    Raises:
        BodyError: 413, they are more than are allowed.
    """
    length = request.headers.get("content-length", "")
    if not length.isdigit():
        return limit
    if len(length) > 18 or int(length) > limit:
        raise BodyError(codec.TOO_LARGE, f"the body is over {limit} bytes")
    return int(length)


async def _body(request: Request, limit: int) -> bytearray:
    """Read the body, and no more of it than is allowed.

    Raises:
        BodyError: 413, it is larger; 408, it takes too long; 400, it ends before its end.
    """
    content = bytearray()
    try:
        async with asyncio.timeout(LATEST):
            async for part in request.stream():
                content += part
                if len(content) > limit:
                    raise BodyError(codec.TOO_LARGE, f"the body is over {limit} bytes")
    except TimeoutError as error:
        raise BodyError(TIMED_OUT, f"the body did not come within {LATEST:g} seconds") from error
    except ClientDisconnect as error:
        raise BodyError(codec.MALFORMED, "the connection ended before the body did") from error
    return content


async def _answer(batcher: Batcher, inputs: Arrays, timeout: float) -> Arrays:
    """Wait for the batcher; what an engine says of its inputs is the request's fault.

    Raises:
        BodyError: 422, the engine refused the inputs, for example their sizes; 504, it did not
            answer in time.
    """
    try:
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(batcher.submit(inputs))
    except TimeoutError as error:
        raise BodyError(OVERDUE, f"there was no answer within {timeout:g} s; send less at once, or serve with a longer "
                                 "--timeout") from error
    except EngineError as error:
        raise BodyError(codec.UNFIT, str(error)) from error


@final
class _Counted:
    """Answers whoever means this server, counts each answer by its path and status, and how long it took."""

    def __init__(self, app: ASGIApp, metrics: Metrics, names: Collection[str]) -> None:
        self.app, self.metrics, self.names = app, metrics, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def refused(code: int, error: str) -> None:
            await JSONResponse({"error": error}, code, {"connection": "close"})(scope, receive, watched)

        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), None)
        try:
            if hosts.answers_to(host, self.names):
                await self.app(scope, receive, watched)
            else:
                await refused(MISDIRECTED, f"this server is not {(host or 'a request without a host')[:200]!r}; name it by its "
                                           "address, or serve with --allow-host NAME")
        except asyncio.CancelledError:  # the grace at the end is over
            if not status:
                await refused(BUSY, "the server is shutting down")
        except Exception:
            if not status:  # else it was answered, and logged in one line
                raise
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"  # whatever is asked for must not become labels
            self.metrics.answered(path, status or FAILED, time.perf_counter() - began)
