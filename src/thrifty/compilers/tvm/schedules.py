"""How TVM's loops run: products in tiles held by registers, everything else a row at a time."""

from __future__ import annotations

import math
from typing import Any

from tvm import s_tir, tirx

from thrifty.compilers.tvm.products import COLUMNS, ROWS, Registers


def schedule(function: tirx.PrimFunc, registers: Registers) -> tirx.PrimFunc:
    """The function with its loops ordered for a processor; what it computes stays."""
    plan = s_tir.Schedule(function)
    products = [block for block in _blocks(plan) if ROWS in plan.get(block).annotations]
    if products:
        _product(plan, products[0], registers)
    else:
        _rows(plan)
    return plan.mod["main"]


def _product(plan: s_tir.Schedule, product: Any, registers: Registers) -> None:
    annotations = plan.get(product).annotations
    rows, columns = int(annotations[ROWS]), int(annotations[COLUMNS])
    before = {plan.get(b).name_hint for b in _before(plan, product)}
    last = _inline_all(plan, keep={*before, plan.get(product).name_hint})
    loops = plan.get_loops(product)
    kinds = [int(v.iter_type) for v in plan.get(product).iter_vars]
    spatial = [x for x, kind in zip(loops, kinds, strict=True) if kind != tirx.IterVar.CommReduce]
    reduced = [x for x, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.CommReduce]
    *outer, i, j = spatial
    io, ii = plan.split(i, [None, rows])
    jo, jm, jv = plan.split(j, [None, columns // registers.lanes, registers.lanes])
    plan.reorder(jo, *outer, io, *reduced, ii, jm, jv)
    plan.unroll(ii)
    plan.unroll(jm)
    plan.vectorize(jv)
    plan.set_scope(product, 0, "local")
    plan.reverse_compute_at(last, io, preserve_unit_loops=True)
    plan.parallel(plan.fuse(jo, *outer))
    plan.decompose_reduction(product, reduced[0])
    inner = plan.get_loops(last)[-1]
    if int(plan.get(inner).extent) % registers.lanes == 0 and _columns(plan, last) % registers.lanes == 0:
        _, lane = plan.split(inner, [None, registers.lanes])
        plan.vectorize(lane)
    for name in before:
        block = plan.get_sblock(name)
        loops = plan.get_loops(block)
        if len(loops) > 1:
            plan.parallel(plan.fuse(*loops[:-1]))


def _rows(plan: s_tir.Schedule) -> None:
    _inline_all(plan, keep=set())
    for block in _blocks(plan):
        kinds = [int(v.iter_type) for v in plan.get(block).iter_vars]
        loops = plan.get_loops(block)
        spatial = [x for x, kind in zip(loops, kinds, strict=True) if kind != tirx.IterVar.CommReduce]
        if spatial and len(loops) > 1:
            plan.parallel(spatial[0])


def _inline_all(plan: s_tir.Schedule, keep: set[str]) -> Any:
    """Inline every block that is no reduction and gives no output; return the last."""
    outputs = {plan.get(b).name_hint for b in plan.get_output_blocks(plan.get_sblock("root"))}
    for block in _blocks(plan):
        if plan.get(block).name_hint not in keep | outputs:
            try:
                plan.compute_inline(block)
            except s_tir.ScheduleError:
                continue
    return _blocks(plan)[-1]


def _columns(plan: s_tir.Schedule, block: Any) -> int:
    extent = plan.get(block).iter_vars[-1].dom.extent
    return int(extent) if isinstance(extent, int | tirx.IntImm) else 1


def _blocks(plan: s_tir.Schedule) -> list[Any]:
    return list(plan.get_child_blocks(plan.get_sblock("root")))


def _before(plan: s_tir.Schedule, block: Any) -> list[Any]:
    found: list[Any] = []
    for producer in plan.get_producers(block):
        found += [*_before(plan, producer), producer]
    return found
