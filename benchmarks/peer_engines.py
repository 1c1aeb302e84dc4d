"""The engines that `quantization_peers.py` compares: ours made here, the others' by `peer_quantizers.py`, each an artifact."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import nn

from thrifty import artifact, checkpoint
from thrifty.compilers.capture import capture, specs
from thrifty.compilers.inductor import kernels as inductor_kernels
from thrifty.compilers.onnxruntime import kernels as onnxruntime_kernels
from thrifty.compilers.openvino import kernels as openvino_kernels
from thrifty.context import make_context, run_training
from thrifty.engines import RUNTIMES
from thrifty.engines.instructions import instruction_set
from thrifty.loading import load_workload
from thrifty.method import Compiler, Context, Lowered, Transform
from thrifty.numerics.graph import is_convolution
from thrifty.recipe import Recipe, Train
from thrifty.registry import method_class
from thrifty.target import Target, cores

HERE = Path(__file__).resolve().parent
CALIBRATION_EXAMPLES = 256
SEED = 0
FLOAT = "float"
WEIGHTS = "weights"
COMPILERS = ("openvino", "onnxruntime", "inductor")
NNCF, NNCF_BF16 = "nncf", "nncf-bf16"
"""One file of NNCF's: OpenVINO computes what is not integer in float32 or in bfloat16, as it is told when it opens it."""


@final
@dataclass(frozen=True)
class Entry:
    """A model of the benchmark.

    Args:
        workload: a reference that `load_workload` takes.
        weights: the model whose trained weights it has; its own where empty.
        judged: whether its quality says anything.
    """

    workload: str
    weights: str = ""
    judged: bool = True


MODELS = {
    "resnet18-64": Entry(f"{HERE / 'digits_resnet.py'}:small"),
    "minilm": Entry("minilm"),
    "digits": Entry("digits"),
    "resnet18-224": Entry(f"{HERE / 'digits_resnet.py'}:large", weights="resnet18-64", judged=False),
    "python-lm": Entry("python-lm"),
}


def weights(name: str, store: Path) -> Path:
    """The checkpoint of a model as its reference leaves it, trained once."""
    place = store / (MODELS[name].weights or name) / WEIGHTS
    return once(place, functools.partial(_train, MODELS[MODELS[name].weights or name]))


def _train(entry: Entry, place: Path) -> None:
    workload = load_workload(entry.workload)
    torch.manual_seed(SEED)
    net, target = workload.model(), Target(threads=cores())
    torch.set_num_threads(cores())
    for phase in Recipe.parse(workload.reference):
        assert isinstance(phase, Train)
        net = run_training(workload, phase, net, SEED, target, _no_teacher, lambda event: None).model
    checkpoint.save(checkpoint.Checkpoint(workload.source, workload.reference), net, place)


def _no_teacher(recipe: str) -> nn.Module:
    raise ValueError(f"the reference must not distil, but wants the teacher {recipe}")


def engines(name: str, store: Path, peers_python: Path) -> dict[str, str]:
    """Make every engine of a model that is not there yet; {engine: why there is none}."""
    place = store / name
    workload, kept = load_workload(MODELS[name].workload), weights(name, store)
    net = checkpoint.load_module(MODELS[name].workload, str(kept))
    context = make_context(workload, Target(threads=1), SEED, [], lambda event: None, CALIBRATION_EXAMPLES)
    once(place / FLOAT, lambda out: _export(net, context, out))
    convolutional = any(map(is_convolution, net.modules()))
    tools: dict[str, Callable[[Path], None]] = {}
    for scheme, recipe in schemes(convolutional).items():
        for compiler in COMPILERS:
            if "bf16" not in scheme or compiler != "onnxruntime":  # which has no bfloat16
                tools[f"{scheme}-{compiler}"] = functools.partial(_ours, net, recipe, compiler, context)
    for kind in (f"onnxruntime-{'static' if convolutional else 'dynamic'}", NNCF, "neural-compressor"):
        tools[kind] = functools.partial(_theirs, net, context, kind, place / FLOAT, peers_python)
    tools[NNCF_BF16] = lambda out: _in_bfloat16(net, context, place / NNCF, out)
    failed: dict[str, str] = {}
    for tool, make in tools.items():
        try:
            once(place / tool, make)
        except Exception as error:  # of whatever kind a tool raises: the table says it
            failed[tool] = " ".join(str(error).split())[-300:] or type(error).__name__
    return failed


