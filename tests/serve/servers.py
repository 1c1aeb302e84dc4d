"""Artifacts to serve, the verb in a process of its own, and a client."""

from __future__ import annotations

import contextlib
import http.client
import re
import resource
import signal
import subprocess
import sys

import numpy as np

from thrifty.artifacts import artifact
from thrifty.artifacts.lowered import Lowered, TensorSpec
from thrifty.compilers.onnxruntime import OnnxRuntime
from thrifty.recipes.context import Context


def written(directory, model, example, shapes):
    """The model compiled for ONNX Runtime, as an artifact."""
    directory.mkdir(parents=True, exist_ok=True)
    context = Context(example=example, calibration=lambda: iter(()), shapes=shapes)
    lowered = OnnxRuntime().lower(model.eval(), example, directory, context)
    artifact.write(directory, lowered, {"recipe": "compile(onnxruntime)"}, [x.numpy() for x in example],
                   [model(*example).detach().numpy()])
    return directory


def counting(directory):
    """An artifact whose engine counts from 0 to its input, and thus takes as long as it is asked to."""
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["n", "one"], ["next"])], "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("n", TensorProto.FLOAT, [1, 1])],
        [value("on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, [1, 1])])
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64), helper.make_node("Squeeze", ["whole"], ["times"]),
         helper.make_node("Loop", ["times", "true", "zero"], ["y"], body=body)], "counting",
        [value("x", TensorProto.FLOAT, [1, 1])], [value("y", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor("true", TensorProto.BOOL, [], [True]), helper.make_tensor("zero", TensorProto.FLOAT, [1, 1], [0.0]),
         helper.make_tensor("one", TensorProto.FLOAT, [1, 1], [1.0])])
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), directory / "model.onnx")
    x, y = (TensorSpec(name, "float32", (1, 1)) for name in ("x", "output0"))
    lowered = Lowered("onnxruntime", ("model.onnx",), (x,), (y,), portable=True, native=False, needs=("onnxruntime",),
                      precision="fp32")
    three = np.full((1, 1), 3, "float32")
    artifact.write(directory, lowered, {"recipe": "compile(onnxruntime)"}, [three], [three])
    return directory


@contextlib.contextmanager
def running(directory, *options, files=None, end=20.0):
    """The verb in a process of its own; yields it and its port.

    Args:
        files: descriptors that it may open.
        end: seconds that it may take to end in.
    """
    limit = None if files is None else lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    process = subprocess.Popen([sys.executable, "-m", "thrifty", "serve", str(directory), "--port", "0", *options],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit)
    try:
        said = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", said)
        assert found, said + process.stderr.read()
        assert "curl" in process.stdout.readline()
        yield process, int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            _, process.said = process.communicate(timeout=end)
        finally:
            process.kill()


def ask(port, method, path, body=None, content_type=None, headers=None, timeout=20):
    """(status, headers, body)"""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, (headers or {}) | ({"content-type": content_type} if content_type else {}))
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()
