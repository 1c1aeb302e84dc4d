"""How TVM's loops run: products in tiles that registers hold, reductions in vectors, everything else a row at a time."""

from __future__ import annotations

from typing import Any

from tvm import s_tir, tirx

from thrifty.compilers.tvm.products import COLUMNS, ROWS, Registers
from thrifty.compilers.tvm.rows import KEPT, LANES

REDUCED = tirx.IterVar.CommReduce


def schedule(function: tirx.PrimFunc, registers: Registers) -> tirx.PrimFunc:
    """The function with its loops ordered for a processor; what it computes stays."""
    plan = s_tir.Schedule(function)
    products = [block for block in _blocks(plan) if ROWS in plan.get(block).annotations]
    if products:
        _product(plan, products[0], registers)
        return plan.mod["main"]
    try:
        _rows(plan, registers)
        return plan.mod["main"]
    except s_tir.ScheduleError:  # loops of another kind, such as a sort's, stay as TVM wrote them
        return function


# -- products -----------------------------------------------------------------------------------------------------


def _product(plan: s_tir.Schedule, product: Any, registers: Registers) -> None:
    """Panel by panel, tile by tile, the sums in registers, what follows on the tile while it is there.

    for each panel of columns and each outer row, in parallel:
        for each tile of rows:
            for each reduced index: sums[rows, columns] += a[rows] * panel[columns]
            out[rows, columns] = what was fused behind(sums)
    """
    annotations = plan.get(product).annotations
    rows, columns = int(annotations[ROWS]), int(annotations[COLUMNS])
    before = _before(plan, product)
    last = _inline(plan, keep={plan.get(b).name_hint for b in (*before, product)})
    spatial, reduced = _loops(plan, product)
    *outer, i, j = spatial
    tile, row = plan.split(i, [None, rows])
    panel, vector, lane = plan.split(j, [None, columns // registers.lanes, registers.lanes])
    plan.reorder(panel, *outer, tile, *reduced, row, vector, lane)
    plan.unroll(row)
    plan.unroll(vector)
    plan.vectorize(lane)
    plan.set_scope(product, 0, "local")
    plan.reverse_compute_at(last, tile, preserve_unit_loops=True)
    plan.parallel(plan.fuse(panel, *outer))
    plan.decompose_reduction(product, reduced[0])
    if _width(plan, last) % columns == 0:
        _vectorize(plan, plan.get_loops(last)[-1], registers.lanes)
    for block in before:
        loops = plan.get_loops(block)
        plan.parallel(plan.fuse(*loops[:-1]))


# -- everything else ----------------------------------------------------------------------------------------------


def _rows(plan: s_tir.Schedule, registers: Registers) -> None:
    """Sums over the last dimension in partial sums, one a lane; others with the last dimension innermost.

    Where such sums lead to an output, as in a softmax, each of its rows goes through all blocks at once.
    """
    last = _inline(plan, keep=set())
    partial = {plan.get(_partial(plan, block)).name_hint for block in _blocks(plan)
               if LANES in plan.get(block).annotations}
    blocks, loops = _blocks(plan), plan.get_loops(last)
    if partial and not _loops(plan, last)[1] and len(loops) > 1:
        for block in reversed(blocks[:-1]):
            plan.compute_at(block, loops[-2], preserve_unit_loops=True)
    if len(_loops(plan, last)[0]) > 1:
        plan.parallel(loops[0])
    for block in blocks:
        spatial, reduced = _loops(plan, block)
        if plan.get(block).name_hint in partial:
            plan.vectorize(spatial[-1])
            plan.decompose_reduction(block, reduced[0])
        elif LANES in plan.get(block).annotations:
            continue
        elif reduced and len(spatial) > 1:
            plan.reorder(*reduced, spatial[-1])
            _vectorize(plan, spatial[-1], registers.lanes)
            plan.decompose_reduction(block, reduced[0])
        elif spatial and not reduced:
            _vectorize(plan, spatial[-1], registers.lanes)


def _partial(plan: s_tir.Schedule, block: Any) -> Any:
    """Split a reduction into one a lane, to be reduced in their turn; return the block of the former."""
    _, reduced = _loops(plan, block)
    _, lane = plan.split(reduced[0], [None, int(plan.get(block).annotations[LANES])])
    return plan.rfactor(lane, len(plan.get(block).writes[0].region))


# -- helpers ------------------------------------------------------------------------------------------------------


def _inline(plan: s_tir.Schedule, keep: set[str]) -> Any:
    """Inline what is cheap to compute again or read but once, and return the last block."""
    outputs = {plan.get(b).name_hint for b in plan.get_output_blocks(plan.get_sblock("root"))}
    for block in _blocks(plan):
        if plan.get(block).name_hint in keep | outputs or KEPT in plan.get(block).annotations:
            continue
        try:
            plan.compute_inline(block)
        except s_tir.ScheduleError:  # a reduction, or one that reads at other places than it is read
            continue
    return _blocks(plan)[-1]


def _vectorize(plan: s_tir.Schedule, loop: Any, lanes: int) -> None:
    """Where the loop is whole vectors; LLVM does what it can of others."""
    extent = plan.get(loop).extent
    if isinstance(extent, tirx.IntImm) and int(extent) % lanes == 0:
        plan.vectorize(plan.split(loop, [None, lanes])[1])


def _loops(plan: s_tir.Schedule, block: Any) -> tuple[list[Any], list[Any]]:
    """The loops of a block that stand for its spatial and for its reduced indices."""
    variables, loops = plan.get(block).iter_vars, plan.get_loops(block)
    if len(loops) < len(variables):  # a single number has no loops
        return [], []
    pairs = list(zip(loops[len(loops) - len(variables):], variables, strict=True))
    return ([x for x, v in pairs if int(v.iter_type) != REDUCED], [x for x, v in pairs if int(v.iter_type) == REDUCED])


def _width(plan: s_tir.Schedule, block: Any) -> int:
    extent = plan.get(block).iter_vars[-1].dom.extent
    return int(extent) if isinstance(extent, tirx.IntImm) else 1


def _blocks(plan: s_tir.Schedule) -> list[Any]:
    return list(plan.get_child_blocks(plan.get_sblock("root")))


def _before(plan: s_tir.Schedule, block: Any) -> list[Any]:
    found: list[Any] = []
    for producer in plan.get_producers(block):
        found += [*_before(plan, producer), producer]
    return found
