"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MEDIA = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@final
class Metrics:
    """One server's, in a registry of its own: nothing is global."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("thrifty_requests", "Requests answered, by path and status.", ("path", "status"),
                                registry=self.registry)
        self.latency = Histogram("thrifty_request_seconds", "Time from a request's headers to the end of its answer, by path.",
                                 ("path",), buckets=SECONDS, registry=self.registry)
        self.rows = Histogram("thrifty_batch_rows", "Rows in one engine call.", buckets=ROWS,
                              registry=self.registry)
        self.engine = Histogram("thrifty_engine_seconds", "Time that the engine took for a batch.", buckets=SECONDS,
                                registry=self.registry)
        self.queue = Gauge("thrifty_queue_length", "Requests waiting for the engine.", registry=self.registry)

    def answered(self, path: str, status: int, seconds: float) -> None:
        self.requests.labels(path, str(status)).inc()
        self.latency.labels(path).observe(seconds)

    def ran(self, rows: int, seconds: float) -> None:
        self.rows.observe(rows)
        self.engine.observe(seconds)

    def watch(self, waiting: Callable[[], int]) -> None:
        """Read the queue's length when it is asked for."""
        self.queue.set_function(waiting)

    def text(self) -> bytes:
        return generate_latest(self.registry)
