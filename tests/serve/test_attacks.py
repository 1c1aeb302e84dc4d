"""A server that is attacked: whoever else asks is answered within a second, memory stays low, and it ends when it is told to.

All traffic stays on this machine's loopback, a few hundred connections and megabytes for a few seconds each.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import socket
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.serve.servers import ask, counting, running, written
from thrifty import testing
from thrifty.artifacts import artifact
from thrifty.engines import threads_of
from thrifty.target import cores

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("onnxruntime")

JSON, NPY, NPZ, SAFETENSORS = ("application/json", "application/x-npy", "application/x-npz", "application/vnd.safetensors")
SIZE = 15 * 10**6
"""Bytes of the largest bodies, below the 16 MB that are let in."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return written(tmp_path_factory.mktemp("attacked") / "net", testing.trained(), testing.workload.example(1), {0: {0: (1, 64)}})


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    return counting(tmp_path_factory.mktemp("slow") / "counting")


def memory(process, what="VmRSS"):
    """Kilobytes."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


class Watch(threading.Thread):
    """Asks for /health every tenth of a second."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.ended = port, threading.Event()
        self.seconds, self.failed = [], []

    def run(self):
        while not self.ended.wait(0.1):
            began = time.monotonic()
            try:
                status = ask(self.port, "GET", "/health", timeout=10)[0]
            except OSError as error:
                status = error
            self.seconds.append(time.monotonic() - began)
            if status != 200:
                self.failed.append(status)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()


@contextlib.contextmanager
def healthy(port):
    """Everything in the context happens while /health answers within a second, or ten where others keep the processors busy."""
    busy = os.getloadavg()[0] > cores()
    within = 10.0 if busy else 1.0
    with Watch(port) as watch:
        yield
        time.sleep(0.2)
    assert not watch.failed and watch.seconds and max(watch.seconds) < within, (watch.failed, max(watch.seconds))


@contextlib.contextmanager
def connected(port, first=b""):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        if first:
            raw.sendall(first)
        yield raw


