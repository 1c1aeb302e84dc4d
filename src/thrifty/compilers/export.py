"""No compiler: the model as a ``torch.export`` program in core ATen operators, which torch alone can open."""

from __future__ import annotations

import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from thrifty.artifacts.lowered import Lowered
from thrifty.compilers.capture import capture, precision_of, specs
from thrifty.recipes.card import Card
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context

FILE = "model.pt2"


@final
@dataclass(frozen=True)
class Export(Compiler):
    """A `torch.export` program, the default: it runs where neither the model's code nor Thrifty is installed.

    Quantized models keep their integers in the file; their arithmetic is simulated in float32.
    """

    name: ClassVar[str] = "export"
    card: ClassVar[Card] = Card(
        family="compilers",
        benefit="inference time",
        trade_off="no speed: it runs the operators one by one, as eager PyTorch does",
        paper='"PyTorch 2", Ansel et al. 2024, doi:10.1145/3620665.3640366',
        provides=frozenset({"compiled"}),
        removes=frozenset({"module"}),
    )

    def lower(self, model: nn.Module, example: tuple[Tensor, ...], directory: Path, context: Context) -> Lowered:
        """Write ``model.pt2``.

        Raises:
            LoweringError: the model cannot be captured.
        """
        program = capture(model, example, context.shapes).run_decompositions()
        write_program(program, directory / FILE)
        inputs, outputs = specs(program, len(example), context.shapes)
        return Lowered(
            engine="export", files=(FILE,), inputs=inputs, outputs=outputs, portable=True, native=False,
            needs=("torch",), precision=precision_of(model),
        )

    @classmethod
    def missing(cls) -> str | None:
        return None


def _forget(program: torch.export.ExportedProgram) -> None:
    """Drop the example, which tells of the data, and each node's stack trace, which tells of this machine."""
    program._example_inputs = None
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
                    node.meta.pop(key, None)


def write_program(program: ExportedProgram, destination: Path) -> None:
    """Save a program without what only its maker would read: stack traces, and JSON that is not deflated."""
    _forget(program)
    with tempfile.TemporaryDirectory() as scratch:
        loose = Path(scratch) / destination.name
        torch.export.save(program, loose)
        _compress(loose, destination)


def _compress(source: Path, destination: Path) -> None:
    """Copy a zip file, its JSON deflated: torch reads it all the same, and the graph shrinks tenfold.

    Weights stay as they are: they hardly shrink, and inflating them would slow loading.
    """
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(destination, "w") as new:
        for entry in old.infolist():
            how = zipfile.ZIP_DEFLATED if entry.filename.endswith(".json") else zipfile.ZIP_STORED
            new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry), how)
