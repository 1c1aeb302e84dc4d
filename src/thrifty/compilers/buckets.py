"""Sizes that vary, for a backend that takes fixed ones: which programs to make, and whether padding leaves answers alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thrifty.artifacts.lowered import TensorSpec
from thrifty.compilers.capture import LoweringError, Shapes, check_shapes
from thrifty.compilers.parity import as_tuple, random_requests
from thrifty.engines.buckets import Layout, cut, padded
from thrifty.engines.parity import relative_error, tolerance

MOST = 16
"""Programs of one artifact: each takes its time to compile and its place in the file."""


def layout(model: nn.Module, example: tuple[Tensor, ...], shapes: Shapes, chosen: Sequence[int] = ()) -> Layout:
    """The programs to make, and where their sizes stand in inputs and outputs.

    Dimensions of one position and one range are one axis: for example the batch of every input. Its sizes are the powers of two
    in its range and its largest; of four, eight or more where that would be more than `MOST` programs.

    Args:
        model: called a few times, at two sizes of each axis, since what varies with it in the outputs is cut back.
        example: one request.
        shapes: {input position: {dimension: (low, high)}} that vary.
        chosen: sizes in place of the powers, for each axis those within its range; its largest is always there.

    Raises:
        LoweringError: there would be too many programs, an output's size follows an axis's in another way than being it, or
            padding changes what the model answers.
    """
    check_shapes(example, shapes)
    varying = {(d, *limits) for dims in shapes.values() for d, limits in dims.items()}
    axes = sorted((d, low, high) for d, low, high in varying if low < high)
    inputs = tuple({d: axes.index((d, *limits)) for d, limits in shapes.get(i, {}).items() if (d, *limits) in axes}
                   for i in range(len(example)))
    ranges = tuple((low, high) for _, low, high in axes)
    made = Layout(ranges, inputs, _outputs(model, example, inputs, ranges), _grid(ranges, chosen))
    _check_padding(model, example, shapes, made)
    return made


def sizes(low: int, high: int, factor: int = 2) -> tuple[int, ...]:
    """The powers of a factor within a range, and its largest.

    >>> sizes(1, 13), sizes(5, 64, 4)
    ((1, 2, 4, 8, 13), (16, 64))
    """
    powers = itertools.takewhile(lambda n: n < high, (factor**i for i in itertools.count()))
    return (*(n for n in powers if n >= low), high)


def _grid(ranges: Sequence[tuple[int, int]], chosen: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    if chosen:
        each = [sorted({high, *(n for n in chosen if low <= n <= high)}) for low, high in ranges]
        if (count := math.prod(map(len, each))) > MOST:
            raise LoweringError(f"buckets={tuple(chosen)} over {len(ranges)} dimensions would be {count} programs, more than "
                                f"{MOST}: give fewer sizes")
        return tuple(itertools.product(*each))
    grids = ([sizes(low, high, 2**i) for low, high in ranges] for i in itertools.count(1))
    return tuple(itertools.product(*next(grid for grid in grids if math.prod(map(len, grid)) <= MOST or _least(grid))))


def _least(grid: Sequence[Sequence[int]]) -> bool:
    return all(len(each) <= 2 for each in grid)


def resized(example: tuple[Tensor, ...], inputs: Sequence[dict[int, int]], asked: Sequence[int]) -> tuple[Tensor, ...]:
    """A request of other sizes, its values those of the example over and over."""
    made = []
    for x, dims in zip(example, inputs, strict=True):
        for d, axis in dims.items():
            x = x.index_select(d, torch.arange(asked[axis]) % x.shape[d])
        made.append(x)
    return tuple(made)


def _outputs(model: nn.Module, example: tuple[Tensor, ...], inputs: Sequence[dict[int, int]],
             ranges: Sequence[tuple[int, int]]) -> tuple[dict[int, int], ...]:
    """{dimension: axis} of each output."""

    def shapes_at(asked: Sequence[int]) -> list[tuple[int, ...]]:
        with torch.no_grad():
            given = as_tuple(model.eval()(*resized(example, inputs, asked)))
        if odd := [x for x in given if not isinstance(x, Tensor)]:
            raise LoweringError(f"the model returns a {type(odd[0]).__name__}, but an engine returns only tensors: have forward "
                                "return tensors, in a tuple or a dictionary")
        return [tuple(x.shape) for x in given]

    # Twice the least, not the largest: an output's size tells as much, and costs less.
    low, high = [low for low, _ in ranges], [min(high, 2 * low or 1) for low, high in ranges]
    least = shapes_at(low)
    found: list[dict[int, int]] = [{} for _ in least]
    for axis, size in enumerate(high):
        other = shapes_at([size if i == axis else n for i, n in enumerate(low)])
        for i, (before, after) in enumerate(zip(least, other, strict=True)):
            for d, (a, b) in enumerate(zip(before, after, strict=True)):
                if a == b:
                    continue
                if (a, b) != (low[axis], size):
                    raise LoweringError(f"dimension {d} of output {i} is {a} where an input's is {low[axis]} and {b} where "
                                        f"it is {size}, so padding cannot be cut off: fix it in the workload's `shapes`")
                found[i][d] = axis
    return tuple(found)


def _check_padding(model: nn.Module, example: tuple[Tensor, ...], shapes: Shapes, made: Layout) -> None:
    """Compare the model's answers with and without padding, before anything is compiled."""
    model, bound = model.eval(), tolerance("fp32")
    for request in random_requests(example, shapes):
        arrays = [x.numpy() for x in request]
        asked = made.asked([x.shape for x in arrays])
        filled = made.sizes[made.bucket(asked)]
        if filled == asked:
            continue
        with torch.no_grad():
            alone = as_tuple(model(*request))
            among = as_tuple(model(*(torch.from_numpy(padded(x, dims, filled))
                                     for x, dims in zip(arrays, made.inputs, strict=True))))
        for i, (want, got, dims) in enumerate(zip(alone, among, made.outputs, strict=True)):
            error = relative_error(want.float().numpy(), cut(got.float().numpy(), dims, asked))
            if not error <= bound and bool(torch.isfinite(want).all()):
                raise LoweringError(
                    f"padding sizes {asked} to {filled} with zeros changes output {i} by {error:.3g} (relative Frobenius error; "
                    f"{bound:g} is allowed): a length can be padded only if the model takes a mask and applies it. Fix that "
                    "size in the workload's `shapes`, or use a compiler that supports varying sizes"
                )


def varying(specs: Sequence[TensorSpec], places: Sequence[dict[int, int]],
            ranges: Sequence[tuple[int, int]] | None = None) -> tuple[TensorSpec, ...]:
    """A fixed program's inputs, or without ``ranges`` its outputs, as what all programs together take or give."""
    return tuple(TensorSpec(
        spec.name, spec.dtype, tuple(-1 if d in dims else n for d, n in enumerate(spec.shape)),
        tuple((d, f"n{axis}", *ranges[axis]) for d, axis in dims.items()) if ranges else (),
    ) for spec, dims in zip(specs, places, strict=True))