def said(raw):
    """All that the server says until it closes."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while part := raw.recv(65536):
            got += part
    return got


# -- bodies -------------------------------------------------------------------------------------------------------


def archive(entries, size=0):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as into:
        for i in range(entries):
            into.writestr(f"{i}.npy", bytes(size))
    return stream.getvalue()


def safetensors(header):
    return len(header).to_bytes(8, "little") + header


def filled(begin, part, end):
    return begin + part * ((SIZE - len(begin) - len(end)) // len(part)) + end


BODIES = {
    "empty lists": (JSON, lambda: filled(b'{"inputs": [[', b"[],", b"[]]]}")),
    "empty objects": (JSON, lambda: filled(b'{"inputs": [[', b"{},", b"{}]]}")),
    "objects with a name": (JSON, lambda: filled(b'{"inputs": [[', b'{"a":[]},', b"{}]]}")),
    "deep lists": (JSON, lambda: b'{"inputs": ' + b"[" * SIZE),
    "small numbers": (JSON, lambda: filled(b'{"inputs": [[[[[', b"0,", b"0]]]]]}")),
    "floats": (JSON, lambda: filled(b'{"inputs": [[[[[', b"0.12345678901,", b"0]]]]]}")),
    "rows of one": (JSON, lambda: filled(b'{"inputs": [[[[', b"[0.5],", b"[0]]]]]}")),
    "texts": (JSON, lambda: filled(b'{"inputs": [[[[[', b'"x",', b'""]]]]]}')),
    "a text": (JSON, lambda: filled(b'{"inputs": [[[[["', b"x", b'"]]]]]}')),
    "many names": (JSON, lambda: b'{"inputs": {' + b",".join(b'"%d":0' % i for i in range(10**6)) + b"}}"),
    "a long name": (JSON, lambda: filled(b'{"inputs": {"', b"x", b'": 0}}')),
    "names beside inputs": (JSON, lambda: b"{" + b",".join(b'"%d":0' % i for i in range(10**6)) + b', "inputs": []}'),
    "a whole number": (JSON, lambda: filled(b'{"inputs": [[[[[', b"9", b"]]]]]}")),
    "a fraction": (JSON, lambda: filled(b'{"inputs": [[[[[0.', b"1", b"]]]]]}")),
    "white space": (JSON, lambda: filled(b'{"inputs": ', b" \n", b"")),
    "zeros": (NPY, lambda: bytes(SIZE)),
    "a huge header": (NPY, lambda: b"\x93NUMPY\x02\x00" + SIZE.to_bytes(4, "little") + b"(" * SIZE),
    "a deep header": (NPY, lambda: b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000),
    "a huge shape": (NPY, lambda: b"\x93NUMPY\x01\x00\x76\x00"
                     + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 3), }".ljust(118)),
    "another array": (NPY, lambda: saved(np.zeros(SIZE // 4 - 100, "float32"))),
    "a hundred thousand entries": (NPZ, lambda: archive(100_000)),
    "a bomb": (NPZ, lambda: archive(1, 10**9 // 8)),
    "a bomb within the limit": (NPZ, lambda: archive(1, SIZE)),
    "a header of names": (SAFETENSORS, lambda: safetensors(b"{" + b",".join(
        b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(200_000)) + b"}")),
    "a deep header of safetensors": (SAFETENSORS, lambda: safetensors(b'{"x":' + b"[" * SIZE)),
}


def saved(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.slow
def test_bodies_of_fifteen_megabytes(place):
    """Each is answered 4xx, health answers meanwhile, and memory stays below twice what it was."""
    with running(place) as (process, port):
        for _ in range(20):
            ask(port, "POST", "/predict", *example(port))
        idle = memory(process)
        for name, (kind, make) in BODIES.items():
            body = make()
            with healthy(port):
                status, _, content = ask(port, "POST", "/predict", body, kind, timeout=30)
            assert status in (400, 413, 422), (name, status, content[:300])
            assert len(json.loads(content)["error"]) < 1000, name
        assert memory(process, "VmHWM") < 2 * idle, (idle, memory(process, "VmHWM"))
        assert ask(port, "POST", "/predict", *example(port))[0] == 200
    assert process.returncode == 0 and not process.said


def example(port):
    return ask(port, "GET", "/example")[2], JSON


def test_sixteen_large_bodies_at_once(place):
    """Some are refused, memory stays low, and a small request beside them is answered."""
    body = BODIES["floats"][1]()
    with running(place) as (process, port):
        small, idle, got = example(port), memory(process), []
        clients = [threading.Thread(target=lambda: got.append(_status(port, body)), daemon=True) for _ in range(16)]
        with healthy(port):
            for client in clients:
                client.start()
            for _ in range(5):
                assert _again(port, small) == 200
            for client in clients:
                client.join(60)
        assert set(got) <= {422, 503, "reset"} and 422 in got, got
        assert memory(process, "VmHWM") < 2 * idle, (idle, memory(process, "VmHWM"))


def _status(port, body):
    try:
        return ask(port, "POST", "/predict", body, JSON, timeout=60)[0]
    except (ConnectionError, BrokenPipeError):  # answered before the body was sent to its end
        return "reset"


def _again(port, small):
    """As a client does that is told to come again."""
    for _ in range(50):
        if (status := ask(port, "POST", "/predict", *small)[0]) != 503:
            return status
        time.sleep(0.1)
    return 503


def test_a_body_in_pieces_of_one_byte(place):
    with running(place) as (_, port), connected(port) as raw, healthy(port):
        raw.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\n[\r\n" * 300_000
                    + b"0\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 4")


# -- connections --------------------------------------------------------------------------------------------------


def test_more_idle_connections_than_descriptors(place):
    """They are closed, the oldest first, and whoever asks something is answered."""
    with running(place, files=256) as (process, port), contextlib.ExitStack() as stack, healthy(port):
        for i in range(600):
            stack.enter_context(connected(port, b"" if i % 3 else b"POST /predict HTTP/1.1\r\nhost: loc" if i % 2 else
                                          b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"))
        assert ask(port, "POST", "/predict", *example(port))[0] == 200
    assert process.returncode == 0 and not process.said


@pytest.mark.slow
def test_who_sends_nothing_or_takes_nothing_is_cut_off(place):
    """Within 15 s of the last thing that was done; the body of a request has 30."""
    request = b"GET /example HTTP/1.1\r\nhost: localhost\r\n\r\n"
    body = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"
    with running(place) as (_, port), contextlib.ExitStack() as stack, healthy(port):
        began = time.monotonic()
        quiet, half, kept, partial = (stack.enter_context(connected(port, first)) for first in (b"", request[:20], request, body))
        greedy = stack.enter_context(connected(port))
        greedy.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(20_000):  # never read: the server's answers fill its buffers
                greedy.sendall(request)
        for raw in (quiet, half, kept):
            said(raw)
            assert time.monotonic() - began < 15
        greedy.settimeout(1)
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 25:
                greedy.send(request)
                time.sleep(0.2)
        assert time.monotonic() - began < 25, "it was never cut off"
        partial.settimeout(40)
        assert said(partial).startswith(b"HTTP/1.1 408")


# -- engines that do not end --------------------------------------------------------------------------------------

FOREVER = (b'{"inputs": [[[1e18]]]}', JSON)


def test_a_request_that_takes_too_long(slow):
    """504, then health says so; whoever comes later is answered, and SIGTERM ends it within its grace."""
    with running(slow, "--timeout", "1s", "--grace", "3s", end=10) as (process, port):
        assert ask(port, "POST", "/predict", *example(port))[0] == 200
        assert ask(port, "GET", "/health")[0] == 200
        began = time.monotonic()
        status, _, content = ask(port, "POST", "/predict", *FOREVER)
        assert status == 504 and "1 s" in json.loads(content)["error"] and 0.9 < time.monotonic() - began < 5
        status, _, content = ask(port, "GET", "/health")
        assert status == 503 and json.loads(content)["status"] == "overdue"
        status, _, content = ask(port, "POST", "/predict", *example(port))
        assert status == 503 and "has not finished" in json.loads(content)["error"]
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 1 and time.monotonic() - began < 6
    assert process.said.count("\n") == 1 and "the engine did not finish" in process.said


def test_an_end_while_requests_run(slow):
    with running(slow, "--grace", "2s", end=10) as (process, port), connected(port) as raw:
        raw.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(FOREVER[0]) + FOREVER[0])
        assert ask(port, "GET", "/health")[0] == 200
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert said(raw).startswith(b"HTTP/1.1 503")
        assert process.wait(10) == 1 and time.monotonic() - began < 6
    assert process.said.count("\n") == 1


@pytest.mark.slow
def test_the_grace_by_default(slow):
    with running(slow, end=60) as (process, port), connected(port) as raw:
        raw.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(FOREVER[0]) + FOREVER[0])
        assert ask(port, "GET", "/health")[0] == 200
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1 and time.monotonic() - began <= 35


# -- HTTP ---------------------------------------------------------------------------------------------------------

HOST = b"host: localhost\r\n"


@pytest.mark.parametrize(("sent", "status"), [
    (b"\r\n\r\n\r\nnothing\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 421),
    (b"GET /health HTTP/1.1\r\n\r\n", 400),
    (b"GET /health HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    (b"GET /health HTTP/1.1\r\n" + HOST + b"x: \x00\r\n\r\n", 400),
    (b"GET /health HTTP/1.1\r\n" + HOST + b"x: " + b"y" * 100_000 + b"\r\n\r\n", 431),
    (b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431),
    (b"POST /predict HTTP/1.1\r\n" + HOST + b"content-length: -1\r\n\r\n", 400),
    (b"POST /predict HTTP/1.1\r\n" + HOST + b"content-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
    (b"POST /predict HTTP/1.1\r\n" + HOST + b"transfer-encoding: gzip\r\n\r\n", 501),
    (b"POST /predict HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\nzz\r\n", 400),
    (b"POST /predict HTTP/1.1\r\n" + HOST + b"content-length: 99999999999999999999\r\n\r\n", 413),
    (b"GET /health HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n", 421),
    (b"GET /health HTTP/1.1\r\nhost: 127.0.0.1.evil.example:80\r\nconnection: close\r\n\r\n", 421),
    (b"GET /health HTTP/1.1\r\nhost: localhost:x\r\nconnection: close\r\n\r\n", 421),
    (b"GET /health HTTP/1.0\r\n\r\n", 421),
    (b"GET /%ff%00/../health HTTP/1.1\r\n" + HOST + b"connection: close\r\n\r\n", 404),
    (b"BREW /health HTTP/1.1\r\n" + HOST + b"connection: close\r\n\r\n", 405),
    (b"GET /health HTTP/1.1\r\n" + HOST + b"connection: upgrade, close\r\nupgrade: websocket\r\n\r\n", 200),
    (b"GET /health HTTP/1.1\r\nhost: [::1]:8000\r\nconnection: close\r\n\r\n", 200),
    (b"GET /health HTTP/1.1\r\nhost: LocalHost:8000\r\nconnection: close\r\n\r\n", 200),
])
def test_every_answer_of_http_is_json(port, sent, status):
    with connected(port, sent) as raw:
        head, _, body = said(raw).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), (head, body)
    assert b"content-type: application/json" in head.lower() and ("error" in json.loads(body)) == (status != 200)


@pytest.fixture(scope="module")
def port(place):
    with running(place) as (process, port):
        yield port
    assert process.returncode == 0 and not process.said, "nothing that was asked for is a line in the log"


def test_other_hosts_are_allowed_by_name(place):
    with running(place, "--allow-host", "models.example") as (_, port):
        for host, status in (("models.example", 200), ("models.example:80", 200), ("other.example", 421), ("10.1.2.3", 200)):
            assert ask(port, "GET", "/health", headers={"host": host})[0] == status


# -- what a manifest asks for -------------------------------------------------------------------------------------


def test_threads_are_at_most_this_machines(place, tmp_path):
    assert threads_of({"threads": 10_000}) == cores() and threads_of({}) == 1
    assert threads_of({"threads": 10_000}, 1) == 1 and threads_of({"threads": 10_000, "engine": "inductor"}, 1) == cores()
    artifact.copy(place, tmp_path / "many")
    manifest = artifact.read(place) | {"threads": 10**6}
    (tmp_path / "many" / "artifact.json").write_text(json.dumps(manifest))
    with running(tmp_path / "many") as (process, port):
        assert memory(process, "Threads") < 100
        assert ask(port, "POST", "/predict", *example(port))[0] == 200


def test_an_example_that_is_a_bomb(place, tmp_path):
    artifact.copy(place, tmp_path / "bomb")
    content = archive(1, 10**8)
    (tmp_path / "bomb" / artifact.EXAMPLE).write_bytes(content)
    manifest = artifact.read(place) | {"example": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}}
    (tmp_path / "bomb" / "artifact.json").write_text(json.dumps(manifest))
    with pytest.raises(artifact.ArtifactError, match="would unpack to"):
        artifact.example(tmp_path / "bomb")
