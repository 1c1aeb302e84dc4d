"""What config.json says of quantized layers in the format compressed-tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from thrifty.interchange.layers import InterchangeError, Stored

METHOD = "compressed-tensors"
KEY = "quantization_config"
FORMATS: Mapping[str, str] = {"int8": "int-quantized", "float": "pack-quantized"}
"""{activations: how the weights beside them are stored}."""
MIXED = "mixed-precision"
EVERY, PATTERN = "Linear", "re:"
TOKENS: Mapping[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "group_size": None,
                             "dynamic": True}
SUPPORTED = ("int8 weights, a scale a row, with int8 tokens (w8a8), or weights of 4 or 8 bits, a scale a row or a group, beside "
             "float activations (w4a16, w8a16)")


# -- out ----------------------------------------------------------------------------------------------------------


def described(layers: Mapping[str, Stored], linears: Iterable[str]) -> dict[str, Any]:
    """The quantization_config of a model.

    Where all layers have the same numbers, their group is of every linear layer, less those that are ignored: readers
    that fuse layers find that easiest. Else each group names its layers.

    Args:
        layers: {name: numbers} of the quantized ones.
        linears: names of the others.
    """
    kinds = sorted(set(layers.values()), key=repr)
    groups = {f"group_{i}": {"targets": [EVERY] if len(kinds) == 1 else [name for name, kind in layers.items() if kind == each],
                             **_group(each)}
              for i, each in enumerate(kinds)}
    formats = sorted({group["format"] for group in groups.values()})
    return {"quant_method": METHOD, "format": formats[0] if len(formats) == 1 else MIXED,
            "quantization_status": "compressed", "config_groups": groups, "ignore": sorted(linears),
            "kv_cache_scheme": None, "global_compression_ratio": None}


def _group(numbers: Stored) -> dict[str, Any]:
    weights = {"num_bits": numbers.bits, "type": "int", "symmetric": numbers.symmetric,
               "strategy": "channel" if numbers.group is None else "group", "group_size": numbers.group, "dynamic": False}
    return {"weights": weights, "input_activations": dict(TOKENS) if numbers.activations == "int8" else None,
            "output_activations": None, "format": FORMATS[numbers.activations]}


# -- in -----------------------------------------------------------------------------------------------------------


class Configured:
    """A quantization_config, read.

    Args:
        config: the value in config.json.

    Raises:
        InterchangeError: it is of another method, damaged, or says numbers that are not supported.
    """

    def __init__(self, config: Any) -> None:
        if not isinstance(config, dict) or config.get("quant_method") != METHOD:
            named = config.get("quant_method") if isinstance(config, dict) else None
            raise InterchangeError(f"config.json does not declare {METHOD} quantization" + (
                f" but {named!r}; write the directory again in that format" if named else
                ": its weights are floating point; load it as a workload and quantize it"))
        if config.get("kv_cache_scheme"):
            raise InterchangeError("the KV cache is quantized too, which is not supported; write the directory "
                                   "without a kv_cache_scheme")
        if config.get("sparsity_config") or config.get("transform_config"):
            raise InterchangeError("weights are sparse or rotated too (sparsity_config, transform_config), which is not "
                                   "supported; write the directory without them")
        groups = config.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise InterchangeError("quantization_config has no config_groups; the directory is damaged: write it again")
        overall = config.get("format")
        if overall not in (*FORMATS.values(), MIXED):
            raise InterchangeError(f"weights are stored as {overall!r}; supported: {', '.join(FORMATS.values())}")
        self.groups = [(_targets(name, group), _numbers(name, group, overall)) for name, group in groups.items()]

    def of(self, name: str) -> Stored:
        """The numbers of a layer: the group that names it, then one with a pattern for it, then one of every linear layer.

        Raises:
            InterchangeError: no group is for it.
        """
        tests = (lambda target: target == name,
                 lambda target: target.startswith(PATTERN) and re.match(target.removeprefix(PATTERN), name),
                 lambda target: target == EVERY)
        for test in tests:
            for targets, numbers in self.groups:
                if any(test(target) for target in targets):
                    return numbers
        raise InterchangeError(f"layer {name!r} is stored as integers, but no group in config_groups covers it; write the "
                               "directory again")


def _targets(name: str, group: Any) -> list[str]:
    targets = group.get("targets") if isinstance(group, dict) else None
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise InterchangeError(f"config_groups.{name} has no list of targets; write the directory again")
    for pattern in (target.removeprefix(PATTERN) for target in targets if target.startswith(PATTERN)):
        try:
            re.compile(pattern)
        except re.error as error:
            raise InterchangeError(f"config_groups.{name} has the target {pattern!r}, which is not a regular expression: "
                                   f"{error}") from error
    return targets


def _numbers(name: str, group: dict[str, Any], overall: str) -> Stored:
    weights, inputs = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, dict) or not (inputs is None or isinstance(inputs, dict)):
        raise _unsupported(name, "no weights, or activations that are not an object")
    activations: Any = "float" if inputs is None else "int8"
    bits: Any = weights.get("num_bits")
    strategy, size = weights.get("strategy"), weights.get("group_size")
    symmetric = weights.get("symmetric", True)
    if strategy is None:
        strategy = "group" if size and size > 0 else "tensor"  # as readers of the format infer it
    for what, value, allowed in (
        ("format", group.get("format") or overall, (FORMATS[activations],)),
        ("weights.type", weights.get("type", "int"), ("int",)),
        ("weights.num_bits", bits, (8,) if inputs else (4, 8)),
        ("weights.strategy", strategy, ("channel",) if inputs else ("channel", "group")),
        ("weights.symmetric", symmetric, (True,) if inputs else (True, False)),
        ("weights.dynamic", weights.get("dynamic", False), (False,)),
        ("output_activations", group.get("output_activations"), (None,)),
        *((f"input_activations.{key}", inputs.get(key), (TOKENS[key],))
          for key in ("num_bits", "type", "symmetric", "strategy", "dynamic") if inputs is not None),
    ):
        if not any(type(value) is type(each) and value == each for each in allowed):
            raise _unsupported(name, f"{what} {value!r}")
    if strategy == "group" and not (type(size) is int and size > 0):
        raise _unsupported(name, f"weights.group_size {size!r}")
    return Stored(bits, size if strategy == "group" else None, symmetric, activations)


def _unsupported(name: str, what: str) -> InterchangeError:
    return InterchangeError(f"config_groups.{name} has {what}, which is not supported; supported: {SUPPORTED}. Quantize the "
                            "float model with Thrifty instead")
