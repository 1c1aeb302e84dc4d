"""The state-space dual against its recurrence in float64 and against transformers; kernels run by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.interpreter import interpret, interpreted
from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.kernels.ssd import chunked, cpu, flops, naive, ssd, ssd_step, time_steps
from thrifty.kernels.ssd.layout import of_rows, of_sequences
from thrifty.training.flops import count_flops

SIZES = [(2, 5, 4, 8, 2, 16), (1, 130, 4, 8, 1, 16), (2, 64, 6, 5, 3, 7), (1, 1, 2, 3, 1, 4), (3, 200, 2, 20, 2, 24)]
"""(batch, tokens, heads, p, groups, n)"""
Case = tuple[Tensor, ...]


def drawn(batch: int, length: int, heads: int, width: int, groups: int, size: int, dtype: torch.dtype = torch.float64,
          device: str = "cpu", sequences: int | None = None, decay: float = 8.0) -> Case:
    """(x, dt, A, B, C, D, initial), numbers of ``dtype`` where a layer's activations are."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, B, C = (torch.randn(batch, length, *last).to(device, dtype) for last in
               ((heads, width), (groups, size), (groups, size)))
    dt, A = torch.rand(batch, length, heads).to(device, wide) * 0.5, -(torch.rand(heads) * decay).to(device, wide)
    D = torch.randn(heads).to(device, wide)
    return x, dt, A, B, C, D, torch.randn(sequences or batch, heads, width, size).to(device, wide)


def relative(got: Tensor, wanted: Tensor) -> float:
    got, wanted = (v.detach().double().cpu() for v in (got, wanted))
    return float((got - wanted).norm() / wanted.norm().clamp(min=1e-30))


