"""Every method by name; a new one is one line here. Others register under the entry point ``thrifty.methods``."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata

from thrifty.errors import ThriftyError
from thrifty.recipes.method import Method

BUILT_IN = {
    "adamw": "thrifty.training.optimizers:AdamW",
    "sophia": "thrifty.training.optimizers.sophia:Sophia",
    "muon": "thrifty.training.optimizers.muon:Muon",
    "soap": "thrifty.training.optimizers.soap:Soap",
    "lion": "thrifty.training.optimizers.lion:Lion",
    "adafactor": "thrifty.training.optimizers.adafactor:Adafactor",
    "schedule_free": "thrifty.training.optimizers.schedule_free:ScheduleFree",
    "adamw8bit": "thrifty.training.optimizers.adamw8bit:AdamW8bit",
    "ema": "thrifty.training.optimizers.ema:Ema",
    "bf16": "thrifty.training.mixed_precision:Bf16",
    "fp16": "thrifty.training.mixed_precision:Fp16",
    "fp8": "thrifty.training.mixed_precision:Fp8",
    "tf32": "thrifty.training.mixed_precision:Tf32",
    "ddp": "thrifty.training.distributed.ddp:Ddp",
    "zero1": "thrifty.training.distributed.zero:Zero1",
    "zero2": "thrifty.training.distributed.zero:Zero2",
    "zero3": "thrifty.training.distributed.zero:Zero3",
    "distill": "thrifty.training.distillation.distill:Distill",
    "qat": "thrifty.training.qat.qat:Qat",
    "darts": "thrifty.training.nas.darts:Darts",
    "choices": "thrifty.training.nas.choices:Choices",
    "lora": "thrifty.training.peft.lora:Lora",
    "ia3": "thrifty.training.peft.ia3:Ia3",
    "vera": "thrifty.training.peft.vera:Vera",
    "ssm": "thrifty.training.conversion.ssm:Ssm",
    "moe": "thrifty.training.conversion.moe:Moe",
    "low_rank": "thrifty.posttraining.low_rank.low_rank:LowRank",
    "prune": "thrifty.posttraining.pruning.prune:Prune",
    "nas": "thrifty.posttraining.nas.nas:Nas",
    "subnets": "thrifty.posttraining.nas.subnets:Subnets",
    "quantize": "thrifty.posttraining.quantize:Quantize",
    "export": "thrifty.compilers.export:Export",
    "inductor": "thrifty.compilers.inductor:Inductor",
    "onnxruntime": "thrifty.compilers.onnxruntime:OnnxRuntime",
    "openvino": "thrifty.compilers.openvino:OpenVino",
    "auto": "thrifty.compilers.auto:Auto",
    "xla": "thrifty.compilers.xla:Xla",
    "tvm": "thrifty.compilers.tvm:Tvm",
    "executorch": "thrifty.compilers.executorch:ExecuTorch",
}
"""Name -> "module:Class"; the module is imported when the method is asked for."""

ALIASES = {"fsdp": "zero3"}
"""Names that the field has beside ours; recipes print ours."""
DEFAULT_OPTIMIZER = "adamw"
"""Of a training that names none."""
DEFAULT_COMPILER = "export"
"""How a recipe ends that names none."""


class UnknownMethod(ThriftyError):
    """A name that no method has; says which names are near."""

    def __init__(self, name: str, known: list[str]) -> None:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"there is no method {name!r}; {hint}")
        self.nearest = near[0] if near else None


@functools.cache
def places() -> dict[str, str]:
    """Name -> "module:Class" of every registered method, built in and third parties'."""
    found = {point.name: point.value for point in importlib.metadata.entry_points(group="thrifty.methods")}
    return found | BUILT_IN  # a third party cannot replace a method that recipes already name


def names() -> list[str]:
    return list(places())


@functools.cache
def method_class(name: str) -> type[Method]:
    """The method's class.

    Raises:
        UnknownMethod: no method has that name.
    """
    name = ALIASES.get(name, name)
    if name not in places():
        raise UnknownMethod(name, names())
    module, _, attribute = places()[name].partition(":")
    found: type[Method] = getattr(importlib.import_module(module), attribute)
    if found.name != name:
        raise ThriftyError(f"{module}.{attribute} is registered as {name!r} but names itself {found.name!r}")
    return found
