"""What a compiler leaves in an artifact's directory, before the manifest describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final


@final
@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype ("float32") and shape of an engine's input or output; -1 where a dimension varies.

    Args:
        name: under which the model's forward takes it or gives it back.
        dtype, shape: dtype and shape of the tensor.
        varies: (dimension, name, low, high) of what varies in an input; dimensions of one name are of one size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    varies: tuple[tuple[int, str, int, int], ...] = ()


@final
@dataclass(frozen=True)
class Lowered:
    """What a compiler left in the artifact's directory.

    Args:
        engine: the engine that opens it, a file's name in ``thrifty.engines``.
        files: names, relative to the directory.
        inputs, outputs: in the order of the call.
        portable: loads on another machine with the same runtime.
        native: holds machine code, which is only opened where the user trusts it.
        needs: distributions of what opening it imports.
        precision: what the arithmetic really runs in ("fp32", "bf16", "int8", "fp8").
        instruction_set: needed from the processor ("avx512"), "" for none.
        needs_vnni: has integer products that are exact on x86 with VNNI alone; where there is none, an engine takes other
            operands or refuses.
        facts: figures read off what the engine executes, by the name that claims use.
        spent: (what, seconds) of the lowering that went into what was not kept.
    """

    engine: str
    files: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    portable: bool
    native: bool
    needs: tuple[str, ...]
    precision: str
    instruction_set: str = ""
    needs_vnni: bool = False
    facts: Mapping[str, float] = field(default_factory=dict)
    spent: tuple[tuple[str, float], ...] = ()
