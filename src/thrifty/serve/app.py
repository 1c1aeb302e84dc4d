"""The routes of a served artifact: health, metadata, example, predict, metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
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
from thrifty.serve import codec
from thrifty.serve.batching import Arrays, Batcher, Closed, QueueFull
from thrifty.serve.codec import BodyError
from thrifty.serve.metrics import MEDIA, Metrics

BUSY, TIMED_OUT, FAILED = 503, 408, 500
LATEST = 30.0
"""Seconds that a body may take to come."""
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
    """

    manifest: Mapping[str, Any]
    example: Sequence[np.ndarray]
    batcher: Batcher
    metrics: Metrics
    max_body: int

    def expected(self) -> dict[str, Any]:
        """What `/predict` takes, as errors and `/metadata` say it."""
        return {"inputs": self.manifest["inputs"], "max_body_bytes": self.max_body,
                "content_types": [codec.JSON, codec.NPY, codec.NPZ, codec.SAFETENSORS]}


def make_app(service: Service) -> ASGIApp:
    """An ASGI application; whoever runs it closes the service's batcher afterwards."""
    manifest, batcher = service.manifest, service.batcher
    names = [spec["name"] for spec in manifest["outputs"]]
    varies = bool(manifest["inputs"]) and all(spec["shape"][:1] == [-1] for spec in manifest["inputs"])

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok" if batcher.alive else "failed"}, 200 if batcher.alive else BUSY)

    async def metadata(request: Request) -> Response:
        told = {key: manifest.get(key) for key in ("recipe", "workload", "engine", "precision", "outputs")}
        return JSONResponse({**told, **service.expected(), "max_batch_rows": batcher.most})

    async def example(request: Request) -> Response:
        named = {spec["name"]: x.tolist() for spec, x in zip(manifest["inputs"], service.example, strict=True)}
        return JSONResponse({"inputs": named})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type=MEDIA)

    async def predict(request: Request) -> Response:
        media = codec.media_of(request.headers.get("content-type"))
        body = await _body(request, service.max_body)
        media = codec.sniffed(media, body)
        inputs = codec.decode(media, body, manifest["inputs"], service.max_body)
        if varies and len({len(x) for x in inputs}) > 1:
            raise BodyError(codec.UNFIT, "the inputs' first dimensions, their rows, must be the same but are "
                                         f"{', '.join(str(len(x)) for x in inputs)}")
        outputs = await _answer(batcher, inputs)
        media, content = codec.encode(media, dict(zip(names, outputs, strict=True)))
        return Response(content, media_type=media)

    async def body_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, BodyError)
        # A body that was not read to its end cannot be followed by another request.
        unread = {"connection": "close"} if error.status in (codec.TOO_LARGE, codec.UNSUPPORTED, TIMED_OUT) else {}
        return JSONResponse({"error": str(error), "expected": service.expected()}, error.status, unread)

    async def busy(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"{error}; try again"}, BUSY, {"retry-after": "1"})

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = {"/predict": "POST"} | {path: "GET" for path in PATHS if path != "/predict"}
        return JSONResponse({"error": f"{request.method} {request.url.path[:200]}: {error.detail}", "expected": known},
                            error.status_code, error.headers)

    async def failure(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"the engine failed: {type(error).__name__}"}, FAILED)

    handlers = {"/health": health, "/metadata": metadata, "/example": example, "/metrics": metrics}
    app = Starlette(
        routes=[*(Route(path, handler) for path, handler in handlers.items()), Route("/predict", predict, methods=["POST"])],
        exception_handlers={BodyError: body_error, QueueFull: busy, Closed: busy, HTTPException: http_error,
                            Exception: failure},
    )
    return _Counted(app, service.metrics)


async def _body(request: Request, limit: int) -> bytes:
    """Read the body, and no more of it than is allowed.

    Raises:
        BodyError: 413, it is larger; 408, it takes too long; 400, it ends before its end.
    """
    large = BodyError(codec.TOO_LARGE, f"the body is over {limit} bytes")
    length = request.headers.get("content-length", "")
    if length.isdigit() and (len(length) > 18 or int(length) > limit):
        raise large
    content = bytearray()
    try:
        async with asyncio.timeout(LATEST):
            async for part in request.stream():
                content += part
                if len(content) > limit:
                    raise large
    except TimeoutError as error:
        raise BodyError(TIMED_OUT, f"the body did not come within {LATEST:g} seconds") from error
    except ClientDisconnect as error:
        raise BodyError(codec.MALFORMED, "the connection ended before the body did") from error
    return bytes(content)


async def _answer(batcher: Batcher, inputs: Arrays) -> Arrays:
    """Wait for the batcher; what an engine says of its inputs is the request's fault.

    Raises:
        BodyError: 422, the engine refused the inputs, whose sizes are outside of what it was made for, say.
    """
    try:
        return await asyncio.wrap_future(batcher.submit(inputs))
    except EngineError as error:
        raise BodyError(codec.UNFIT, str(error)) from error


@final
class _Counted:
    """Counts each answer by its path and status, and how long it took."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), FAILED

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"  # whatever is asked for must not become labels
            self.metrics.answered(path, status, time.perf_counter() - began)