def recurrence(case: Case, offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return naive.ssd(*(v.double().cpu() for v in case), None if offsets is None else offsets.cpu())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_chunks_are_the_recurrence(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    case = drawn(*size)
    for y, state in (cpu.forward(*case, None), chunked.ssd(*case), chunked.ssd(*case, chunk=7)):
        torch.testing.assert_close((y, state), recurrence(case))


@pytest.mark.parametrize("dtype,bound", [(torch.float32, 2e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)], ids=str)
def test_every_precision_is_as_near_as_its_digits_allow(dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    x, dt, A, B, C, D, initial = case = drawn(2, 150, 4, 16, 2, 32, dtype)
    y, state = ssd(x, dt, A, B, C, D, initial=initial)
    wanted, last = recurrence(case)
    assert y.dtype == dtype and state.dtype == torch.float32
    assert relative(y, wanted) < bound and relative(state, last) < 2e-6


@pytest.mark.parametrize("size", [(1, 70, 4, 3, 2, 5), (2, 3, 2, 2, 1, 3)], ids=str)
def test_gradients(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    case = [v.requires_grad_() for v in drawn(*size)]

    def call(*args: Tensor) -> tuple[Tensor, Tensor]:
        return ssd(*args[:6], initial=args[6])

    assert torch.autograd.gradcheck(call, case, fast_mode=True)


def test_gradients_are_those_of_the_recurrence_element_by_element() -> None:
    torch.manual_seed(0)
    case = [v.requires_grad_() for v in drawn(2, 90, 4, 3, 2, 5)]
    outputs = naive.ssd(*case)
    given = [torch.randn_like(v) for v in outputs]
    wanted = torch.autograd.grad(outputs, case, given)
    found = torch.autograd.grad(ssd(*case[:6], initial=case[6]), case, given)
    torch.testing.assert_close(found, wanted)


def test_the_operator_keeps_pytorchs_rules() -> None:
    x, dt, A, B, C, D, initial = (v.requires_grad_() for v in drawn(1, 20, 2, 4, 1, 4, torch.float32))
    torch.library.opcheck(torch.ops.thrifty.ssd.default, (x, dt, A, B, C, D, initial, None))
    torch.library.opcheck(torch.ops.thrifty.ssd.default, (x, dt, A, B, C, None, None, torch.tensor([0, 5, 20])))


# -- lengths ----------------------------------------------------------------------------------------------------


def test_each_sequence_of_a_row_has_its_own_state() -> None:
    """Lengths [500, 700, 900] in one row, and none or one token too."""
    torch.manual_seed(0)
    offsets = torch.tensor([0, 500, 1200, 1200, 1201, 2101])
    x, dt, A, B, C, D, initial = case = drawn(1, 2101, 2, 4, 1, 8, sequences=5, decay=0.2)
    y, state = ssd(x, dt, A, B, C, D, initial=initial, offsets=offsets)
    torch.testing.assert_close((y, state), recurrence(case, offsets))
    alone, last = ssd(x[:, 500:1200], dt[:, 500:1200], A, B[:, 500:1200], C[:, 500:1200], D, initial=initial[1:2])
    torch.testing.assert_close((alone[0], last[0]), (y[0, 500:1200], state[1]))
    torch.testing.assert_close(state[2], initial[2])


def test_gradients_of_sequences_in_a_row() -> None:
    torch.manual_seed(0)
    case = [v.requires_grad_() for v in drawn(1, 80, 2, 3, 1, 4, sequences=3)]
    offsets = torch.tensor([0, 70, 70, 80])
    assert torch.autograd.gradcheck(lambda *args: ssd(*args[:6], initial=args[6], offsets=offsets), case, fast_mode=True)


def test_no_tokens_leave_the_state() -> None:
    x, dt, A, B, C, D, initial = (v.requires_grad_() for v in drawn(2, 0, 2, 3, 1, 4))
    y, state = ssd(x, dt, A, B, C, D, initial=initial)
    assert y.shape == (2, 0, 2, 3) and torch.equal(state, initial)
    (found,) = torch.autograd.grad(state.sum(), initial)
    assert torch.equal(found, torch.ones_like(initial))


def test_a_prefix_of_any_length_goes_on_with_several_tokens() -> None:
    torch.manual_seed(0)
    x, dt, A, B, C, D, _ = case = drawn(1, 300, 2, 4, 1, 8)
    wanted, last = recurrence((*case[:6], torch.zeros(1, 2, 4, 8)))
    state, parts = None, []
    for first, stop in [(0, 77), (77, 80), (80, 81), (81, 300)]:
        y, state = ssd(x[:, first:stop], dt[:, first:stop], A, B[:, first:stop], C[:, first:stop], D, initial=state)
        parts.append(y)
    torch.testing.assert_close((torch.cat(parts, 1), state), (wanted, last))


def test_one_token_after_another_is_the_whole() -> None:
    torch.manual_seed(0)
    x, dt, A, B, C, D, state = case = drawn(2, 40, 4, 8, 2, 16, torch.float32)
    wanted, _ = ssd(x, dt, A, B, C, D, initial=state)
    for t in range(40):
        y, state = ssd_step(state, x[:, t], dt[:, t], A, B[:, t], C[:, t], D)
        torch.testing.assert_close(y, wanted[:, t], rtol=1e-5, atol=2e-5)
    assert relative(state, recurrence(case)[1]) < 2e-6


def test_chunks_of_sequences() -> None:
    layout = of_sequences(torch.tensor([0, 5, 5, 8]), 8, 4)
    assert layout.sequences.tolist() == [[0, 5, 0], [5, 5, 2], [5, 8, 2]]
    covered = [t for first, last in layout.chunks.tolist() for t in range(first, last)]
    assert covered == list(range(8))
    assert of_rows(2, 5, 4, torch.device("cpu")).chunks[:4].tolist() == [[0, 4], [4, 5], [5, 9], [9, 10]]


# -- numbers that overflow --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [40, 50, 64])
def test_large_decays_leave_no_nan(chunk: int) -> None:
    """exp of what is above the diagonal would overflow; odd chunks met it first (mamba#449)."""
    torch.manual_seed(0)
    case = [v.requires_grad_() for v in drawn(1, 130, 2, 4, 1, 8, torch.float32, decay=4000.0)]
    for y, state in (chunked.ssd(*case, chunk=chunk), ssd(*case[:6], initial=case[6])):
        found = torch.autograd.grad((y.sum(), state.sum()), case)
        assert all(v.isfinite().all() for v in (y, state, *found))
        assert relative(y, recurrence(tuple(v.detach() for v in case))[0]) < 1e-5


def test_float16_at_its_end_gives_no_nan_where_the_reference_has_none() -> None:
    torch.manual_seed(0)
    case = list(drawn(1, 100, 2, 4, 1, 8, torch.float16, decay=0.01))
    case[0] = (case[0] * 100).half()
    case[3] = (case[3] * 5000).half()
    case[4] = (case[4] * 1e-3).half()
    y, state = ssd(*case[:6], initial=case[6])
    wanted, last = recurrence(tuple(case))
    assert float(last.abs().max()) > 65504 and relative(state, last) < 1e-5 and relative(y, wanted) < 2e-3


def test_views_with_strides_of_their_own() -> None:
    torch.manual_seed(0)
    x, dt, A, B, C, D, _ = drawn(2, 70, 4, 8, 2, 16, torch.float32)
    joined = torch.cat([x.flatten(2), B.flatten(2), C.flatten(2)], -1)
    a, b, c = joined.split([32, 32, 32], -1)
    views = (a.unflatten(-1, (4, 8)), dt, A, b.unflatten(-1, (2, 16)), c.unflatten(-1, (2, 16)))
    torch.testing.assert_close(ssd(*views, D), ssd(x, dt, A, B, C, D))


def test_time_steps_keep_their_limits_and_their_mask() -> None:
    dt, mask = torch.tensor([[[-9.0], [0.0], [9.0]]]), torch.tensor([[True, True, False]])
    found = time_steps(dt, torch.ones(1), (0.1, 1.2), mask)
    torch.testing.assert_close(found, torch.tensor([[[0.1], [1.2], [0.0]]]))
    assert time_steps(torch.full((1,), 20.0).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("change,told", [
    ({"dt": torch.ones(1, 4, 3)}, "needs dt (1, 4, 4)"), ({"B": torch.ones(1, 4, 3, 8)}, "groups that divide its 4 heads"),
    ({"initial": torch.ones(2, 4, 2, 8)}, "initial states must be (1, 4, 2, 8)"),
])
def test_sizes_that_do_not_fit_are_named(change: dict[str, Tensor], told: str) -> None:
    x, dt, A, B, C, _, initial = drawn(1, 4, 4, 2, 2, 8)
    given = {"dt": dt, "B": B, "initial": initial} | change
    with pytest.raises(ThriftyError) as error:
        ssd(x, given["dt"], A, given["B"], C, initial=given["initial"])
    assert told in str(error.value)
    with pytest.raises(ThriftyError, match="offsets mark the sequences of one row"):
        ssd(*drawn(2, 4, 2, 2, 1, 8)[:5], offsets=torch.tensor([0, 4]))


# -- peers and compilers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [16, 256])
def test_transformers_chunked_scan(chunk: int) -> None:
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    torch.manual_seed(0)
    x, dt, A, B, C, D, initial = drawn(2, 100, 4, 8, 2, 16, torch.float32)
    raw, bias, limits = torch.randn_like(dt), torch.randn(4), (0.05, 0.9)
    wanted = mamba2_chunk_scan(x, raw, A, B, C, chunk, D, dt_bias=bias, initial_states=initial, dt_softplus=True, dt_limit=limits,
                               return_final_states=True)
    found = ssd(x, time_steps(raw, bias, limits), A, B, C, D, initial=initial)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


class Net(nn.Module):
    def forward(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
        return ssd(x, dt, A, B, C, D)


def test_compiles_whole_forward_and_backward() -> None:
    torch.manual_seed(0)
    case = [v.requires_grad_() for v in drawn(1, 70, 2, 4, 1, 8, torch.float32)[:6]]
    compiled = torch.compile(Net(), fullgraph=True, backend="aot_eager")
    for got, wanted in zip(torch.autograd.grad(compiled(*case)[0].sum(), case),
                           torch.autograd.grad(Net()(*case)[0].sum(), case), strict=True):
        torch.testing.assert_close(got, wanted)


def test_exports_to_torchs_own_operators_with_a_free_length() -> None:
    torch.manual_seed(0)
    case = drawn(1, 70, 2, 4, 1, 8, torch.float32)[:6]
    length = torch.export.Dim("length", min=2, max=512)
    dims = tuple({1: length} if v.dim() > 1 else None for v in case)
    program = torch.export.export(Net(), case, dynamic_shapes=dims)
    assert not [n for n in program.graph.nodes if "thrifty" in str(n.target)]
    for tokens in (2, 64, 201):
        other = drawn(1, tokens, 2, 4, 1, 8, torch.float32)[:6]
        torch.testing.assert_close(program.module()(*other), ssd(*other), rtol=1e-4, atol=1e-4)
    fixed = torch.export.export(Net(), case)
    torch.testing.assert_close(fixed.module()(*case), ssd(*case), rtol=1e-5, atol=1e-5)


def test_flops_are_counted_in_both_directions() -> None:
    x, dt, A, B, C, D, _ = (v.requires_grad_() for v in drawn(1, 128, 4, 8, 2, 16, torch.float32))
    (y, _), count = count_flops(lambda: ssd(x, dt, A, B, C, D))
    assert count.flops == flops(128, 4, 2, 8, 16) and "thrifty.ssd" not in count.uncounted
    _, back = count_flops(lambda: y.sum().backward())
    assert back.flops > 2 * count.flops


# -- on a GPU, or interpreted -----------------------------------------------------------------------------------

INTERPRETED = """
import torch
from thrifty.kernels.ssd import triton
from tests.kernels.interpreter import poison
from tests.kernels.test_ssd import FEW, compare, compare_forward
poison()
kinds = triton._kinds
triton._kinds = lambda x: {**kinds(x), "KIND": triton.tl.float32}  # the interpreter's products of bfloat16 are wrong
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for size, offsets in FEW:
        for chunk, block_p, spans, stages in [(16, 16, 1, 1), (32, 32, 1, 3), (16, 32, 3, 2)][2 * (dtype == torch.float16) :]:
            compare(size, offsets, dtype, triton.Scan(chunk, block_p, 4, stages, spans if offsets is None else 1),
                    triton.Gradient(chunk, (4, stages), 4, (4, stages), spans), "cpu")
        if dtype == torch.bfloat16:  # what `walk` is for
            compare_forward(size, offsets, dtype, triton.Walk(16, 32, 4, 3, 3, 2), "cpu")
"""
FEW: list[tuple[tuple[int, ...], list[int] | None]] = [
    ((2, 37, 2, 8, 2, 16), None), ((1, 50, 2, 20, 1, 24), [0, 13, 13, 40, 50]), ((1, 1, 2, 16, 1, 16), None)]


BOUNDS = {torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 1e-2}


def compare_forward(size: tuple[int, ...], offsets: list[int] | None, dtype: torch.dtype, how: object, device: str
                    ) -> tuple[Case, Tensor | None, tuple[Tensor, Tensor]]:
    """The kernels' outputs against float64; then what was drawn, and what is wanted of it."""
    from thrifty.kernels.ssd import triton

    torch.manual_seed(0)
    case = drawn(*size, dtype, device, None if offsets is None else len(offsets) - 1)
    where = None if offsets is None else torch.tensor(offsets, device=device)
    wanted = recurrence(case, where)
    for i, (got, want) in enumerate(zip(triton.forward(*case, where, how), wanted, strict=True)):
        error = relative(got, want)
        assert got.isfinite().all() and error < BOUNDS[dtype], (size, offsets, dtype, how, i, error)
    return case, where, wanted


def compare(size: tuple[int, ...], offsets: list[int] | None, dtype: torch.dtype, scan: object, gradient: object,
            device: str) -> None:
    """Both directions of the kernels against float64."""
    from thrifty.kernels.ssd import triton

    case, where, wanted = compare_forward(size, offsets, dtype, scan, device)
    given = torch.randn(case[0].shape).to(device, dtype), torch.randn(wanted[1].shape).to(device)
    exact = tuple(v.double().cpu() for v in case)
    grads = cpu.backward(*(v.double().cpu() for v in given), *exact, None if where is None else where.cpu())
    for i, (got, want) in enumerate(zip(triton.backward(*given, *case, where, gradient), grads, strict=True)):
        error, of_a = relative(got, want), i == 2  # A's is a sum over all tokens, most of which cancels
        assert got.isfinite().all() and error < (4 if of_a else 1) * BOUNDS[dtype], (size, offsets, dtype, gradient, i, error)


@interpreted
def test_the_kernels_are_the_recurrence_where_they_are_interpreted() -> None:
    interpret(INTERPRETED)


@pytest.mark.gpu
def test_every_configuration_that_a_sweep_may_choose_is_right() -> None:
    """One of another Triton may be miscompiled: with one stage and blocks of 32, `Scan` was wrong on an H200."""
    from thrifty.kernels.ssd.triton import Gradient, Scan

    for chunk, scan, states, warps, projection in [
        (64, (32, 4, 3), (4, 3), 4, (8, 2)), (64, (64, 8, 3), (8, 3), 8, (8, 2)), (64, (64, 4, 2), (4, 2), 4, (8, 1)),
        (128, (64, 8, 2), (4, 3), 8, (8, 1))]:
        for splits in (1, 2):
            gradient = Gradient(chunk, states, warps, projection, splits)
            compare((1, 1000, 8, 64, 1, 128), None, torch.bfloat16, Scan(chunk, *scan), gradient, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("walk", [(32, 64, 4, 3, 1, 1), (32, 64, 4, 3, 2, 3), (32, 64, 4, 3, 8, 3), (64, 64, 4, 2, 2, 3)],
                         ids=str)
def test_walks_of_long_sequences_are_right(walk: tuple[int, ...]) -> None:
    from thrifty.kernels.ssd.triton import Walk

    for size, offsets in [((1, 3000, 8, 64, 1, 128), None), ((2, 1000, 8, 128, 2, 128), None),
                          ((1, 2100, 4, 64, 1, 128), [0, 500, 1200, 2100])]:
        compare_forward(size, offsets, torch.bfloat16, Walk(*walk), "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size,offsets", [*FEW, ((1, 1000, 8, 64, 1, 128), None), ((2, 300, 4, 128, 2, 64), None),
                                          ((1, 2100, 4, 64, 1, 128), [0, 500, 1200, 2100])], ids=str)
def test_the_gpus_kernels_are_the_recurrence(size: tuple[int, ...], offsets: list[int] | None, dtype: torch.dtype) -> None:
    compare(size, offsets, dtype, None, None, "cuda")
