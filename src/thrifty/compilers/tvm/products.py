"""Matrix products and convolutions for TVM: weights in panels made when compiling, tiles that fit the registers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from tvm import relax, te, tirx
from tvm.ir.expr import GenericConst

from thrifty.compilers.tvm.rows import Legalization, default
from thrifty.compilers.tvm.shapes import aligned, broadcast, fixed, is_float, same, up

VARYING = 4
"""Rows of a tile where their number varies."""
PANEL = 2**19
"""Bytes of a panel that stays in the second cache beside what is multiplied by it."""
ROWS, COLUMNS = "thrifty.rows", "thrifty.columns"
"""Annotations of a product's block, by which `schedules` knows it: the tile."""


@final
@dataclass(frozen=True)
class Registers:
    """What the processor has: floats a vector, and vectors that a tile of sums may take."""

    lanes: int
    sums: int

    def tile(self, rows: int | None, columns: int, depth: int) -> tuple[int, int]:
        """Rows and columns of a tile, the columns a multiple of `lanes`; ``rows`` is None where they vary.

        It minimizes what padding wastes, times what is lost where fewer sums than 6 wait for each other, times the
        loads that each multiplication needs, times what it costs that a panel does not stay in the cache.
        """

        def cost(tile: tuple[int, int]) -> float:
            r, c = tile
            padded = math.ceil(columns / c) * c / columns * (1 if rows is None else math.ceil(rows / r) * r / rows)
            kept = 1.0 if 4 * depth * c <= PANEL else 1.25
            return padded * max(1.0, 6 / (r * c // self.lanes)) * (1 + 0.25 / r + 0.1 * self.lanes / c) * kept

        heights = [VARYING] if rows is None else range(1, min(rows, self.sums) + 1)
        return min(((r, v * self.lanes) for r in heights for v in (1, 2, 3, 4, 6, 8) if r * v <= self.sums), key=cost)


def legalizations(registers: Registers) -> dict[str, Legalization]:
    """Operator -> how it becomes loops: ours for float32 products, TVM's own for the rest."""

    def matmul(builder: Any, call: Any) -> Any:
        a, b = call.args
        columns = fixed(b.ty.shape[-1])
        if not (is_float(a) and is_float(b) and _rank(a) > 1 and _rank(b) > 1) or columns is None:
            return default(builder, call)
        axis = _row_axis(list(a.ty.shape)) if _rank(b) == 2 else _rank(a) - 2
        tile = registers.tile(fixed(a.ty.shape[axis]), columns, fixed(a.ty.shape[-1]) or 1)
        if isinstance(b, GenericConst) and _rank(b) == 2:
            return builder.call_te(dense, a, relax.const(panels(b.value.numpy(), tile[1])), columns, axis, tile,
                                   primfunc_name_hint="dense")
        return builder.call_te(matrix_product, a, b, axis, tile, primfunc_name_hint="matmul")

    def conv2d(builder: Any, call: Any) -> Any:
        x, w = call.args
        attrs = call.attrs
        known = isinstance(w, GenericConst) and attrs.data_layout == "NHWC" and attrs.out_layout == "NHWC"
        if not (known and is_float(x) and is_float(w) and all(fixed(d) is not None for d in list(x.ty.shape)[1:])):
            return default(builder, call)
        weight = w.value.numpy()  # [out, height, width, in]
        step = tuple(map(int, attrs.strides)), tuple(map(int, attrs.dilation)), tuple(map(int, attrs.padding))
        channels, groups = int(x.ty.shape[3]), int(attrs.groups)
        width = _outputs(int(x.ty.shape[2]), weight.shape[2], step[0][1], step[1][1], step[2][1] + step[2][3])
        if groups == 1:
            tile = registers.tile(width, len(weight), math.prod(weight.shape[1:]))
            flat = weight.transpose(1, 2, 3, 0).reshape(-1, len(weight))
            packed = panels(flat, tile[1]).reshape(-1, *weight.shape[1:], tile[1])
            return builder.call_te(convolution, x, relax.const(packed), len(weight), *step, tile,
                                   primfunc_name_hint="conv2d")
        if groups == channels == len(weight):
            lanes = registers.lanes
            tile = registers.tile(width, lanes, 1)
            return builder.call_te(depthwise, x, relax.const(np.ascontiguousarray(weight[..., 0].transpose(1, 2, 0))),
                                   *step, (tile[0], lanes), primfunc_name_hint="depthwise")
        return default(builder, call)

    return {"relax.matmul": matmul, "relax.nn.conv2d": conv2d}


def panels(weight: np.ndarray, columns: int) -> np.ndarray:
    """[k, n] -> [ceil(n / columns), k, columns], zeros beyond n: each tile of a product reads one panel in order.

    >>> panels(np.arange(6.0).reshape(2, 3), 2).tolist()
    [[[0.0, 1.0], [3.0, 4.0]], [[2.0, 0.0], [5.0, 0.0]]]
    """
    k, n = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -n % columns)))
    return np.ascontiguousarray(padded.reshape(k, -1, columns).transpose(1, 0, 2))


