"""The verbs that make one thing of a Hugging Face directory, without a study."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.directories import DataOption, TaskOption

SCHEME = "w8a8, algorithm=rtn"
"""Of int8 products, without vectors that the format has no place for where no norm stands before a layer."""

DirectoryArgument = Annotated[str, typer.Argument(metavar="DIR", help="A Hugging Face directory.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="The directory to be made.")]


class Format(enum.Enum):
    """What `thrifty export` writes."""

    onnx = "onnx"
    openvino = "openvino"
    executorch = "executorch"


COMPILERS = {Format.onnx: "onnxruntime", Format.openvino: "openvino", Format.executorch: "executorch"}


def quantize(directory: DirectoryArgument, out: OutOption,
             scheme: Annotated[str, typer.Option("--scheme", help='As in quantize(...): "w4a16, group=32".')] = SCHEME,
             task: TaskOption = None, data: DataOption = None) -> None:
    """Quantize a Hugging Face directory of a text model, into one that transformers and vLLM load (compressed-tensors).

    Nothing is measured: thrifty run says what is lost and won.

    Example: thrifty quantize ./my-model -o my-model-w8a8 --data texts.jsonl
    """
    from thrifty.runs.conversion import quantize_directory
    from thrifty.workloads.huggingface import reference

    print(quantize_directory(reference(directory, task, data), out, scheme))


def export(directory: DirectoryArgument, out: OutOption,
           to: Annotated[Format, typer.Option("--to", help="onnx, openvino (its IR) or executorch.")] = Format.onnx,
           task: TaskOption = None, data: DataOption = None,
           threads: Annotated[int, typer.Option("--threads", min=1, help="Threads for inference.")] = 1) -> None:
    """Write a Hugging Face directory's model as it is for an engine, beside a manifest; its answers are compared.

    Nothing is measured: thrifty run says how fast it is.

    Example: thrifty export ./my-model --to onnx -o my-model-onnx --data texts.jsonl
    """
    from thrifty.recipes.registry import method_class
    from thrifty.runs.conversion import export_directory
    from thrifty.workloads.huggingface import reference

    compiler = method_class(COMPILERS[to])()
    print(export_directory(reference(directory, task, data), out, compiler, threads))  # type: ignore[arg-type]
