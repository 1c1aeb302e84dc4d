"""`thrifty serve` under load: its capacity, then a minute of Poisson arrivals at four fifths of it.

    python benchmarks/serving.py                                  # the CNN of digits, ONNX Runtime
    python benchmarks/serving.py --artifact DIR --seconds 60
    python benchmarks/serving.py --max-batch 8                    # whether it pays or not

Requests arrive whether or not the ones before were answered, and latency counts from when a request was due, so that a
server that stalls is charged for all that came meanwhile. Capacity is what is answered a second when they arrive so at a rate
that the server cannot follow: that of a closed loop, so many clients with one request each on its way, whose clients and
server take less of the machine that they share. Once a second a malformed body is sent among them.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from thrifty.artifacts import artifact
from thrifty.measure.environment import environment, now

MALFORMED = (
    (b"{", "application/json"), (b'{"inputs": [["x"]]}', "application/json"), (b'{"inputs": {"other": 1}}', "application/json"),
    (b"\x80\x04N.", "application/x-npy"), (b"PK\x03\x04", "application/x-npz"), (b"", "application/json"), (b"x", "text/html"),
    (b"\xff" * 16, "application/vnd.safetensors"),
)


def build(place: Path) -> Path:
    """The untrained CNN of digits in ONNX Runtime, its batch free from 1 to 64: weights do not change what a call costs."""
    from thrifty.compilers.onnxruntime import OnnxRuntime
    from thrifty.recipes.context import Context
    from thrifty.workloads.loading import load_workload

    workload = load_workload("digits")
    model, example = workload.model().eval(), workload.example(1)
    lowered = OnnxRuntime().lower(model, example, place, Context(example=example, calibration=lambda: iter(()),
                                                                 shapes={0: {0: (1, 64)}}))
    artifact.write(place, lowered, {"recipe": "compile(onnxruntime)", "workload": "digits"}, [x.numpy() for x in example],
                   [model(*example).detach().numpy()])
    return place


# -- a client -----------------------------------------------------------------------------------------------------


def message(body: bytes, kind: str) -> bytes:
    return (f"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
            ).encode() + body


IDLE = 2.0
"""Seconds after which a connection is not used again: the server closes those that idled for five."""


@dataclass
class Client:
    """Connections that are kept open, as many as requests are on their way at once; none that the server may have closed."""

    port: int
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = field(default_factory=list)

    async def ask(self, sent: bytes) -> int:
        """The status of the answer."""
        while self.free and time.perf_counter() - self.free[0][2] > IDLE:
            self.free.pop(0)[1].close()
        reader, writer, _ = self.free.pop() if self.free else (*await asyncio.open_connection("127.0.0.1", self.port), 0.0)
        writer.write(sent)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
        if b"connection: close" in head:
            writer.close()
        else:
            self.free.append((reader, writer, time.perf_counter()))
        return int(head.split()[1])

    def close(self) -> None:
        for _, writer, _ in self.free:
            writer.close()


async def capacity(port: int, sent: bytes, clients: int, seconds: float) -> float:
    """Requests a second that so many clients get answered, one on its way for each."""
    client, done, until = Client(port), 0, time.perf_counter() + seconds

    async def one() -> None:
        nonlocal done
        while time.perf_counter() < until:
            assert await client.ask(sent) == 200
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    client.close()
    return done / (time.perf_counter() - began)


@dataclass
class Load:
    """What came of the arrivals."""

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    malformed: Counter[int] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    seconds: float = 0.0


async def arrivals(port: int, sent: bytes, rate: float, seconds: float, server: psutil.Process, seed: int) -> Load:
    """Poisson arrivals; latency from when each was due."""
    client, load, tasks = Client(port), Load(), set()
    due = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds * 1.5) + 100))
    began = time.perf_counter()

    async def one(at: float) -> None:
        load.late.append(time.perf_counter() - began - at)
        load.statuses[await client.ask(sent)] += 1
        load.latencies.append(time.perf_counter() - began - at)

    async def watch() -> None:
        for second in range(int(seconds)):
            load.memory.append(server.memory_info().rss)
            load.malformed[await client.ask(message(*MALFORMED[second % len(MALFORMED)]))] += 1
            await asyncio.sleep(max(0.0, began + second + 1 - time.perf_counter()))

    watching = asyncio.create_task(watch())
    for at in due[due < seconds]:
        if (left := began + at - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        task = asyncio.create_task(one(at))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(watching, *tasks)
    load.seconds = time.perf_counter() - began
    load.memory.append(server.memory_info().rss)
    client.close()
    return load


# -- the run ------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--closed", type=float, default=10.0,
                        help="seconds of each measurement of capacity, the first of three to warm up")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.8, help="of capacity")
    parser.add_argument("--max-batch", type=int, help="8 by default where it pays, which the server finds out")
    parser.add_argument("--max-wait", default="2ms")
    parser.add_argument("--trust-native-code", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = arguments.artifact or build(Path(scratch))
        body = io.BytesIO()
        inputs, _ = artifact.example(place)
        if len(inputs) == 1:
            np.save(body, inputs[0])
        else:
            np.savez(body, **{spec["name"]: x for spec, x in zip(artifact.read(place)["inputs"], inputs, strict=True)})
        sent = message(body.getvalue(), "application/octet-stream")
        command = [sys.executable, "-m", "thrifty", "serve", str(place), "--port", "0", "--max-wait", arguments.max_wait,
                   *(["--max-batch", str(arguments.max_batch)] if arguments.max_batch else []),
                   *(["--trust-native-code"] if arguments.trust_native_code else [])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
                if found is None:
                    sys.exit("the server did not start")
                report(int(found[1]), psutil.Process(process.pid), sent, arguments)
            finally:
                process.send_signal(signal.SIGTERM)
            print(f"\nended by SIGTERM with exit code {process.wait(30)}")


def report(port: int, server: psutil.Process, sent: bytes, arguments: argparse.Namespace) -> None:
    # The first of these warms up; memory is taken as flat or not from there on.
    closed = [asyncio.run(capacity(port, sent, arguments.clients, arguments.closed)) for _ in range(2)][-1]
    flood = asyncio.run(arrivals(port, sent, closed, arguments.closed, server, seed=1))
    most = flood.statuses[200] / flood.seconds
    offered = arguments.share * most
    load = asyncio.run(arrivals(port, sent, offered, arguments.seconds, server, seed=0))
    told = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/metadata").read())
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    rows = {key: float(re.search(rf"^thrifty_batch_rows_{key} (\S+)", text, re.MULTILINE)[1]) for key in ("sum", "count")}
    p50, p99, p999 = (np.percentile(load.latencies, q) * 1e3 for q in (50, 99, 99.9))
    errors = {status: count for status, count in load.statuses.items() if status != 200}
    first = np.median(load.memory[: max(1, len(load.memory) // 10)])
    print(f"{now()}, {environment()['cpu']}, {environment()['cores']} cores, server and clients on the same\n")
    print("| what | figure |\n| --- | --- |")
    print(f"| engine | {told['engine']}, {told['precision']}, {told['workload']}, up to {told['max_batch_rows']} rows at once |")
    print(f"| closed loop of {arguments.clients} clients | {closed:.0f} requests/s |")
    print(f"| capacity: answered where that many arrive, Poisson | {most:.0f} requests/s |")
    print(f"| offered, Poisson, {arguments.share:.0%} of it for {arguments.seconds:g} s | {offered:.0f} requests/s |")
    print(f"| answered | {load.statuses[200]}, {load.statuses[200] / load.seconds:.0f} requests/s |")
    print(f"| latency from when due | p50 {p50:.2f} ms, p99 {p99:.2f} ms, p99.9 {p999:.2f} ms |")
    print(f"| of which the client sent late | p99 {np.percentile(load.late, 99) * 1e3:.2f} ms |")
    print(f"| errors | {errors or 'none'} |")
    print(f"| rows a batch, all phases | {rows['sum'] / rows['count']:.2f} |")
    print(f"| malformed bodies | {dict(load.malformed)} |")
    print(f"| memory of the server | {first / 1e6:.1f} MB at first, {load.memory[-1] / 1e6:.1f} MB at last, "
          f"largest {max(load.memory) / 1e6:.1f} MB |")
    bad = [status for status in load.malformed if not 400 <= status < 500]
    if errors or bad:
        sys.exit(f"errors: {errors}; malformed bodies answered {bad}")


if __name__ == "__main__":
    main()
