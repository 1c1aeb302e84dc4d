"""The product with weights of four bits against the math, its kernel run by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty.kernels import matmul_w4a16
from thrifty.kernels.matmul_w4a16 import layout, naive
from thrifty.numerics.modules import GroupedLinear

INTERPRETED = """
import torch, triton.language as tl
from tests.kernels import ptx
tl.inline_asm_elementwise = ptx.inline
from tests.kernels.test_matmul_w4a16 import drawn, exact
from thrifty.kernels.matmul_w4a16 import prepare
from thrifty.kernels.matmul_w4a16.triton import Config, product
for tokens, rows, inputs, group, config, dtype, bias in [
    (1, 16, 128, 128, Config(1, 1, 1, 1), torch.float16, False),
    (3, 40, 384, 64, Config(1, 2, 2, 0), torch.float16, True),
    (9, 50, 384, 128, Config(2, 2, 4, 3), torch.float16, True),
    (17, 33, 96, 32, Config(1, 1, 1, 0, True), torch.float16, False),
    (2, 20, 768, 256, Config(1, 1, 2, 1, True), torch.float16, False),
    (5, 40, 384, 128, Config(1, 4, 1, 0), torch.bfloat16, True),
    (5, 40, 384, 32, Config(1, 1, 4, 2, True), torch.bfloat16, True)]:
    x, q, scale, zero, b = drawn(tokens, rows, inputs, group, dtype)
    y = product(x, *prepare(q, scale, zero), b if bias else None, rows, group, config)
    wanted = exact(x, q, scale, zero) + (b.double() if bias else 0)
    error = float((y.double() - wanted).norm() / wanted.norm())
    # Float16 rounds the result by 2^-11; the interpreter cuts bfloat16 where a GPU rounds.
    print(config, dtype, error)
    assert error < (1e-3 if dtype == torch.float16 else 1e-2), (config, dtype, error)
"""


def drawn(tokens: int, rows: int, inputs: int, group: int, dtype: torch.dtype,
          device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(x, q, scale, zero, bias)."""
    x = torch.randn(tokens, inputs, device=device).to(dtype)
    q = torch.randint(0, 16, (rows, inputs), dtype=torch.uint8, device=device)
    scale = torch.rand(rows, inputs // group, device=device) * 0.1 + 1e-3
    zero = torch.randint(0, 16, scale.shape, dtype=torch.uint8, device=device)
    return x, q, scale, zero, torch.randn(rows, device=device)


def exact(x: Tensor, q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """In float64, group by group: sum over groups of s (x (q - z))."""
    group = q.shape[1] // scale.shape[1]
    y = torch.zeros(len(x), len(q), dtype=torch.float64, device=x.device)
    for i in range(scale.shape[1]):
        some = slice(i * group, (i + 1) * group)
        y += x[:, some].double() @ (q[:, some].double() - zero[:, i:i + 1].double()).T * scale[:, i].double()
    return y


def test_the_maths_is_the_sum_over_groups() -> None:
    x, q, scale, zero, _ = drawn(3, 7, 96, 32, torch.float32)
    torch.testing.assert_close(naive.product(x.double(), q, scale, zero), exact(x, q, scale, zero), rtol=1e-6, atol=1e-6)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**31))
