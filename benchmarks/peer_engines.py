"""The engines that `quantization_peers.py` compares: ours made here, the others' by `peer_quantizers.py`, each an artifact."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import nn

import thrifty
from thrifty.artifacts import artifact
from thrifty.artifacts.lowered import Lowered
from thrifty.compilers.capture import capture, specs
from thrifty.compilers.inductor import kernels as inductor_kernels
from thrifty.compilers.onnxruntime import kernels as onnxruntime_kernels
from thrifty.compilers.openvino import kernels as openvino_kernels
from thrifty.engines import RUNTIMES
from thrifty.engines.instructions import instruction_set, instructions
from thrifty.numerics.graph import is_convolution
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context
from thrifty.recipes.phases import Train
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.registry import method_class
from thrifty.recipes.transform import Transform
from thrifty.runs import checkpoint
from thrifty.runs.context import make_context, training_setup
from thrifty.target import Target, cores
from thrifty.training.loop import train
from thrifty.workloads.loading import load_workload
from thrifty.workloads.workload import Workload

HERE = Path(__file__).resolve().parent
PEERS = str(HERE / "peer_quantizers.py")
CALIBRATION_EXAMPLES = 256
SEED = 0
WEIGHTS = "weights"
OURS = "thrifty-"
"""What the names of our own engines begin with."""
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
        net = train(training_setup(workload, phase, SEED, target.device, _no_teacher), net).model
    checkpoint.save(checkpoint.Checkpoint(workload.source, workload.reference), net, place)


def _no_teacher(recipe: str) -> nn.Module:
    raise ValueError(f"the reference must not distil, but wants the teacher {recipe}")


def floating(name: str, store: Path) -> tuple[Workload, nn.Module, Context]:
    """What every tool starts from: the trained module, and a context with the examples that all calibrate on."""
    workload = load_workload(MODELS[name].workload)
    net = checkpoint.load_module(workload.source, str(weights(name, store)))
    return workload, net, make_context(workload, Target(threads=1), SEED, lambda event: None, examples=CALIBRATION_EXAMPLES)


def engines(name: str, store: Path, peers_python: Path) -> dict[str, str]:
    """Make every engine of a model that is not there yet; {engine: why there is none}."""
    place = store / name
    workload, net, context = floating(name, store)
    made = functools.cache(lambda recipe: followed(recipe, net, workload, context))
    convolutional = any(map(is_convolution, net.modules()))
    tools: dict[str, Callable[[Path], None]] = {}
    for scheme, recipe in schemes(convolutional).items():
        for compiler in COMPILERS:
            if "bf16" not in scheme or compiler != "onnxruntime":  # which has no bfloat16
                tools[f"{OURS}{scheme}-{compiler}"] = functools.partial(ours, made, recipe, compiler, context)
    for kind in (f"onnxruntime-{'static' if convolutional else 'dynamic'}", NNCF, "neural-compressor"):
        tools[kind] = functools.partial(theirs, net, context, [str(peers_python), PEERS, kind, name, str(store)])
    if fast_bfloat16():
        tools[NNCF_BF16] = lambda out: _in_bfloat16(net, context, place / NNCF, out)
    failed: dict[str, str] = {}
    for tool, make in tools.items():
        try:
            once(place / tool, make)
        except Exception as error:  # of whatever kind a tool raises: the table says it
            failed[tool] = " ".join(str(error).split())[-300:] or type(error).__name__
    return failed


def schemes(convolutional: bool) -> dict[str, str]:
    """Our recipes: a net of convolutions leaves nothing to bfloat16, and bfloat16 is for processors that multiply in it."""
    if convolutional:
        return {"fp32": "", "w8a8": "quantize(w8a8)",
                "pruned-w8a8": "prune(ratio=0.2) | train(adamw(lr=3e-4), epochs=1) | quantize(w8a8)"}
    found = {"fp32": "", "w8a8": "quantize(w8a8)", "w8a8-static": "quantize(w8a8, activations=static)",
             "w8a8-bf16": "quantize(w8a8, rest=bf16)",
             "w8a8-static-bf16": "quantize(w8a8, activations=static, rest=bf16)"}
    return {scheme: recipe for scheme, recipe in found.items() if "bf16" not in recipe or fast_bfloat16()}


def once(place: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made where it is not there yet; it appears whole or not at all."""
    if not place.is_dir():
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        partial.rename(place)
    return place


def ours(made: Callable[[str], nn.Module], recipe: str, compiler: str, context: Context, out: Path) -> None:
    lower = method_class(compiler)()
    assert isinstance(lower, Compiler)
    model = made(recipe)
    with torch.no_grad():
        _write(out, lower.lower(model, context.example, out, context), context, model)


def fast_bfloat16() -> bool:
    return bool(instructions() & {"avx512_bf16", "amx_bf16"})


def followed(recipe: str, net: nn.Module, workload: Workload, context: Context) -> nn.Module:
    """What a recipe makes of the trained net; the net itself where it is empty."""
    model = copy.deepcopy(net)
    for phase in Recipe.parse(recipe) if recipe else ():
        if isinstance(phase, Train):
            model = train(training_setup(workload, phase, SEED, "cpu", _no_teacher), model).model
            continue
        assert isinstance(phase, Transform)
        with torch.no_grad():
            model = phase.build(copy.deepcopy(model), phase.plan(model, context))
    return model.eval()


def theirs(net: nn.Module, context: Context, command: list[str], out: Path) -> None:
    paths = os.pathsep.join(filter(None, [str(Path(thrifty.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([*command, str(out)], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": paths})
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
