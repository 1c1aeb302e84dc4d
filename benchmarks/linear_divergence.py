"""A linear layer and its loss over a large vocabulary, forward and backward, on a GPU: ours beside Liger and torch.

    python benchmarks/linear_divergence.py [--tokens 8192 --width 4096 --vocabulary 131072]

bf16. Medians of `triton.testing.do_bench`; memory is the peak above inputs and weights, gradients included. Gradients are
compared with those of float32 logits on a part of the tokens. Every variant runs on its own: one that fails is named.
"""

from __future__ import annotations

import argparse
import gc
import traceback
from collections.abc import Callable

import torch
import triton.testing
from torch import Tensor
from torch.nn import functional as F

from thrifty.kernels.linear_divergence import linear_divergence
from thrifty.kernels.linear_loss import linear_cross_entropy

Made = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def made(tokens: int, width: int, vocabulary: int) -> Made:
    """Student's hidden states and head, the teacher's, targets. Logits have a deviation of about 3, the teacher's near."""
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size, device="cuda", generator=generator) * scale).bfloat16()

    x, w = draw(tokens, width), draw(vocabulary, width, scale=3 / width**0.5)
    t, head = x + draw(tokens, width, scale=0.3), w + draw(vocabulary, width, scale=1 / width**0.5)
    y = torch.randint(vocabulary, (tokens,), device="cuda", generator=generator)
    return x.requires_grad_(), w.requires_grad_(), t, head, y


def eager_ce(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x @ w.t(), y, reduction="sum")


def eager_kl(x: Tensor, w: Tensor, t: Tensor, head: Tensor) -> Tensor:
    with torch.no_grad():
        taught = (t @ head.t()).log_softmax(-1)
    return F.kl_div((x @ w.t()).log_softmax(-1), taught, reduction="sum", log_target=True)


def liger_ce() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return lambda x, w, y: loss(w, x, y)


def liger_kl() -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    loss = LigerFusedLinearJSD(jsd_beta=0.0)
    return lambda x, w, t, head: loss(x, w, t, head, None)


def one(name: str, call: Callable[[], Tensor], leaves: tuple[Tensor, Tensor]) -> None:
    try:
        def step() -> None:
            for leaf in leaves:
                leaf.grad = None
            call().backward()

        step()
        for leaf in leaves:
            leaf.grad = None
        gc.collect()
        torch.cuda.empty_cache()
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        peak = (torch.cuda.max_memory_allocated() - base) / 2**30
        milliseconds = triton.testing.do_bench(step, warmup=100, rep=700, return_mode="median")
        print(f"| {name} | {milliseconds:.1f} ms | {peak:.2f} GiB |", flush=True)
    except Exception:
        print(f"| {name} | failed: {traceback.format_exc().splitlines()[-1][:150]} | |", flush=True)
    finally:
        for leaf in leaves:
            leaf.grad = None
        gc.collect()
        torch.cuda.empty_cache()


def errors(name: str, call: Callable[..., Tensor], parts: tuple[Tensor, ...], exact: Callable[..., Tensor]) -> None:
    """Relative errors of both gradients on some tokens against the same function of float32 operands."""
    try:
        leaves = tuple(each.detach().clone().requires_grad_() for each in parts[:2])
        wide = tuple(each.detach().float().requires_grad_() for each in parts[:2])
        rest = [each.float() if each.is_floating_point() else each for each in parts[2:]]
        call(*leaves, *parts[2:]).backward()
        exact(*wide, *rest).backward()
        found = [float((a.grad.float() - b.grad).norm() / b.grad.norm()) for a, b in zip(leaves, wide, strict=True)]
        print(f"{name}: relative errors of the gradients at hidden and weight {found[0]:.1e}, {found[1]:.1e}", flush=True)
    except Exception:
        print(f"{name}: failed: {traceback.format_exc().splitlines()[-1][:150]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=131_072)
    given = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    x, w, t, head, y = made(given.tokens, given.width, given.vocabulary)
    leaves = (x, w)
    print(torch.cuda.get_device_name(), torch.__version__, triton.__version__, flush=True)
    square = torch.randn(8192, 8192, device="cuda").bfloat16()
    ms = triton.testing.do_bench(lambda: square @ square, return_mode="median")
    print(f"8192^3 product: {2 * 8192**3 / ms / 1e9:.0f} TFLOP/s", flush=True)

    print("| linear + cross entropy | forward and backward | peak extra |\n| --- | --- | --- |")
    for bits in (28, 29, 30):
        one(f"ours, logits of 2^{bits} bytes",
            lambda bits=bits: linear_cross_entropy(x, w, y, logits_bytes=2**bits), leaves)
    try:
        peer = liger_ce()
        one("Liger", lambda: peer(x, w, y), leaves)
    except Exception as error:
        print("Liger is not here:", error)
    one("torch eager", lambda: eager_ce(x, w, y), leaves)

    print("| linear + KL | forward and backward | peak extra |\n| --- | --- | --- |")
    for most in (3 * 2**26, 3 * 2**27, 3 * 2**28, 3 * 2**29):
        one(f"ours, logits of {most / 2**20:.0f} MiB", lambda most=most: linear_divergence(x, w, t, head, logits_bytes=most),
            leaves)
    for kind in ("reverse_kl", "jsd"):
        one(f"ours, {kind}, 384 MiB", lambda kind=kind: linear_divergence(x, w, t, head, kind=kind, logits_bytes=3 * 2**27),
            leaves)
    try:
        other = liger_kl()
        one("Liger (fused linear JSD, beta 0)", lambda: other(x, w, t, head), leaves)
    except Exception as error:
        print("Liger is not here:", error)
    one("torch eager", lambda: eager_kl(x, w, t, head), leaves)

    few = 1024
    part = (x[:few].detach(), w.detach(), t[:few], head)
    errors("KL, ours", linear_divergence, part, eager_kl)
    errors("KL, torch eager", eager_kl, part, eager_kl)
    errors("CE, ours", linear_cross_entropy, (x[:few].detach(), w.detach(), y[:few]), eager_ce)
    compiled_ce, compiled_kl = torch.compile(eager_ce), torch.compile(eager_kl)
    one("torch.compile, cross entropy", lambda: compiled_ce(x, w, y), leaves)
    one("torch.compile, KL", lambda: compiled_kl(x, w, t, head), leaves)


if __name__ == "__main__":
    main()
