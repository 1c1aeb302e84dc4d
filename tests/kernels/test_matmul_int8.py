"""Products of eight bits against their sums in float64; the kernel run by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from thrifty.kernels import matmul_fp8, matmul_int8
from thrifty.kernels.matmul_int8 import naive

INTERPRETED = """
import torch
from tests.kernels.test_matmul_int8 import drawn, exact
from thrifty.kernels.matmul_int8.triton import Config, product
for tokens, rows, inputs, config in [(1, 40, 64, Config(16, 16, 32, 4, 2, True)), (50, 70, 96, Config(32, 32, 32, 4, 3)),
                                     (300, 20, 32, Config(32, 32, 32, 4, 1))]:
    made = drawn(tokens, rows, inputs, torch.int8)
    for bias in (None, torch.randn(rows)):
        torch.testing.assert_close(product(*made, torch.float32, bias, config).double(), exact(*made, bias), rtol=1e-6, atol=1e-6)
"""


def drawn(tokens: int, rows: int, inputs: int, kind: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, weight = (torch.randint(-127, 128, (n, inputs), device=device).to(torch.float32).to(kind) for n in (tokens, rows))
    return x, weight, torch.rand(tokens, device=device) + 0.1, torch.rand(rows, device=device) + 0.1


def exact(x: Tensor, weight: Tensor, token: Tensor, row: Tensor, bias: Tensor | None = None) -> Tensor:
    """Element by element of the result, in float64."""
    y = torch.zeros(len(x), len(weight), dtype=torch.float64)
    for i in range(len(x)):
        for j in range(len(weight)):
            y[i, j] = (x[i].double() * weight[j].double()).sum() * token[i].double() * row[j].double()
    return y if bias is None else y + bias


@pytest.mark.parametrize("bias", [None, torch.tensor([1e3, -1e3, 0.1, 7, 0, -5, 2])], ids=["", "bias"])
@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_the_maths_is_the_sum_of_products(kind: torch.dtype, bias: Tensor | None) -> None:
    made = drawn(5, 7, 48, kind)
    torch.testing.assert_close(naive.product(*made, torch.float64, bias), exact(*made, bias))
    torch.testing.assert_close(matmul_fp8.product(*made, torch.float32, bias).double(), exact(*made, bias), rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) >= "2.4.0", reason="Triton's interpreter fails with numpy 2.4")
def test_the_kernel_is_the_maths_where_it_is_interpreted() -> None:
    done = subprocess.run([sys.executable, "-c", INTERPRETED], capture_output=True, text=True, check=False,
                          env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(["src", ".", *sys.path])})
    assert done.returncode == 0, done.stderr[-2000:]


SIZES = [(1, 96, 256), (16, 513, 1024), (17, 64, 48), (64, 1000, 4096), (65, 128, 512), (1000, 777, 1040)]


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_gpus_sums_are_exact(size: tuple[int, int, int]) -> None:
    made = drawn(*size, torch.int8, "cuda")
    assert matmul_int8.fits(*made[:2])
    for bias in (None, torch.randn(size[1], device="cuda")):
        y, wanted = matmul_int8.product(*made, torch.float32, bias), naive.product(*made, torch.float32, bias)
        torch.testing.assert_close(y, wanted, rtol=1e-6, atol=1e-5)
        torch.library.opcheck(matmul_int8.product, (*made, torch.bfloat16, bias))


@pytest.mark.gpu
def test_weights_may_lie_anywhere() -> None:
    x, weight, token, row = drawn(3, 40, 64, torch.int8, "cuda")
    askew = torch.zeros(40 * 64 + 1, dtype=torch.int8, device="cuda")[1:].view(40, 64).copy_(weight)
    torch.testing.assert_close(matmul_int8.product(x, askew, token, row, torch.float32),
                               naive.product(x, weight, token, row, torch.float32), rtol=1e-6, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [(1, 96, 256), (64, 1008, 4096)], ids=str)
def test_the_gpus_float8_is_the_maths(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    made = drawn(*size, torch.float8_e4m3fn, "cuda")
    assert matmul_fp8.fits(*made[:2])
    for bias in (None, torch.randn(size[1], device="cuda") * 1e3):
        y, wanted = matmul_fp8.product(*made, dtype, bias), naive.product(*made, torch.float32, bias)
        assert y.dtype == dtype and float((y.float() - wanted).norm() / wanted.norm()) < 3e-3
