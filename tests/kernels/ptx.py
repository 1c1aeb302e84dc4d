"""The assembly of our kernels, run on a CPU as its manual says, so that Triton's interpreter can run them whole.

Source: "PTX ISA", NVIDIA, sections 9.7 (instructions) and 9.7.14.5 (fragments of mma.m16n8k16).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

HALVES = {"bf16": torch.bfloat16, "f16": torch.float16}


def inline(asm: Any, constraints: Any, args: list[Any], dtype: Any, is_pure: bool, pack: int) -> Any:
    """In place of ``tl.inline_asm_elementwise``: one thread an element, 32 of the last dimension a warp."""
    from triton.language.core import tensor
    from triton.runtime.interpreter import TensorHandle

    kinds = dtype if isinstance(dtype, tuple | list) else (dtype,)
    registers: dict[str, Tensor] = {}
    for i, x in enumerate(args):
        registers[f"${len(kinds) + i}"] = torch.from_numpy(np.ascontiguousarray(x.handle.data)).reshape(-1, 32)
    run(str(getattr(asm, "value", asm)), registers)
    made = []
    for i, kind in enumerate(kinds):
        data = registers[f"${i}"].numpy().reshape(args[0].handle.data.shape)
        made.append(tensor(TensorHandle(data, kind), args[0].type.with_element_ty(kind)))
    return tuple(made)


def run(asm: str, registers: dict[str, Tensor]) -> None:
    """Every statement, in order; registers are [warps, 32], int32 or float32, by their names."""
    for statement in re.sub(r"\.reg[^;]*;", "", asm.strip().removeprefix("{ .").replace("reg .b32", ".reg .b32")).split(";"):
        words = statement.strip(" \n{}")
        if not words or words.startswith(".reg"):
            continue
        name, rest = words.split(maxsplit=1) if not statement.strip().startswith("mma") else statement.strip().split(maxsplit=1)
        operands = re.findall(r"\$\d+|0x[0-9A-Fa-f]+|\w+", rest)
        if name.startswith("mma"):
            _mma(name, operands, registers)
            continue
        values = [registers[o] if o in registers else _number(o) for o in operands[1:]]
        registers[operands[0]] = _one(name, values)


def _number(text: str) -> Tensor:
    return torch.tensor(int(text, 0) & 0xFFFFFFFF, dtype=torch.int64).to(torch.int32)


def _one(name: str, values: list[Tensor]) -> Tensor:
    kind = next((HALVES[k] for k in ("bf16", "f16") if k + "x2" in name), None)
    if name == "lop3.b32":
        a, b, c, table = values
        found = torch.zeros_like(a)
        for i in range(8):  # bit i of the table: the answer where a, b, c are the bits of i
            if int(table) >> i & 1:
                found |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        return found
    if name == "shr.u32":
        return ((values[0].to(torch.int64) & 0xFFFFFFFF) >> int(values[1])).to(torch.int32)
    if name.startswith("cvt.rn") and kind is not None:
        high, low = (x.to(kind).view(torch.int16).to(torch.int32) for x in values)
        return high << 16 | (low & 0xFFFF)
    assert kind is not None, name
    a, b = (x.contiguous().view(kind).float() for x in values)
    if name.startswith("sub.rn"):
        return (a - b).to(kind).view(torch.int32)
    assert name.startswith("mul.rn"), name
    return (a * b).to(kind).view(torch.int32)


def _mma(name: str, operands: list[str], registers: dict[str, Tensor]) -> None:
    found = re.fullmatch(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(\w+)\.\1\.f32", name)
    assert found, name
    kind = HALVES[found[1]]
    values = [registers[o] for o in operands[4:]]
    warps = len(values[0])
    pairs = [x.contiguous().view(kind).double().reshape(warps, 8, 4, 2) for x in values[:6]]  # group, thread in it, element
    a = torch.zeros(warps, 16, 16, dtype=torch.float64)
    b = torch.zeros(warps, 16, 8, dtype=torch.float64)
    c = torch.zeros(warps, 16, 8, dtype=torch.float64)
    for i in range(4):
        a[:, 8 * (i % 2):8 * (i % 2) + 8, 8 * (i // 2):8 * (i // 2) + 8] = pairs[i].reshape(warps, 8, 8)
        c[:, 8 * (i // 2):8 * (i // 2) + 8, i % 2::2] = values[6 + i].double().reshape(warps, 8, 4)
    for i in range(2):
        b[:, 8 * i:8 * i + 8] = pairs[4 + i].reshape(warps, 8, 8).transpose(1, 2)
    d = (a @ b + c).float()
    for i in range(4):
        registers[operands[i]] = d[:, 8 * (i // 2):8 * (i // 2) + 8, i % 2::2].reshape(warps, 32).contiguous()