def test_every_number_lies_where_the_fragments_have_it(rows: int, groups: int, seed: int) -> None:
    inputs = 32 * groups
    q = torch.randint(0, 16, (rows, inputs), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    words = layout.words(q).to(torch.int64) & 0xFFFFFFFF
    row, k = torch.arange(rows)[:, None], torch.arange(inputs)[None, :]
    lane = 4 * (row % 8) + k // 8 % 4
    word = words[row // 16, k // 64, lane, k // 32 % 2 * 2 + k // 4 % 2]
    shift = 4 * (row // 8 % 2 + 2 * (k // 2 % 2) + 4 * (k % 2))
    assert torch.equal((word >> shift) & 15, q.to(torch.int64))
    assert words.numel() * 8 == -(-rows // 16) * 16 * -(-inputs // 128) * 128


@given(st.floats(1e-12, 1e4), st.integers(0, 255))
def test_a_scale_and_its_zero_share_a_word(scale: float, zero: int) -> None:
    kept = torch.tensor([[scale]])
    word = layout.grids(kept, torch.tensor([[zero]], dtype=torch.uint8), 128)
    assert word.shape == (1, 16) and not word[0, 1:].any()
    assert int(word[0, 0]) & 255 == zero
    assert abs(float(word[0, 0].view(torch.float32) / kept) - 1) <= 2**-16 + 2**-24


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) >= "2.4.0", reason="Triton's interpreter fails with numpy 2.4")
def test_the_kernel_is_the_maths_where_it_is_interpreted() -> None:
    done = subprocess.run([sys.executable, "-c", INTERPRETED], capture_output=True, text=True, check=False,
                          env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(["src", ".", *sys.path])})
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout


def test_a_cpu_takes_the_maths() -> None:
    assert not matmul_w4a16.fits(torch.ones(1, 128, dtype=torch.bfloat16), 4, 128)


SIZES = [(1, 16, 128, 128), (2, 28, 384, 128), (7, 1000, 4096, 128), (8, 513, 256, 128), (16, 4096, 1024, 128),
         (33, 100, 2048, 256), (64, 257, 1024, 1024)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_gpus_product_is_the_maths(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    x, q, scale, zero, bias = drawn(*size, dtype, "cuda")
    held = matmul_w4a16.prepare(q, scale, zero)
    y = matmul_w4a16.product(x, *held, bias, size[1], size[3])
    wanted = exact(x, q, scale, zero) + bias.double()
    assert y.dtype == dtype and y.shape == wanted.shape
    assert float((y.double() - wanted).norm() / wanted.norm()) < (5e-3 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("tiles", [1, 2, 4])
@pytest.mark.parametrize("strips", [1, 2, 4])
@pytest.mark.parametrize("warps", [1, 4])
@pytest.mark.parametrize("stages", [0, 1, 3])
def test_however_the_work_is_shared_the_product_is_the_same(tiles: int, strips: int, warps: int, stages: int) -> None:
    from thrifty.kernels.matmul_w4a16.triton import Config, product

    x, q, scale, zero, _ = drawn(20, 88, 640, 128, torch.bfloat16, "cuda")
    held, wanted = matmul_w4a16.prepare(q, scale, zero), exact(x, q, scale, zero)
    for before in (False, True):
        y = product(x, *held, None, 88, 128, Config(tiles, strips, warps, stages, before))
        assert float((y.double() - wanted).norm() / wanted.norm()) < 5e-3


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [3, 4])
def test_a_grouped_layer_on_a_gpu_runs_the_kernel_eager_compiled_and_in_a_graph(bits: int) -> None:
    _, q, scale, zero, bias = drawn(1, 96, 512, 128, torch.bfloat16)
    layer = GroupedLinear(q % 2**bits, scale, zero % 2**bits, bits, bias, torch.rand(512) + 0.5)
    x = torch.randn(2, 3, 512).to(torch.bfloat16)
    wanted = layer(x).float()
    layer, x = layer.cuda(), x.cuda()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen, torch.no_grad():
        y = layer(x)
        torch.cuda.synchronize()
    assert any("_product" in event.key for event in seen.key_averages())
    assert error(y.float().cpu(), wanted) < 1e-2  # activations are smoothed in bf16
    with torch.no_grad():
        assert error(torch.compile(layer, fullgraph=True)(x), y) < 1e-2
        graph, held = torch.cuda.CUDAGraph(), x.clone()
        with torch.cuda.graph(graph):
            out = layer(held)
        held.copy_(2 * x)
        graph.replay()
        assert error(out - layer.bias.to(out.dtype), 2 * (y - layer.bias.to(y.dtype))) < 1e-2


@pytest.mark.gpu
def test_the_compilers_view_of_the_operator_is_right() -> None:
    x, q, scale, zero, bias = drawn(2, 32, 256, 128, torch.bfloat16, "cuda")
    torch.library.opcheck(matmul_w4a16.product, (x, *matmul_w4a16.prepare(q, scale, zero), bias, 32, 128))
