"""How the kernels of experts are launched: tiles by how many rows an expert has, weights by the copy engine where they can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from thrifty.kernels.moe import triton as kernels


@final
@dataclass(frozen=True)
class Tile:
    """How a product is split.

    Args:
        n, k: columns and inputs of a block.
        warps: of a program.
        stages: blocks whose reads are under way.
        band: tiles whose programs are neighbors.
        bulk: matrices come by the copy engine, where they can.
    """

    n: int
    k: int
    warps: int
    stages: int
    band: int = 8
    bulk: bool = False


@final
@dataclass(frozen=True)
class How:
    """Tiles of each product: ``rows`` of all that go expert by expert.

    Args:
        rows: choices of a tile.
        enter, leave: of the forward pass.
        reenter, back: of gradients of hidden units and of tokens.
        outer_up, outer_down: of gradients of weights, and ``outer_rows`` of theirs.
    """

    rows: int
    enter: Tile
    leave: Tile
    reenter: Tile
    back: Tile
    outer_up: Tile
    outer_down: Tile
    outer_rows: int = 128


MANY = How(128, Tile(128, 64, 8, 4, bulk=True), Tile(128, 64, 8, 3, bulk=True), Tile(256, 64, 8, 4, bulk=True),
           Tile(256, 64, 8, 4, bulk=True), Tile(128, 32, 4, 6, bulk=True), Tile(256, 64, 8, 6, bulk=True))
SOME = How(64, Tile(128, 64, 4, 4, bulk=True), Tile(256, 64, 4, 3, bulk=True), Tile(128, 64, 4, 3, bulk=True),
           Tile(256, 64, 4, 3, bulk=True), Tile(128, 32, 4, 6, bulk=True), Tile(128, 32, 4, 6, bulk=True))
FEW = How(16, Tile(32, 128, 4, 4), Tile(128, 128, 4, 4), Tile(128, 128, 4, 4), Tile(128, 128, 4, 4), Tile(128, 16, 4, 3),
          Tile(128, 16, 4, 3), outer_rows=64)
"""As fast as any of those tried on an H200, at 512 and at 1,536 rows an expert (MANY), and at 8 (FEW); SOME was not timed."""


def chosen(choices: int, experts: int) -> How:
    """By how many rows an expert has on average, which the host knows."""
    each = choices / experts
    return MANY if each > 96 else SOME if each > 24 else FEW


def plan(ends: Tensor, choices: int, rows: int) -> Tensor:
    """[3, tiles] int32: a tile's expert, its first row, where the expert's rows end; expert -1 for tiles left over.

    Experts have at most choices / rows tiles that are full, and one each that is not.
    """
    limit = choices // rows + min(len(ends), choices)
    table = torch.empty(3, limit, dtype=torch.int32, device=ends.device)
    kernels.plan[(len(ends) + 1,)](ends, table, limit, len(ends), M=rows, BLOCK=triton.next_power_of_2(len(ends)), num_warps=4)
    return table


def described(weight: Tensor, tile: Tile) -> tuple[Tensor | TensorDescriptor, bool, bool]:
    """(what a kernel takes of weight [experts, columns, inputs], whether that is a description, whether inputs are adjacent)."""
    turned = weight.stride(2) == 1
    plain, block = (weight, [1, tile.n, tile.k]) if turned else (weight.transpose(1, 2), [1, tile.k, tile.n])
    if not (tile.bulk and copies(plain)):
        return weight, False, turned
    return TensorDescriptor(plain, list(plain.shape), list(plain.stride()), block), True, turned


def copies(x: Tensor) -> bool:
    """Whether the copy engine reads it: numbers of a row are adjacent, and 16 bytes are the unit of its address and strides."""
    return (x.stride(-1) == 1 and x.data_ptr() % 16 == 0
            and all(s > 0 and s * x.element_size() % 16 == 0 for s in x.stride()[:-1]))


def _settings(how: How, tile: Tile, inputs: int, columns: int) -> dict[str, int | bool]:
    return {"M": how.rows, "N": tile.n, "K": tile.k, "BAND": tile.band, "STAGES": tile.stages, "EVEN": inputs % tile.k == 0,
            "WHOLE": columns % tile.n == 0, "num_warps": tile.warps}


def enter(x: Tensor, gate_up: Tensor, order: Tensor, table: Tensor, top: int, keep: bool, how: How) -> tuple[Tensor, Tensor]:
    """(silu(gate) * up, what enters the gates)."""
    hidden, limit, tile = gate_up.shape[1] // 2, table.shape[1], how.enter
    gates = x.new_empty((len(order), 2 * hidden) if keep else (0,))
    activated = x.new_empty(len(order), hidden)
    weight, bulk, turned = described(gate_up, tile)
    kernels.enter[(limit * triton.cdiv(hidden, tile.n),)](
        x, weight, order, table, gates, activated, limit, x.shape[1], hidden, x.stride(0), *gate_up.stride(), TOP=top,
        KEEP=keep, BULK=bulk, TURNED=turned, **_settings(how, tile, x.shape[1], hidden))
    return activated, gates


def leave(rows: Tensor, weight: Tensor, order: Tensor, table: Tensor, weights: Tensor | None, how: How, tile: Tile) -> Tensor:
    """[choices, columns] of rows [choices, inputs] by weight [experts, columns, inputs], where choices stand."""
    columns, limit = weight.shape[1], table.shape[1]
    made = rows.new_empty(len(rows), columns)
    expert, column, inputs = weight.stride()
    matrix, bulk, turned = described(weight, tile) if copies(rows) else (weight, False, False)
    if bulk:
        rows = TensorDescriptor(rows, list(rows.shape), list(rows.stride()), [how.rows, tile.k])
    kernels.leave[(limit * triton.cdiv(columns, tile.n),)](
        rows, matrix, order, table, weights, made, limit, rows.shape[1], columns, expert, inputs, column, BULK=bulk,
        TURNED=turned, **_settings(how, tile, rows.shape[1], columns))
    return made


def gather(parts: Tensor, top: int) -> Tensor:
    """[tokens, width], sums of [tokens * top, width]."""
    choices, width = parts.shape
    made = parts.new_empty(choices // top, width)
    block = min(1024, triton.next_power_of_2(width))
    kernels.gather[(len(made), triton.cdiv(width, block))](parts, made, width, TOP=top, BLOCK=block, num_warps=4)
    return made


def reenter(dy: Tensor, down: Tensor, order: Tensor, table: Tensor, weights: Tensor, gates: Tensor,
            how: How) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of what enters the gates, hidden units times weights, gradient of weights)."""
    hidden, limit, tile, choices = down.shape[2], table.shape[1], how.reenter, len(order)
    by_hidden, weighted, by_gates = dy.new_empty(choices, hidden), dy.new_empty(choices, hidden), torch.empty_like(gates)
    by_weights = torch.empty(weights.shape, dtype=torch.float32, device=dy.device)
    weight, bulk, turned = described(down.transpose(1, 2), tile)
    kernels.reenter[(limit * triton.cdiv(hidden, tile.n),)](
        dy, weight, order, table, by_hidden, limit, dy.shape[1], hidden, dy.stride(0), *down.stride(), TOP=weights.shape[1],
        BULK=bulk, TURNED=turned, **_settings(how, tile, dy.shape[1], hidden))
    block = triton.next_power_of_2(hidden)
    rows = max(1, 2048 // block)
    kernels.ungate[(triton.cdiv(choices, rows),)](
        by_hidden, order, weights, gates, by_gates, weighted, by_weights, choices, hidden, ROWS=rows, BLOCK=block,
        num_warps=min(16, max(4, block // 512)))
    return by_gates, weighted, by_weights.to(weights.dtype)


def outer(a: Tensor, b: Tensor, order: Tensor, ends: Tensor, top: int, sent: int, rows: int, tile: Tile) -> Tensor:
    """[experts, columns of a, columns of b]: sums over each expert's rows; ``sent``: which of the two are tokens."""
    down, across = a.shape[1], b.shape[1]
    made = a.new_empty(len(ends), down, across)
    a_row, b_row, bulk = a.stride(0), b.stride(0), tile.bulk and copies((b, a)[sent])
    if bulk and sent == 1:
        a = TensorDescriptor(a, list(a.shape), list(a.stride()), [tile.k, rows])
    elif bulk:
        b = TensorDescriptor(b, list(b.shape), list(b.stride()), [tile.k, tile.n])
    kernels.outer[(len(ends) * triton.cdiv(down, rows) * triton.cdiv(across, tile.n),)](
        a, b, order, ends, made, down, across, a_row, b_row, TOP=top, SENT=sent, BULK=bulk,
        WHOLE=down % rows == 0 and across % tile.n == 0, M=rows, N=tile.n, K=tile.k, BAND=tile.band, STAGES=tile.stages,
        num_warps=tile.warps)
    return made


def forward(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, order: Tensor, ends: Tensor, keep: bool,
            how: How | None = None) -> tuple[Tensor, Tensor]:
    """As `cpu.forward`."""
    if not len(order):
        return torch.empty_like(x), x.new_empty((0, gate_up.shape[1]) if keep else (0,))
    x, weights, top = _rows(x), weights.contiguous(), weights.shape[1]
    how = how or chosen(len(order), len(ends))
    table = plan(ends, len(order), how.rows)
    activated, gates = enter(x, gate_up, order, table, top, keep, how)
    return gather(leave(activated, down, order, table, weights, how, how.leave), top), gates


def backward(dy: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, order: Tensor, ends: Tensor, gates: Tensor,
             needs: list[bool], how: How | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `cpu.backward`."""
    if not len(order):
        by_x, by_gate_up, by_down = (v.new_zeros(v.shape if need else 0)
                                     for v, need in zip((x, gate_up, down), needs, strict=True))
        return by_x, by_gate_up, by_down, weights.new_empty(weights.shape)
    dy, x, weights, top = _rows(dy), _rows(x), weights.contiguous(), weights.shape[1]
    how = how or chosen(len(order), len(ends))
    table = plan(ends, len(order), how.rows)
    by_gates, weighted, by_weights = reenter(dy, down, order, table, weights, gates, how)
    by_x, by_gate_up, by_down = (x.new_empty(0) for _ in range(3))  # an operator's results are no two of them the same
    if needs[0]:
        by_x = gather(leave(by_gates, gate_up.transpose(1, 2), order, table, None, how, how.back), top)
    if needs[1]:
        by_gate_up = outer(by_gates, x, order, ends, top, 1, how.outer_rows, how.outer_up)
    if needs[2]:
        by_down = outer(dy, weighted, order, ends, top, 0, how.outer_rows, how.outer_down)
    return by_x, by_gate_up, by_down, by_weights


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()
