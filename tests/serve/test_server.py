"""A served artifact, asked over a real socket: right answers, wrong bodies, full queues, the end."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import io
import json
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from tests.serve.servers import ask, running, written
from thrifty import testing
from thrifty.artifacts import artifact
from thrifty.errors import MissingExtra
from thrifty.serve.server import ServeError, Settings, max_batch, serve, start

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("onnxruntime")


class Mixing(nn.Module):
    """Each row's answer depends on the rows beside it."""

    def forward(self, x):
        return x - x.mean(0, keepdim=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return written(tmp_path_factory.mktemp("served") / "net", testing.trained(), testing.workload.example(1), {0: {0: (1, 64)}})


@pytest.fixture(scope="module")
def port(place):
    with running(place, "--max-batch", "4", "--max-body", "200kB") as (process, port):
        yield port
    assert process.returncode == 0


def name_of(port):
    return json.loads(ask(port, "GET", "/metadata")[2])["inputs"][0]["name"]


def predict(port, arrays, named=False):
    body = {name_of(port): arrays[0].tolist()} if named else [x.tolist() for x in arrays]
    status, _, content = ask(port, "POST", "/predict", json.dumps({"inputs": body}), "application/json")
    assert status == 200, content
    return np.array(json.loads(content)["outputs"]["output0"], "float32")


def test_it_answers_as_the_model_does(port):
    rows = testing.workload.example(5)[0]
    want = testing.trained().eval()(rows).detach().numpy()
    np.testing.assert_allclose(predict(port, [rows.numpy()]), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predict(port, [rows.numpy()[:1]], named=True), want[:1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predict(port, [np.tile(rows.numpy(), (4, 1, 1, 1))]), np.tile(want, (4, 1)), rtol=1e-4, atol=1e-5)


def test_binary_bodies(port):
    from safetensors.numpy import load, save

    rows = testing.workload.example(2)[0].numpy()
    want = testing.trained().eval()(torch.from_numpy(rows)).detach().numpy()
    npy, npz = io.BytesIO(), io.BytesIO()
    np.save(npy, rows)
    np.savez(npz, **{name_of(port): rows})
    for kind, body, read in (
        ("application/x-npy", npy.getvalue(), lambda x: np.load(io.BytesIO(x))),
        ("application/x-npz", npz.getvalue(), lambda x: np.load(io.BytesIO(x))["output0"]),
        ("application/octet-stream", npz.getvalue(), lambda x: np.load(io.BytesIO(x))["output0"]),
        ("application/vnd.safetensors", save({name_of(port): rows}), lambda x: load(x)["output0"]),
    ):
        status, headers, content = ask(port, "POST", "/predict", body, kind)
        assert status == 200 and headers["content-type"].startswith("application/"), content
        np.testing.assert_allclose(read(content), want, rtol=1e-4, atol=1e-5)


def test_what_it_says_of_itself(port):
    assert ask(port, "GET", "/health")[::2] == (200, b'{"status":"ok"}')
    told = json.loads(ask(port, "GET", "/metadata")[2])
    assert told["recipe"] == "compile(onnxruntime)" and told["max_batch_rows"] == 4 and told["max_body_bytes"] == 200_000
    assert told["inputs"][0]["shape"] == [-1, 1, 12, 12] and told["outputs"][0]["dtype"] == "float32"


def test_its_example_is_a_body_that_it_takes(port, place):
    status, _, body = ask(port, "GET", "/example")
    assert status == 200
    status, _, answer = ask(port, "POST", "/predict", body, "application/json")
    assert status == 200
    np.testing.assert_allclose(json.loads(answer)["outputs"]["output0"], artifact.example(place)[1][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("body", "kind", "status", "says"), [
    (b"{", "application/json", 400, "not JSON"),
    (b"", "application/json", 400, "must be JSON"),
    (b'{"inputs": [[[1, 2]]]}', "application/json", 422, "must be float32 of shape [-1, 1, 12, 12]"),
    (b'{"inputs": {"no such": 1}}', "application/json", 422, "the inputs are "),
    (b"x" * 200_001, "application/json", 413, "over 200000 bytes"),
    (b"a=1", "application/x-www-form-urlencoded", 415, "known: application/json"),
    (b"\x80\x04N.", "application/x-npy", 400, "not a .npy file"),
    (b"\x80\x04N.", "application/octet-stream", 400, "safetensors"),
])
def test_malformed_bodies_are_answered(port, body, kind, status, says):
    got, _, content = ask(port, "POST", "/predict", body, kind)
    told = json.loads(content)
    assert got == status and says in told["error"], told
    assert told["expected"]["inputs"][0]["dtype"] == "float32"


def test_paths_and_methods_that_there_are_not(port):
    for request, status in (("GET /", 404), ("POST /nothing", 404), ("GET /predict", 405), ("POST /health", 405)):
        got, _, content = ask(port, *request.split())
        assert got == status and json.loads(content)["expected"]["/predict"] == "POST"


def test_a_body_that_grows_is_cut(port):
    """Without a length nobody knows how large it will be."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        raw.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(100):
                raw.sendall(b"2710\r\n" + b"1" * 10_000 + b"\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_who_leaves_in_the_middle_harms_nobody(port):
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
            raw.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{")
    assert ask(port, "GET", "/health")[0] == 200


def test_many_at_once_each_get_their_own(port):
    rows = testing.workload.example(40)[0].numpy()
    want = testing.trained().eval()(torch.from_numpy(rows)).detach().numpy()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: predict(port, [rows[i:i + 1]]), range(40)))
    np.testing.assert_allclose(np.concatenate(answers), want, rtol=1e-4, atol=1e-5)
    text = ask(port, "GET", "/metrics")[2].decode()
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(figures['thrifty_requests_total{path="/predict",status="200"}']) >= 40
    assert float(figures["thrifty_batch_rows_count"]) < float(figures["thrifty_batch_rows_sum"]), "some ran together"
    assert float(figures["thrifty_queue_length"]) == 0
    assert float(figures['thrifty_request_seconds_bucket{le="+Inf",path="/predict"}']) >= 40


def test_unknown_paths_do_not_become_labels(port):
    ask(port, "GET", "/some-secret")
    text = ask(port, "GET", "/metrics")[2].decode()
    assert "some-secret" not in text and 'path="other",status="404"' in text


class Slow(nn.Module):
    """Long enough that requests queue."""

    def forward(self, x):
        for _ in range(40):
            x = torch.tanh(x @ x)
        return x


def test_a_full_queue_is_answered_and_those_in_flight_are_finished(tmp_path):
    place = written(tmp_path / "slow", Slow(), (torch.eye(400)[None],), {})
    body = io.BytesIO()
    np.save(body, np.eye(400, dtype="float32")[None])
    with running(place, "--max-queue", "1") as (process, port), concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, port, "POST", "/predict", body.getvalue(), "application/x-npy") for _ in range(8)]
        done = [answer.result() for answer in answers]
        busy = [x for x in done if x[0] == 503]
        assert {x[0] for x in done} == {200, 503}
        assert busy[0][1]["retry-after"] == "1" and "try again" in json.loads(busy[0][2])["error"]
        with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
            head = f"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body.getvalue())}\r\n"
            raw.sendall(head.encode() + b"content-type: application/x-npy\r\n\r\n" + body.getvalue())
            assert ask(port, "GET", "/health")[0] == 200  # what came before it has been taken in
            process.send_signal(signal.SIGTERM)
            assert raw.recv(100).startswith(b"HTTP/1.1 200")
        assert process.wait(20) == 0


def test_where_the_batch_is_fixed_requests_run_one_by_one(place, tmp_path):
    fixed = written(tmp_path / "fixed", testing.trained(), testing.workload.example(1), {})
    assert max_batch(artifact.read(fixed), Settings()) == 1 and max_batch(artifact.read(place), Settings()) == 8
    assert max_batch(artifact.read(place) | {"engine": "xla"}, Settings()) == 1
    assert max_batch(artifact.read(place) | {"engine": "xla"}, Settings(max_batch=4)) == 4
    with start(place, artifact.read(place), Settings(max_batch=64)) as (_, most):
        assert most == 64
    ranged = artifact.read(place)
    ranged["inputs"][0]["varies"] = [[0, "batch", 1, 4]]
    assert max_batch(ranged, Settings(max_batch=64)) == 4 and max_batch(ranged, Settings()) == 4


def test_rows_that_mix_are_never_batched(tmp_path):
    example = (torch.randn(1, 5),)
    mixing = written(tmp_path / "mixing", Mixing(), example, {0: {0: (1, 64)}})
    assert max_batch(artifact.read(mixing), Settings()) == 8
    with start(mixing, artifact.read(mixing), Settings()) as (_, most):
        assert most == 1


def test_an_engine_that_answers_its_own_example_otherwise_is_not_served(place, tmp_path):
    """Made on another machine, say, whose arithmetic differs: nobody is answered by it."""
    shutil.copytree(place, tmp_path / "wrong")
    inputs, outputs = artifact.example(place)
    np.savez(tmp_path / "wrong" / artifact.EXAMPLE, input0=inputs[0], output0=-outputs[0])
    content = (tmp_path / "wrong" / artifact.EXAMPLE).read_bytes()
    manifest = artifact.read(place)
    manifest["example"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (tmp_path / "wrong" / "artifact.json").write_text(json.dumps(manifest))
    with pytest.raises(ServeError, match="cannot be served: the stored example's answer differs by 2"), \
         start(tmp_path / "wrong", manifest, Settings()):
        pass


@pytest.mark.parametrize(("settings", "says"), [
    ({"port": 70000}, "0 to 65535"), ({"port": -1}, "0 or more"), ({"max_batch": 0}, "1 or more"), ({"threads": 0}, "1 or more"),
    ({"max_queue": 0}, "1 or more"), ({"max_wait": -0.1}, "0 or more"), ({"max_wait": float("nan")}, "0 or more")])
def test_settings_out_of_range(settings, says):
    with pytest.raises(ServeError, match=says):
        Settings(**settings)


def test_an_address_that_is_taken_is_told_before_anything_is_opened(place):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServeError, match="choose another --port"):
            serve(place, Settings(port=taken.getsockname()[1]))


def test_a_missing_library_names_its_extra(place, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"starlette is not installed; .*thrifty\[serve\]"):
        serve(place)


def test_a_dtype_that_no_body_carries(place, tmp_path):
    artifact.copy(place, tmp_path / "copy")
    manifest = artifact.read(place)
    manifest["inputs"][0]["dtype"] = "bfloat16"
    (tmp_path / "copy" / "artifact.json").write_text(json.dumps(manifest))
    with pytest.raises(ServeError, match="no request body can carry"):
        serve(tmp_path / "copy", Settings(port=0))


def test_it_serves_without_torch(place):
    script = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ImportError('torch is not deployed')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import os, signal, threading, urllib.request\n"
        "from thrifty.serve.server import Settings, serve\n"
        "def heard(text):\n"
        "    url = text.split(' on ')[1].split()[0]\n"
        "    def go():\n"
        "        body = urllib.request.urlopen(url + '/example').read()\n"
        "        made = urllib.request.Request(url + '/predict', body, {'content-type': 'application/json'})\n"
        "        print(urllib.request.urlopen(made).status, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    threading.Thread(target=go).start()\n"
        "serve(sys.argv[1], Settings(port=0), heard)\n"
        "print('ended')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(place)], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["200", "ended"]), done.stderr
