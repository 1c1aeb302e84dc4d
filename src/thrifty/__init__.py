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
    from thrifty.architectures.accelerate import accelerate as accelerate
    from thrifty.architectures.backbone import Backbone as Backbone
    from thrifty.architectures.blocks import Sizes as Sizes
    from thrifty.architectures.huggingface import from_huggingface as from_huggingface
    from thrifty.architectures.huggingface import to_huggingface as to_huggingface
    from thrifty.architectures.moe import MoE as MoE
    from thrifty.artifacts.artifact import load as load
    from thrifty.artifacts.bench import bench as bench
    from thrifty.artifacts.generator import Generator as Generator
    from thrifty.artifacts.lowered import Lowered as Lowered
    from thrifty.artifacts.lowered import TensorSpec as TensorSpec
    from thrifty.artifacts.verification import verify as verify
    from thrifty.compilers.auto import Auto as Auto
    from thrifty.compilers.executorch import ExecuTorch as ExecuTorch
    from thrifty.compilers.export import Export as Export
    from thrifty.compilers.generator import lower_generator as lower_generator
    from thrifty.compilers.inductor import Inductor as Inductor
    from thrifty.compilers.inprocess import compiled as compiled
    from thrifty.compilers.lower import lower as lower
    from thrifty.compilers.onnxruntime import OnnxRuntime as OnnxRuntime
    from thrifty.compilers.openvino import OpenVino as OpenVino
    from thrifty.compilers.tvm import Tvm as Tvm
    from thrifty.compilers.xla import Xla as Xla
    from thrifty.errors import EffectLost as EffectLost
    from thrifty.errors import NoEffect as NoEffect
    from thrifty.errors import RunFailed as RunFailed
    from thrifty.errors import ThriftyError as ThriftyError
    from thrifty.errors import TrainingFailed as TrainingFailed
    from thrifty.interchange.compressed_tensors import export_compressed_tensors as export_compressed_tensors
    from thrifty.interchange.compressed_tensors import import_compressed_tensors as import_compressed_tensors
    from thrifty.kernels.linear_divergence import linear_divergence as linear_divergence
    from thrifty.kernels.linear_loss import linear_cross_entropy as linear_cross_entropy
    from thrifty.posttraining.low_rank.low_rank import LowRank as LowRank
    from thrifty.posttraining.nas.nas import Nas as Nas
    from thrifty.posttraining.nas.subnets import Subnets as Subnets
    from thrifty.posttraining.pruning.prune import Prune as Prune
    from thrifty.posttraining.quantize import Quantize as Quantize
    from thrifty.recipes.card import Card as Card
    from thrifty.recipes.claim import Claim as Claim
    from thrifty.recipes.compiler import Compiler as Compiler
    from thrifty.recipes.context import Context as Context
    from thrifty.recipes.hyperparameters import choice as choice
    from thrifty.recipes.hyperparameters import number as number
    from thrifty.recipes.hyperparameters import pattern as pattern
    from thrifty.recipes.hyperparameters import recipe_text as recipe_text
    from thrifty.recipes.hyperparameters import sizes as sizes
    from thrifty.recipes.hyperparameters import table as table
    from thrifty.recipes.phases import Train as Train
    from thrifty.recipes.ranks import Ranks as Ranks
    from thrifty.recipes.recipe import Recipe as Recipe
    from thrifty.recipes.session import Session as Session
    from thrifty.recipes.training_method import Stage as Stage
    from thrifty.recipes.training_method import TrainingMethod as TrainingMethod
    from thrifty.recipes.transform import Plan as Plan
    from thrifty.recipes.transform import Transform as Transform
    from thrifty.report.document import study_json as study_json
    from thrifty.report.page import page as page
    from thrifty.report.page import write_page as write_page
    from thrifty.report.sinks.logs import log_to as log_to
    from thrifty.runs.preflight import check as check
    from thrifty.runs.runner import run as run
    from thrifty.runs.saving import model_of as model_of
    from thrifty.runs.saving import save_hf as save_hf
    from thrifty.search.explore import explore as explore
    from thrifty.search.sweep import sweep as sweep
    from thrifty.search.tune import tune as tune
    from thrifty.studies.constraints import Bars as Bars
    from thrifty.studies.constraints import best as best
    from thrifty.studies.events import Event as Event
    from thrifty.studies.events import Listener as Listener
    from thrifty.studies.findings import Findings as Findings
    from thrifty.studies.frontier import frontier as frontier
    from thrifty.studies.store import Store as Store
    from thrifty.studies.trial import Trial as Trial
    from thrifty.target import Target as Target
    from thrifty.training.conversion.moe import Moe as Moe
    from thrifty.training.conversion.ssm import Ssm as Ssm
    from thrifty.training.distillation.blockwise import distil_block as distil_block
    from thrifty.training.distillation.blockwise import record as record
    from thrifty.training.distillation.distill import Distill as Distill
    from thrifty.training.distributed.ddp import Ddp as Ddp
    from thrifty.training.distributed.zero import Zero1 as Zero1
    from thrifty.training.distributed.zero import Zero2 as Zero2
    from thrifty.training.distributed.zero import Zero3 as Zero3
    from thrifty.training.loop import TrainingResult as TrainingResult
    from thrifty.training.loop import fit as fit
    from thrifty.training.mixed_precision import Bf16 as Bf16
    from thrifty.training.mixed_precision import Fp8 as Fp8
    from thrifty.training.mixed_precision import Fp16 as Fp16
    from thrifty.training.mixed_precision import Tf32 as Tf32
    from thrifty.training.mixed_precision.scaled import fp8_linear as fp8_linear
    from thrifty.training.nas.choice import Choice as Choice
    from thrifty.training.nas.choices import Choices as Choices
    from thrifty.training.nas.choices import choices as choices
    from thrifty.training.nas.darts import Darts as Darts
    from thrifty.training.optimizers import AdamW as AdamW
    from thrifty.training.optimizers.adafactor import Adafactor as Adafactor
    from thrifty.training.optimizers.adamw8bit import AdamW8bit as AdamW8bit
    from thrifty.training.optimizers.curvature import sampled_loss as sampled_loss
    from thrifty.training.optimizers.ema import Ema as Ema
    from thrifty.training.optimizers.lion import Lion as Lion
    from thrifty.training.optimizers.muon import Muon as Muon
    from thrifty.training.optimizers.schedule_free import ScheduleFree as ScheduleFree
    from thrifty.training.optimizers.soap import Soap as Soap
    from thrifty.training.optimizers.sophia import Sophia as Sophia
    from thrifty.training.optimizers.sophia import SophiaOptimizer as SophiaOptimizer
    from thrifty.training.peft.ia3 import Ia3 as Ia3
    from thrifty.training.peft.lora import Lora as Lora
    from thrifty.training.peft.prompt import PromptTuning as PromptTuning
    from thrifty.training.peft.save import save_adapter as save_adapter
    from thrifty.training.peft.vera import Vera as Vera
    from thrifty.training.qat.qat import Qat as Qat
    from thrifty.training.ranks import Group as Group
    from thrifty.training.session import TrainingSession as TrainingSession
    from thrifty.workloads.classification import AUC as AUC
    from thrifty.workloads.classification import F1 as F1
    from thrifty.workloads.classification import IoU as IoU
    from thrifty.workloads.huggingface.models import TokenLogits as TokenLogits
    from thrifty.workloads.loading import load_workload as load_workload
    from thrifty.workloads.losses import MAE as MAE
    from thrifty.workloads.losses import MSE as MSE
    from thrifty.workloads.losses import BCEWithLogits as BCEWithLogits
    from thrifty.workloads.losses import CrossEntropy as CrossEntropy
    from thrifty.workloads.losses import Loss as Loss
    from thrifty.workloads.quality import Accuracy as Accuracy
    from thrifty.workloads.quality import BitsPerByte as BitsPerByte
    from thrifty.workloads.quality import Perplexity as Perplexity
    from thrifty.workloads.quality import Quality as Quality
    from thrifty.workloads.quality import Scores as Scores
    from thrifty.workloads.quality import batches as batches
    from thrifty.workloads.regression import R2 as R2
    from thrifty.workloads.regression import RMSE as RMSE
    from thrifty.workloads.regression import MeanAbsoluteError as MeanAbsoluteError
    from thrifty.workloads.token_files import TokenFiles as TokenFiles
    from thrifty.workloads.token_files import write_tokens as write_tokens
    from thrifty.workloads.workload import Offline as Offline
    from thrifty.workloads.workload import Server as Server
    from thrifty.workloads.workload import SingleStream as SingleStream
    from thrifty.workloads.workload import Workload as Workload

