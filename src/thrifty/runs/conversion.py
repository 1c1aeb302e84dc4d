"""A Hugging Face directory, quantized or lowered in one step: for those who want neither a study nor its figures."""

from __future__ import annotations

import shutil
from pathlib import Path

from thrifty.compilers.lower import lower
from thrifty.errors import ThriftyError, WorkloadError
from thrifty.interchange.compressed_tensors import export_compressed_tensors
from thrifty.posttraining.quantize import Quantize
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.recipe import Recipe
from thrifty.runs.context import calibration
from thrifty.runs.saving import take_over
from thrifty.target import Target
from thrifty.workloads import huggingface
from thrifty.workloads.loading import load_workload
from thrifty.workloads.workload import Workload


def quantize_directory(source: str, directory: Path, scheme: str) -> Path:
    """Quantize the model of a directory and write it in the compressed-tensors format, its tokenizer beside it.

    Args:
        source: a Hugging Face directory, with task and data in it (`huggingface.reference`).
        directory: new, or empty.
        scheme: what stands between the brackets of ``quantize(...)``.

    Raises:
        ThriftyError: it is no such directory, or the format cannot hold the model or the scheme.
    """
    method = _quantize(scheme)
    workload = _workload(source)
    model = method(workload.model().eval(), calibration(workload, seed=0))
    path = export_compressed_tensors(model, directory)
    take_over(path, workload)
    return path


def export_directory(source: str, directory: Path, compiler: Compiler, threads: int = 1) -> Path:
    """Lower the model of a directory, as it is, to an artifact, whose engine any program may load.

    Args:
        source: as that of `quantize_directory`.
        directory: to be made.
        compiler: that is installed.
        threads: that it will run on.

    Raises:
        ThriftyError: it is no such directory, the compiler is not installed, or cannot take the model.
    """
    if missing := type(compiler).missing():
        raise ThriftyError(missing)
    if directory.exists():
        raise ThriftyError(f"{directory} already exists: name a new directory")
    workload = _workload(source)
    try:
        lower(workload.model().eval(), compiler, directory, workload.example(1), shapes=workload.served_shapes,
              target=Target(threads=threads))
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)  # half an artifact is none, and its name is free again
        raise
    return directory


def _workload(source: str) -> Workload:
    if not huggingface.is_reference(source):
        raise WorkloadError(f"{source!r} is not a Hugging Face directory with a config.json; for your own workload, save a "
                            "trial: thrifty best STUDY --save OUT")
    return load_workload(source)


def _quantize(scheme: str) -> Quantize:
    phases = Recipe.parse(f"quantize({scheme})").phases
    if len(phases) != 1 or not isinstance(phases[0], Quantize):
        raise ThriftyError(f"--scheme must be one scheme, such as w8a8 or \"w4a16, group=32\", but is {scheme!r}")
    return phases[0]
