"""ExecuTorch: a `.pte` program over XNNPACK's kernels, which phones and small boards run too."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from thrifty.artifacts.lowered import Lowered
from thrifty.compilers import buckets as padding
from thrifty.compilers.capture import capture, precision_of, specs
from thrifty.compilers.refusal import cannot_express
from thrifty.compilers.requirements import require, require_processor, to_install
from thrifty.engines.buckets import FILE
from thrifty.recipes.card import Card
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import sizes

PROGRAM = "model.pte"


@final
@dataclass(frozen=True)
class ExecuTorch(Compiler):
    """A `.pte` program, matrix multiplications and convolutions by XNNPACK; one method for each of several sizes if sizes vary.

    Args:
        buckets: those sizes, for each dimension that varies the ones within its range; () for powers of two.
    """

    buckets: tuple[int, ...] = sizes()

    name: ClassVar[str] = "executorch"
    card: ClassVar[Card] = Card(
        family="compilers",
        benefit="inference time",
        trade_off="varying sizes are padded to one of several; float32 only; operators that its core lacks",
        paper='"ExecuTorch", Meta 2023-2026, https://docs.pytorch.org/executorch; "XNNPACK", Google 2019-2026, '
              'https://github.com/google/XNNPACK',
        provides=frozenset({"compiled"}),
        removes=frozenset({"module"}),
        refuses=frozenset({"integer-products", "bfloat16"}),
        devices=frozenset({"cpu"}),
    )
    packages: ClassVar[tuple[str, ...]] = ("executorch",)
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    pads: ClassVar[bool] = True

    def lower(self, model: nn.Module, example: tuple[Tensor, ...], directory: Path, context: Context) -> Lowered:
        """Write ``model.pte``, weights inside, and ``buckets.json`` where sizes vary.

        Raises:
            MissingExtra: executorch is not installed.
            LoweringError: the target is no processor, the model cannot be captured or translated, or answers otherwise
                where it is padded.
        """
        require("executorch", *self.packages)
        require_processor(self.name, context.target.device)
        model, example = model.cpu(), tuple(x.cpu() for x in example)
        made = padding.layout(model, example, context.shapes, self.buckets)
        with torch.no_grad():
            programs = {method(i): capture(model, padding.resized(example, made.inputs, bucket), {})
                        for i, bucket in enumerate(made.sizes)}
        inputs, outputs = specs(programs[method(0)], len(example))
        (directory / PROGRAM).write_bytes(_lowered(programs))
        if made.ranges:
            made.write(directory / FILE)
        return Lowered(
            engine="executorch", files=(PROGRAM, FILE) if made.ranges else (PROGRAM,),
            inputs=padding.varying(inputs, made.inputs, made.ranges), outputs=padding.varying(outputs, made.outputs),
            portable=True, native=False, needs=("executorch", "torch"), precision=precision_of(model),
        )

    @classmethod
    def missing(cls) -> str | None:
        return to_install("executorch", *cls.packages)


def method(bucket: int) -> str:
    """Name under which the program holds a bucket's method."""
    return f"bucket{bucket}"


def _lowered(programs: Mapping[str, ExportedProgram]) -> bytes:
    """One program of all methods, over weights that they share."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            with torch.no_grad():
                edge: Any = to_edge_transform_and_lower(
                    dict(programs), partitioner={name: [XnnpackPartitioner()] for name in programs})
                return bytes(edge.to_executorch().buffer)
        except Exception as error:  # ExecuTorch's passes raise many kinds
            raise cannot_express("ExecuTorch", error, "onnxruntime", "inductor") from error