def schemes(convolutional: bool) -> dict[str, str]:
    """Our recipes; a net of convolutions leaves nothing to bfloat16."""
    both = {"w8a8": "quantize(w8a8)", "w8a8-bf16": "quantize(w8a8, rest=bf16)"}
    return {"w8a8": both["w8a8"]} if convolutional else both


def once(place: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made where it is not there yet; it appears whole or not at all."""
    if not place.is_dir():
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        partial.rename(place)
    return place


def _export(net: nn.Module, context: Context, out: Path) -> None:
    """What the others start from: the program and the examples that we calibrate on too."""
    torch.export.save(capture(net, context.example, {}), out / "program.pt2")
    columns = [torch.cat(column) for column in zip(*context.calibration(), strict=True)]
    np.savez(out / "calibration.npz", **{f"input{i}": column.numpy() for i, column in enumerate(columns)})


def _ours(net: nn.Module, recipe: str, compiler: str, context: Context, out: Path) -> None:
    (quantize,) = Recipe.parse(recipe)
    lower = method_class(compiler)()
    assert isinstance(quantize, Transform)
    assert isinstance(lower, Compiler)
    with torch.no_grad():
        integer = quantize.build(copy.deepcopy(net), quantize.plan(net, context))
        _write(out, lower.lower(integer, context.example, out, context), context, integer)


def _theirs(net: nn.Module, context: Context, kind: str, given: Path, python: Path, out: Path) -> None:
    command = [str(python), str(HERE / "peer_quantizers.py"), kind, str(given), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    made = json.loads((out / "peer.json").read_text())
    (out / "peer.json").unlink()
    _write(out, _lowered(net, context, out, made["engine"], made["precision"], made["files"]), context, net)


def _in_bfloat16(net: nn.Module, context: Context, made: Path, out: Path) -> None:
    files = list(artifact.read(made)["files"])
    for file in files:
        shutil.copyfile(made / file, out / file)
    _write(out, _lowered(net, context, out, "openvino", "int8+bf16", files), context, net)


def _lowered(net: nn.Module, context: Context, out: Path, engine: str, precision: str, files: Sequence[str]) -> Lowered:
    """What another tool left, told as one of our compilers tells it: integer layers are counted on what really ran."""
    inputs, outputs = specs(capture(net, context.example, {}), len(context.example))
    native = engine == "inductor"
    path, arrays = out / files[0], [x.numpy() for x in context.example]
    counted = {"openvino": lambda: openvino_kernels(path, arrays, precision),
               "onnxruntime": lambda: onnxruntime_kernels(path, arrays),
               "inductor": lambda: inductor_kernels(_source(path))}
    return Lowered(engine=engine, files=tuple(files), inputs=inputs, outputs=outputs, portable=not native, native=native,
                   needs=(RUNTIMES[engine],), precision=precision, instruction_set=instruction_set() if native else "",
                   facts=counted[engine]())


def _source(package: Path) -> str:
    with zipfile.ZipFile(package) as archive:
        return "".join(archive.read(name).decode() for name in archive.namelist() if name.endswith(".cpp"))


def _write(out: Path, lowered: Lowered, context: Context, model: nn.Module) -> None:
    arrays = [x.numpy() for x in context.example]
    with torch.no_grad():
        answer = model(*context.example)
    artifact.write(out, lowered, {"facts": dict(lowered.facts)}, arrays, [answer.numpy()])
