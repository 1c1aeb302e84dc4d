"""Connections: how many there may be, how long each may keep the server waiting, and HTTP's own errors as JSON."""

from __future__ import annotations

import asyncio
import functools
import json
import resource
import sys
from typing import Any, cast, final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD = 10.0
"""Seconds in which a request's headers must come, and in which some of an answer must be taken."""
PIECE = 2**14
"""Bytes that are read of a connection before others have their turn: in the smallest chunks they are 2,700 events."""
KEPT = 64
"""File descriptors that are left to the engine, the listening socket and the log."""


ACCEPTED = 16
"""Connections that are accepted at once: those over the limit are closed a few turns of the event loop later, and until then
each has a descriptor of the `KEPT`."""
WAITING = 1024
"""Connections that the system keeps until they are accepted."""


def most_connections(wanted: int) -> int:
    """How many the process's file descriptors allow, of those wanted; raises the limit on them as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = wanted + KEPT
    if soft != resource.RLIM_INFINITY and soft < want:
        soft = want if hard == resource.RLIM_INFINITY else min(want, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(8, min(wanted, soft - KEPT))


def protocol(most: int) -> type[asyncio.Protocol]:
    """What uvicorn makes for each connection.

    Args:
        most: connections at a time. One more, and the oldest that is waited for is closed.
    """
    return cast(type[asyncio.Protocol], functools.partial(_Connection, most))


@final
class _Connection(H11Protocol):
    """uvicorn times neither headers nor the taking of answers, and has as many connections as come."""

    def __init__(self, most: int, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.most = most
        self.since = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.untaken = 0

    @property
    def waited_for(self) -> bool:
        """Whether it is the client's turn: headers or a body are to come, or an answer is to be taken."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body or self.flow.write_paused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.max_size = PIECE  # type: ignore[attr-defined]
        self.since = self.loop.time()
        self._mind()
        if len(self.connections) > self.most:
            others = (x for x in self.connections if x is not self and isinstance(x, _Connection) and x.waited_for)
            oldest = min(others, key=lambda x: x.since, default=self)
            self.connections.discard(oldest)
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._mind()

    def on_response_complete(self) -> None:
        self._forget()
        super().on_response_complete()
        self._mind()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._mind()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget()
        self._mind()

    def send_400_response(self, msg: str) -> None:
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        content = json.dumps({"error": f"this is no HTTP request: {str(error)[:200]}"}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content)), (b"connection", b"close")]
        try:
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # in the midst of an answer
            pass
        self.transport.close()

    # -- time -----------------------------------------------------------------------------------------------------

    def _mind(self) -> None:
        """Wait no longer than `HEAD` for headers, or for an answer to be taken. What lies between has times of its own."""
        if self.cycle is not None and not self.cycle.response_complete and not self.flow.write_paused:
            self._forget()
        elif self.timer is None and not self.transport.is_closing():
            self.untaken = self.transport.get_write_buffer_size()
            self.timer = self.loop.call_later(HEAD, self._late)

    def _late(self) -> None:
        self.timer = None
        if 0 < self.transport.get_write_buffer_size() < self.untaken:  # slowly, but it is being taken
            self._mind()
        else:
            self.transport.abort()

    def _forget(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
