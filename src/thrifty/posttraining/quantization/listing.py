"""The layers of a quantized model: what each is, what it holds, what it alone costs."""

from __future__ import annotations

from typing import Any

from torch import nn

from thrifty.numerics.modules import InBfloat16
from thrifty.posttraining.quantization.integers import place
from thrifty.posttraining.quantization.rounding import is_recurrent
from thrifty.posttraining.quantization.sensitivity import held
from thrifty.recipes.transform import Plan


def layers(model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
    """List the layers of a plan of ``quantize`` and of the model that it built.

    Returns:
        [{"layer", "scheme", "bytes", "error"}]; error is that of the model's outputs when this layer alone is so, None where
        it was not measured. What stays float has a "reason" too.
    """
    values = plan.values
    schemes = {name: f"w{bits}a8" for kind in ("convolutions", "linears") for name, bits in _bits(values.get(kind, {})).items()}
    schemes |= {name: f"w{bits}a16" for name, bits in values.get("grouped", {}).items()}
    schemes |= dict.fromkeys(values.get("float8", ()), "fp8")
    schemes |= {name: f"w{'+'.join(str(bits) for bits in sorted({bits for bits, _ in grids.values()}))}a16"
                for name, grids in values.get("rounded", {}).items()}
    inner = _inner(model)
    left = {name: reason for name, reason in values.get("left", {}).items() if name in dict(inner.named_modules())}
    schemes |= dict.fromkeys(left, "fp32")
    schemes |= {name: "fp32" for name, module in inner.named_modules() if is_recurrent(module)}
    schemes = {**values.get("mixed", {}), **schemes}
    errors = {(name, scheme): error for name, options in values.get("sensitivity", {}).items()
              for scheme, _, error in options}
    return [{"layer": name, "scheme": scheme, "bytes": held(inner.get_submodule(place(inner, name))),
             "error": errors.get((name, scheme)), **({"reason": left[name]} if name in left else {})}
            for name, scheme in schemes.items()]


def _bits(entries: dict[str, Any]) -> dict[str, int]:
    return {name: entry[0] if isinstance(entry, list) else entry for name, entry in entries.items()}


def _inner(model: nn.Module) -> nn.Module:
    """Without the cast around it that ``rest=bf16`` adds."""
    return model.module if isinstance(model, InBfloat16) else model