__version__ = "0.1.0"

_NAMES = {
    # workloads and targets
    "workloads.workload": "Workload SingleStream Offline Server",
    "workloads.losses": "Loss CrossEntropy BCEWithLogits MSE MAE",
    "workloads.loading": "load_workload",
    "workloads.quality": "Quality Scores Accuracy BitsPerByte Perplexity batches",
    "workloads.classification": "F1 IoU AUC",
    "workloads.regression": "R2 RMSE MeanAbsoluteError",
    "workloads.huggingface.models": "TokenLogits",
    "workloads.token_files": "TokenFiles write_tokens",
    "target": "Target",
    # recipes, and the parts of a method
    "recipes.recipe": "Recipe",
    "recipes.phases": "Train",
    "recipes.transform": "Transform Plan",
    "recipes.training_method": "TrainingMethod Stage",
    "recipes.compiler": "Compiler",
    "recipes.card": "Card",
    "recipes.claim": "Claim",
    "recipes.context": "Context",
    "recipes.session": "Session",
    "recipes.ranks": "Ranks",
    "recipes.hyperparameters": "number choice pattern sizes table recipe_text",
    "artifacts.lowered": "Lowered TensorSpec",
    "errors": "ThriftyError NoEffect EffectLost TrainingFailed RunFailed",
    # methods
    "training.optimizers": "AdamW",
    "training.optimizers.sophia": "Sophia SophiaOptimizer",
    "training.optimizers.muon": "Muon",
    "training.optimizers.soap": "Soap",
    "training.optimizers.lion": "Lion",
    "training.optimizers.adafactor": "Adafactor",
    "training.optimizers.schedule_free": "ScheduleFree",
    "training.optimizers.adamw8bit": "AdamW8bit",
    "training.optimizers.ema": "Ema",
    "training.mixed_precision": "Bf16 Fp16 Fp8 Tf32",
    "training.distributed.ddp": "Ddp",
    "training.distributed.zero": "Zero1 Zero2 Zero3",
    "training.ranks": "Group",
    "training.distillation.distill": "Distill",
    "training.distillation.blockwise": "distil_block record",
    "training.qat.qat": "Qat",
    "training.peft.lora": "Lora",
    "training.peft.ia3": "Ia3",
    "training.peft.vera": "Vera",
    "training.peft.prompt": "PromptTuning",
    "training.peft.save": "save_adapter",
    "training.nas.choice": "Choice",
    "training.nas.choices": "Choices choices",
    "training.nas.darts": "Darts",
    "training.conversion.moe": "Moe",
    "training.conversion.ssm": "Ssm",
    "posttraining.low_rank.low_rank": "LowRank",
    "posttraining.nas.nas": "Nas",
    "posttraining.nas.subnets": "Subnets",
    "posttraining.pruning.prune": "Prune",
    "posttraining.quantize": "Quantize",
    "compilers.export": "Export",
    "compilers.inductor": "Inductor",
    "compilers.onnxruntime": "OnnxRuntime",
    "compilers.openvino": "OpenVino",
    "compilers.xla": "Xla",
    "compilers.tvm": "Tvm",
    "compilers.executorch": "ExecuTorch",
    "compilers.auto": "Auto",
    # training in your own code
    "training.loop": "fit TrainingResult",
    "training.session": "TrainingSession",
    "training.optimizers.curvature": "sampled_loss",
    "training.mixed_precision.scaled": "fp8_linear",
    "compilers.inprocess": "compiled",
    "kernels.linear_loss": "linear_cross_entropy",
    "kernels.linear_divergence": "linear_divergence",
    # architectures
    "architectures.moe": "MoE",
    "architectures.backbone": "Backbone",
    "architectures.blocks": "Sizes",
    "architectures.huggingface": "from_huggingface to_huggingface",
    "architectures.accelerate": "accelerate",
    # running, searching, choosing
    "runs.preflight": "check",
    "runs.runner": "run",
    "search.explore": "explore",
    "search.sweep": "sweep",
    "search.tune": "tune",
    "studies.trial": "Trial",
    "studies.store": "Store",
    "studies.frontier": "frontier",
    "studies.constraints": "Bars best",
    "studies.findings": "Findings",
    "studies.events": "Event Listener",
    "report.document": "study_json",
    "report.page": "page write_page",
    "report.sinks.logs": "log_to",
    # deployment
    "artifacts.artifact": "load",
    "artifacts.verification": "verify",
    "artifacts.bench": "bench",
    "artifacts.generator": "Generator",
    "compilers.lower": "lower",
    "compilers.generator": "lower_generator",
    "runs.saving": "model_of save_hf",
    "interchange.compressed_tensors": "export_compressed_tensors import_compressed_tensors",
}
_PLACES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        value = getattr(importlib.import_module(f"thrifty.{_PLACES[name]}"), name)
        globals()[name] = value  # resolved once
        return value
    raise AttributeError(f"module 'thrifty' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})


class _Moved(types.ModuleType):
    """Workloads in the wild import ``thrifty.quality``, which is ``thrifty.workloads.quality`` now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what looks through all modules asks for these
            raise AttributeError(name)
        return getattr(importlib.import_module("thrifty.workloads.quality"), name)


sys.modules["thrifty.quality"] = _Moved("thrifty.quality")
