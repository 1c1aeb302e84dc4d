"""XLA by way of torchax and jax: a StableHLO program that needs jax alone, compiled where it is opened."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from thrifty.artifacts.lowered import Lowered
from thrifty.compilers.capture import LoweringError, Shapes, capture, precision_of, specs
from thrifty.compilers.refusal import cannot_express
from thrifty.compilers.requirements import require, to_install
from thrifty.recipes.card import Card
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context

FILES = ("model.stablehlo", "weights.safetensors")
PACKAGES = ("jax", "torchax")
PLATFORMS = ("cpu", "cuda")
"""What one program serves; none of them need be here when it is made."""
REFUSED = 3
"""Exit code of the writing process that says why on its stdout."""


@final
@dataclass(frozen=True)
class Xla(Compiler):
    """StableHLO, portable to every processor and NVIDIA GPU that XLA supports."""

    name: ClassVar[str] = "xla"
    card: ClassVar[Card] = Card(
        family="compilers",
        benefit="inference time",
        trade_off="seconds of compilation at every load; no gain from int8 or bfloat16 on processors",
        paper='"XLA: compiling machine learning for peak performance", Sabne 2020; "Compiling machine learning programs '
              'via high-level tracing", Frostig et al. 2018',
        provides=frozenset({"compiled"}),
        removes=frozenset({"module"}),
        refuses=frozenset({"integer-products", "float8-products", "bfloat16"}),
    )
    packages: ClassVar[tuple[str, ...]] = PACKAGES
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)

    def lower(self, model: nn.Module, example: tuple[Tensor, ...], directory: Path, context: Context) -> Lowered:
        """Write ``model.stablehlo``, the program as `jax.export` serializes it, and its weights as safetensors.

        Raises:
            MissingExtra: jax or torchax is not installed.
            LoweringError: the model cannot be captured or translated, or holds float64.
        """
        require("xla", *PACKAGES)
        example = tuple(x.cpu() for x in example)
        if any(x.dtype == torch.float64 for x in (*model.parameters(), *model.buffers(), *example)):
            raise LoweringError("XLA would compute this float64 model in float32: convert it with .float() first")
        with torch.no_grad():
            program = capture(model.cpu(), example, context.shapes)
            _write_apart(program, context.shapes, directory)
        inputs, outputs = specs(program, len(example), context.shapes)
        return Lowered(
            engine="xla", files=FILES, inputs=inputs, outputs=outputs, portable=True, native=False,
            needs=("jax", "safetensors"), precision=precision_of(model),
        )

    @classmethod
    def missing(cls) -> str | None:
        return to_install("xla", *PACKAGES)


def _write_apart(program: ExportedProgram, shapes: Shapes, directory: Path) -> None:
    """Write the files in a process of its own: once torchax is imported, torch.compile fails in the process for good."""
    with tempfile.TemporaryDirectory() as place:
        torch.export.save(program, Path(place) / "program.pt2")
        told = json.dumps([place, str(directory), {i: dict(dims) for i, dims in shapes.items()}])
        done = subprocess.run([sys.executable, "-m", "thrifty.compilers.xla"], input=told, capture_output=True, text=True,
                              check=False)
        if done.returncode == REFUSED:
            raise LoweringError(done.stdout.strip())
        if done.returncode:
            raise LoweringError(f"XLA's process exited with {done.returncode} and said: {' '.join(done.stderr.split())[-500:]}")


def _main() -> int:
    """The other end of `_write_apart`."""
    place, directory, given = json.load(sys.stdin)
    shapes = {int(i): {int(d): (low, high) for d, (low, high) in dims.items()} for i, dims in given.items()}
    program = torch.export.load(Path(place) / "program.pt2")
    example = program.example_inputs[0]
    try:
        with torch.no_grad():
            _write(program, example, shapes, Path(directory))
    except LoweringError as error:
        print(error)  # noqa: T201  # for the parent
        return REFUSED
    return 0


def _write(program: ExportedProgram, example: tuple[Tensor, ...], shapes: Shapes, directory: Path) -> None:
    from thrifty.compilers.torchax_shim import import_torchax

    torchax = import_torchax()
    import jax

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _count_first(program)
        try:
            _, states, call = torchax.export.exported_program_to_jax(program, export_raw=True)
            weights, places = _once(states)
            exported = jax.export.export(
                jax.jit(lambda kept, *inputs: call([kept[i] for i in places], inputs)), platforms=PLATFORMS
            )([_shaped(jax, torchax, x, None) for x in weights], *_inputs(jax, torchax, program, example, shapes))
        except Exception as error:  # torchax and jax raise many kinds
            raise cannot_express("XLA", error, "onnxruntime", "inductor") from error
    (directory / FILES[0]).write_bytes(exported.serialize())
    save_file({str(i): x.detach().contiguous() for i, x in enumerate(weights)}, directory / FILES[1])


def _count_first(program: ExportedProgram) -> None:
    """Have `arange` up to a free dimension count in its own type and convert after: torchax converts the bound, which must
    then be a constant."""
    aten: Any = torch.ops.aten
    counts = (aten.arange.default, aten.arange.start, aten.arange.start_step)
    for node in list(program.graph.nodes):
        dtype = node.kwargs.get("dtype")
        if node.target not in counts or dtype is None or not any(isinstance(bound, fx.Node) for bound in node.args):
            continue
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "dtype"}
        if dtype != torch.int64 and not any(isinstance(bound, float) for bound in node.args):
            with program.graph.inserting_after(node):
                converted = program.graph.call_function(aten._to_copy.default, (node,), {"dtype": dtype})
            node.replace_all_uses_with(converted, delete_user_cb=lambda user, converted=converted: user is not converted)
    program.graph_module.recompile()


def _once(states: list[Tensor]) -> tuple[list[Tensor], list[int]]:
    """Tensors without repetition, and for each state which of them it is: tied weights are written once."""
    kept: dict[tuple[int, tuple[int, ...], tuple[int, ...]], int] = {}
    weights: list[Tensor] = []
    places: list[int] = []
    for x in states:
        key = (x.data_ptr(), tuple(x.shape), x.stride())
        if key not in kept:
            kept[key] = len(weights)
            weights.append(x)
        places.append(kept[key])
    return weights, places


def _inputs(jax: Any, torchax: Any, program: ExportedProgram, example: tuple[Tensor, ...], shapes: Shapes) -> list[Any]:
    """Shape and dtype of each input, its free dimensions by torch.export's names and within the workload's ranges."""
    taken = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"][-len(example):]
    ranges = {str(taken[i].shape[d]): limits for i, dims in shapes.items() for d, limits in dims.items()
              if not isinstance(taken[i].shape[d], int)}
    scope = jax.export.SymbolicScope([rule for name, (low, high) in ranges.items()
                                      for rule in (f"{name} >= {low}", f"{name} <= {high}")])
    return [_shaped(jax, torchax, x, scope) for x in taken]


def _shaped(jax: Any, torchax: Any, x: Any, scope: Any) -> Any:
    shape = jax.export.symbolic_shape(",".join(map(str, x.shape)), scope=scope)
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(torchax.ops.mappings.t2j_dtype(x.dtype)))


if __name__ == "__main__":
    sys.exit(_main())