# -- the loops ----------------------------------------------------------------------------------------------------


def dense(a: te.Tensor, packed: te.Tensor, columns: int, axis: int, tile: tuple[int, int]) -> te.Tensor:
    """out[.., j] = sum_k a[.., k] w[k, j], with w in `panels` and tiles along ``axis`` of a."""
    return _product(a, lambda batch, k, j: packed[j // tile[1], k, j % tile[1]], [], columns, axis, tile)


def matrix_product(a: te.Tensor, b: te.Tensor, axis: int, tile: tuple[int, int]) -> te.Tensor:
    """out[.., i, j] = sum_k a[.., i, k] b[.., k, j]; b is brought into panels first."""
    columns, width = int(b.shape[-1]), tile[1]
    batch = list(b.shape[:-2])

    def panel(*at: Any) -> Any:
        *outer, block, k, lane = at
        j = block * width + lane
        return tirx.if_then_else(j < columns, b(*outer, k, j), tirx.const(0, "float32"))

    packed = te.compute((*batch, -(-columns // width), b.shape[-2], width), panel, name="panels")
    return _product(a, lambda at, k, j: packed(*at, j // width, k, j % width), batch, columns, axis, tile)


def _product(a: te.Tensor, weight: Callable[[list[Any], Any, Any], Any], right: list[Any], columns: int, axis: int,
             tile: tuple[int, int]) -> te.Tensor:
    """The rows of tiles are ``axis`` of a; the other leading dimensions are its batch."""
    *left, depth = a.shape
    m = left.pop(axis)
    rows = up(m, tile[0])
    rank = max(len(left), len(right))
    batch = [_wider(x, y) for x, y in zip(aligned(left, rank), aligned(right, rank), strict=True)]

    def given(outer: list[Any], i: Any, k: Any) -> Any:
        return a(*outer[:axis], i, *outer[axis:], k)

    if not same(rows, m):
        unpadded = given
        padded = te.compute((*left, rows, depth), lambda *at: tirx.if_then_else(
            at[-2] < m, unpadded(list(at[:-2]), at[-2], at[-1]), tirx.const(0, "float32")), name="padded")
        given = lambda outer, i, k: padded(*outer, i, k)
    k = te.reduce_axis((0, depth), "k")
    product = te.compute(
        (*batch, rows, up(columns, tile[1])),
        lambda *at: te.sum(given(broadcast(list(at[:-2]), left), at[-2], k)
                           * weight(broadcast(list(at[:-2]), right), k, at[-1]), k),
        name="product", attrs=_marks(tile))
    place = axis + rank - len(left)  # of the rows in the output

    def result(*at: Any) -> Any:
        return product(*at[:place], *at[place + 1:-1], at[place], at[-1])

    return te.compute((*batch[:place], m, *batch[place:], columns), result, name="result")


def convolution(x: te.Tensor, packed: te.Tensor, columns: int, strides: tuple[int, int], dilation: tuple[int, int],
                padding: tuple[int, ...], tile: tuple[int, int]) -> te.Tensor:
    """out[n, p, q, o] = sum_{r, s, c} x[n, p t + r d - pad, q t + s d - pad, c] w[r, s, c, o], with w in `panels`."""
    size = int(packed.shape[1]), int(packed.shape[2])
    height, width, padded = _windows(x, size, strides, dilation, padding, tile, int(x.shape[3]))
    r, s, c = (te.reduce_axis((0, n), name) for n, name in ((size[0], "r"), (size[1], "s"), (int(x.shape[3]), "c")))
    product = te.compute(
        (x.shape[0], height, up(width, tile[0]), up(columns, tile[1])),
        lambda n, p, q, o: te.sum(padded(n, p * strides[0] + r * dilation[0], q * strides[1] + s * dilation[1], c)
                                  * packed[o // tile[1], r, s, c, o % tile[1]], [r, s, c]),
        name="product", attrs=_marks(tile))
    return te.compute((x.shape[0], height, width, columns), lambda *at: product(*at), name="result")


def depthwise(x: te.Tensor, w: te.Tensor, strides: tuple[int, int], dilation: tuple[int, int],
              padding: tuple[int, ...], tile: tuple[int, int]) -> te.Tensor:
    """out[n, p, q, c] = sum_{r, s} x[n, p t + r d - pad, q t + s d - pad, c] w[r, s, c]."""
    size, channels = (int(w.shape[0]), int(w.shape[1])), int(w.shape[2])
    wide = up(channels, tile[1])
    height, width, padded = _windows(x, size, strides, dilation, padding, tile, wide)
    weight = w if wide == channels else te.compute((*size, wide), lambda r, s, c: tirx.if_then_else(
        c < channels, w(r, s, c), tirx.const(0, "float32")), name="wider")
    r, s = te.reduce_axis((0, size[0]), "r"), te.reduce_axis((0, size[1]), "s")
    product = te.compute(
        (x.shape[0], height, up(width, tile[0]), wide),
        lambda n, p, q, c: te.sum(padded(n, p * strides[0] + r * dilation[0], q * strides[1] + s * dilation[1], c)
                                  * weight(r, s, c), [r, s]),
        name="product", attrs=_marks(tile))
    return te.compute((x.shape[0], height, width, channels), lambda *at: product(*at), name="result")


def _windows(x: te.Tensor, size: tuple[int, int], strides: tuple[int, int], dilation: tuple[int, int],
             padding: tuple[int, ...], tile: tuple[int, int], channels: int) -> tuple[int, int, te.Tensor]:
    """Height and width of the output, and the input with zeros around it and, to whole tiles, behind it."""
    top, left, bottom, right = padding
    h, w, c = (int(d) for d in x.shape[1:])
    height = _outputs(h, size[0], strides[0], dilation[0], top + bottom)
    width = _outputs(w, size[1], strides[1], dilation[1], left + right)
    need = (up(width, tile[0]) - 1) * strides[1] + (size[1] - 1) * dilation[1] + 1
    if (top, left, bottom, right) == (0, 0, 0, 0) and need <= w and channels == c:
        return height, width, x

    def inside(n: Any, p: Any, q: Any, o: Any) -> Any:
        return tirx.if_then_else(tirx.all(p >= top, p < top + h, q >= left, q < left + w, o < c),
                                 x(n, p - top, q - left, o), tirx.const(0, "float32"))

    return height, width, te.compute((x.shape[0], h + top + bottom, max(need, w + left + right), channels), inside,
                                     name="padded")


def _marks(tile: tuple[int, int]) -> dict[str, int]:
    return {ROWS: tile[0], COLUMNS: tile[1]}


def _outputs(n: int, size: int, stride: int, dilation: int, padding: int) -> int:
    return (n + padding - (size - 1) * dilation - 1) // stride + 1


def _row_axis(shape: list[Any]) -> int:
    """The last of the leading dimensions that is not 1."""
    return next((i for i in reversed(range(len(shape) - 1)) if not same(shape[i], 1)), len(shape) - 2)


def _wider(x: Any, y: Any) -> Any:
    return y if same(x, 1) else x


def _rank(x: Any) -> int:
    return len(x.ty.shape)
