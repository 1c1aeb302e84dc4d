"""What config.json says: out, back, as the package reads it, and whatever is not supported."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from thrifty.interchange.configuration import Configured, described
from thrifty.interchange.layers import InterchangeError, Stored

KINDS = [Stored(4, 32, False, "float"), Stored(4, 128, True, "float"), Stored(8, None, False, "float"),
         Stored(8, None, True, "int8")]


@pytest.mark.parametrize("kinds", [KINDS[:1], KINDS[3:], KINDS], ids=["four bits", "eight bits", "all"])
def test_what_is_said_is_read_again(kinds: list[Stored]) -> None:
    layers = {f"layers.{i}.x": kind for i, kind in enumerate(kinds)}
    config = described(layers, ["head"])
    again = Configured(config)
    assert {name: again.of(name) for name in layers} == layers
    assert config["ignore"] == ["head"]
    assert (config["format"] == "mixed-precision") == (len({kind.activations for kind in kinds}) > 1)


def test_the_package_reads_it() -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    config = described({f"layers.{i}.x": kind for i, kind in enumerate(KINDS)}, ["head"])
    read = quantization.QuantizationConfig.model_validate(config)
    for name, group in config["config_groups"].items():
        weights, found = group["weights"], read.config_groups[name].weights
        assert {key: getattr(found, key) for key in weights} == weights


def test_layers_of_equal_numbers_are_one_group_of_every_linear_layer() -> None:
    assert described({"a": KINDS[0], "b": KINDS[0]}, [])["config_groups"]["group_0"]["targets"] == ["Linear"]


def test_names_come_before_patterns_before_classes() -> None:
    config = described(dict(zip("abc", KINDS[:3], strict=True)), [])
    for group, targets in zip(config["config_groups"].values(), (["Linear"], ["re:.*proj$"], ["x.proj"]), strict=True):
        group["targets"] = targets
    numbers = [Configured(config).of(name) for name in ("y", "y.proj", "x.proj")]
    assert [Configured(config).groups[i][1] for i in range(3)] == numbers
    config["config_groups"].pop("group_0")
    with pytest.raises(InterchangeError, match="no group in config_groups covers it"):
        Configured(config).of("y")


def changed(path: str, value: Any, kind: Stored = KINDS[0]) -> Any:
    config: Any = copy.deepcopy(described({"x": kind}, []))
    place = config
    *way, last = path.split("/")
    for part in way:
        place = place[part]
    place[last] = value
    return config


@pytest.mark.parametrize(("config", "said"), [
    (None, "does not declare compressed-tensors quantization: its weights are floating point"),
    (changed("quant_method", "gptq"), "but 'gptq'"),
    (changed("format", "marlin-24"), "'marlin-24'; supported: int-quantized, pack-quantized"),
    (changed("config_groups", {}), "no config_groups"),
    (changed("config_groups", {"a": 3}), "config_groups.a has no list of targets"),
    (changed("config_groups/group_0/targets", ["re:("]), "not a regular expression"),
    (changed("config_groups/group_0/weights", None), "no weights"),
    (changed("config_groups/group_0/weights/num_bits", 3), "weights.num_bits 3, which is not supported"),
    (changed("config_groups/group_0/weights/num_bits", [4]), r"weights.num_bits \[4\]"),
    (changed("config_groups/group_0/weights/num_bits", 4.5), "num_bits 4.5"),
    (changed("config_groups/group_0/weights/type", "float"), "weights.type 'float'"),
    (changed("config_groups/group_0/weights/strategy", "block"), "weights.strategy 'block'"),
    (changed("config_groups/group_0/weights/group_size", 0), "weights.group_size 0"),
    (changed("config_groups/group_0/weights/group_size", True), "weights.group_size True"),
    (changed("config_groups/group_0/format", "nvfp4-pack-quantized"), "format 'nvfp4-pack-quantized'"),
    (changed("config_groups/group_0/output_activations", {"num_bits": 8}), "output_activations"),
    (changed("config_groups/group_0/input_activations/dynamic", False, KINDS[3]), "input_activations.dynamic False"),
    (changed("config_groups/group_0/input_activations/strategy", "tensor", KINDS[3]), "input_activations.strategy 'tensor'"),
    (changed("kv_cache_scheme", {"num_bits": 8}), "kv_cache_scheme"),
    (changed("transform_config", {"config_groups": {}}), "transform_config"),
])
def test_what_is_not_supported_is_named(config: Any, said: str) -> None:
    with pytest.raises(InterchangeError, match=said):
        Configured(config)
