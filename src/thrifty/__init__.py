"""Thrifty finds the efficiency frontier of a PyTorch model.

The public names, in reading order. Each is imported when it is first used, so that ``import thrifty`` costs nothing
and an engine's process never imports what it does not need.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thrifty.artifact import load as load
    from thrifty.bench import bench as bench
    from thrifty.checking import check as check
    from thrifty.choosing import Bars as Bars
    from thrifty.choosing import best as best
    from thrifty.compilers.auto import Auto as Auto
    from thrifty.compilers.executorch import ExecuTorch as ExecuTorch
    from thrifty.compilers.export import Export as Export
    from thrifty.compilers.inductor import Inductor as Inductor
    from thrifty.compilers.inprocess import compiled as compiled
    from thrifty.compilers.onnxruntime import OnnxRuntime as OnnxRuntime
    from thrifty.compilers.openvino import OpenVino as OpenVino
    from thrifty.compilers.tvm import Tvm as Tvm
    from thrifty.compilers.xla import Xla as Xla
    from thrifty.findings import Findings as Findings
    from thrifty.frontier import frontier as frontier
    from thrifty.generation import Generator as Generator
    from thrifty.generation import lower_generator as lower_generator
    from thrifty.interchange.compressed_tensors import export_compressed_tensors as export_compressed_tensors
    from thrifty.interchange.compressed_tensors import import_compressed_tensors as import_compressed_tensors
    from thrifty.loading import load_workload as load_workload
    from thrifty.method import Card as Card
    from thrifty.method import Claim as Claim
    from thrifty.method import Compiler as Compiler
    from thrifty.method import Context as Context
    from thrifty.method import Plan as Plan
    from thrifty.method import TrainingMethod as TrainingMethod
    from thrifty.method import Transform as Transform
    from thrifty.posttraining.low_rank import LowRank as LowRank
    from thrifty.posttraining.prune import Prune as Prune
    from thrifty.posttraining.quantize import Quantize as Quantize
    from thrifty.quality import Accuracy as Accuracy
    from thrifty.quality import BitsPerByte as BitsPerByte
    from thrifty.quality import Quality as Quality
    from thrifty.quality import Scores as Scores
    from thrifty.recipe import Recipe as Recipe
    from thrifty.recipe import Train as Train
    from thrifty.run import run as run
    from thrifty.search.explore import explore as explore
    from thrifty.search.sweep import sweep as sweep
    from thrifty.search.tune import tune as tune
    from thrifty.store import Store as Store
    from thrifty.target import Target as Target
    from thrifty.training.distillation import Distill as Distill
    from thrifty.training.loop import fit as fit
    from thrifty.training.mixed_precision import Bf16 as Bf16
    from thrifty.training.mixed_precision import Fp8 as Fp8
    from thrifty.training.mixed_precision import Fp16 as Fp16
    from thrifty.training.mixed_precision import Tf32 as Tf32
    from thrifty.training.optimizers import AdamW as AdamW
    from thrifty.training.optimizers.adafactor import Adafactor as Adafactor
    from thrifty.training.optimizers.adamw8bit import AdamW8bit as AdamW8bit
    from thrifty.training.optimizers.ema import Ema as Ema
    from thrifty.training.optimizers.lion import Lion as Lion
    from thrifty.training.optimizers.muon import Muon as Muon
    from thrifty.training.optimizers.schedule_free import ScheduleFree as ScheduleFree
    from thrifty.training.optimizers.soap import Soap as Soap
    from thrifty.training.optimizers.sophia import Sophia as Sophia
    from thrifty.training.peft.ia3 import Ia3 as Ia3
    from thrifty.training.peft.lora import Lora as Lora
    from thrifty.training.peft.prompt import PromptTuning as PromptTuning
    from thrifty.training.peft.save import save_adapter as save_adapter
    from thrifty.training.peft.vera import Vera as Vera
    from thrifty.training.qat.qat import Qat as Qat
    from thrifty.trial import Trial as Trial
    from thrifty.verifying import verify as verify
    from thrifty.workload import CrossEntropy as CrossEntropy
    from thrifty.workload import Loss as Loss
    from thrifty.workload import Offline as Offline
    from thrifty.workload import Server as Server
    from thrifty.workload import SingleStream as SingleStream
    from thrifty.workload import Workload as Workload

__version__ = "0.1.0"

_PLACES = {
    # what the user brings, and what it will run on
    "Workload": "workload", "load_workload": "loading", "Loss": "workload", "CrossEntropy": "workload",
    "Quality": "quality", "Scores": "quality", "Accuracy": "quality", "BitsPerByte": "quality",
    "SingleStream": "workload", "Offline": "workload", "Server": "workload", "Target": "target",
    # recipes and methods
    "Recipe": "recipe", "Train": "recipe", "Transform": "method", "TrainingMethod": "method", "Compiler": "method",
    "Card": "method", "Claim": "method", "Plan": "method", "Context": "method",
    "AdamW": "training.optimizers", "Sophia": "training.optimizers.sophia", "Muon": "training.optimizers.muon",
    "Soap": "training.optimizers.soap", "Lion": "training.optimizers.lion", "Adafactor": "training.optimizers.adafactor",
    "ScheduleFree": "training.optimizers.schedule_free", "AdamW8bit": "training.optimizers.adamw8bit",
    "Ema": "training.optimizers.ema",
    "Bf16": "training.mixed_precision", "Fp16": "training.mixed_precision", "Fp8": "training.mixed_precision",
    "Tf32": "training.mixed_precision",
    "Distill": "training.distillation", "Qat": "training.qat.qat",
    "Lora": "training.peft.lora", "Ia3": "training.peft.ia3", "Vera": "training.peft.vera",
    "PromptTuning": "training.peft.prompt", "save_adapter": "training.peft.save",
    "LowRank": "posttraining.low_rank", "Prune": "posttraining.prune", "Quantize": "posttraining.quantize",
    "Export": "compilers.export", "Inductor": "compilers.inductor", "OnnxRuntime": "compilers.onnxruntime",
    "OpenVino": "compilers.openvino", "Xla": "compilers.xla", "Tvm": "compilers.tvm",
    "ExecuTorch": "compilers.executorch", "Auto": "compilers.auto",
    # running, measuring, choosing
    "fit": "training.loop", "compiled": "compilers.inprocess",
    "lower_generator": "generation", "Generator": "generation", "check": "checking", "run": "run", "bench": "bench",
    "explore": "search.explore", "sweep": "search.sweep", "tune": "search.tune",
    "load": "artifact", "verify": "verifying", "Trial": "trial", "Store": "store", "frontier": "frontier",
    "Bars": "choosing", "best": "choosing", "Findings": "findings",
    "export_compressed_tensors": "interchange.compressed_tensors",
    "import_compressed_tensors": "interchange.compressed_tensors",
}

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        # Resolved once and kept: a submodule of the same name (`frontier`, `run`) must not shadow the verb.
        value = getattr(importlib.import_module(f"thrifty.{_PLACES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'thrifty' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})


class _Package(types.ModuleType):
    """``thrifty.run`` and ``thrifty.frontier`` are verbs even once the files of the same names were imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PLACES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
