"""Every distillation loss against its formula, written with loops in double precision; its gradients against differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty.training.distillation import losses

Rows = list[list[float]]


def softmax(row: list[float], temperature: float) -> list[float]:
    exps = [math.exp((x - max(row)) / temperature) for x in row]
    return [e / sum(exps) for e in exps]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def naive_forward(student: Rows, teacher: Rows, t: float) -> float:
    return sum(kl(softmax(b, t), softmax(a, t)) for a, b in zip(student, teacher, strict=True))


def naive_reverse(student: Rows, teacher: Rows, t: float) -> float:
    return naive_forward(teacher, student, t)


def naive_jsd(student: Rows, teacher: Rows, t: float, beta: float = 0.5) -> float:
    total = 0.0
    for a, b in zip(student, teacher, strict=True):
        q, p = softmax(a, t), softmax(b, t)
        m = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
        total += beta * kl(p, m) + (1 - beta) * kl(q, m)
    return total


DIVERGENCES: list[tuple[Callable[..., Tensor], Callable[..., float]]] = [
    (losses.forward_kl, naive_forward), (losses.reverse_kl, naive_reverse), (losses.jsd, naive_jsd),
    (partial(losses.jsd, beta=0.1), partial(naive_jsd, beta=0.1)), (partial(losses.jsd, beta=0.9), partial(naive_jsd, beta=0.9)),
]
NAMES = ["forward", "reverse", "jsd", "jsd.1", "jsd.9"]


@pytest.mark.parametrize("loss, naive", DIVERGENCES, ids=NAMES)
@given(st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8)), min_size=2, max_size=7), st.floats(0.5, 20))
def test_divergences_are_the_formulas(loss, naive, pairs, temperature) -> None:
    student, teacher = [[a for a, _ in pairs], [b for _, b in pairs]], [[b for _, b in pairs], [a + 1 for a, _ in pairs]]
    got = float(loss(torch.tensor(student, dtype=torch.float64), torch.tensor(teacher, dtype=torch.float64), temperature))
    assert got == pytest.approx(naive(student, teacher, temperature), abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("loss", [loss for loss, _ in DIVERGENCES], ids=NAMES)
def test_gradients_of_divergences_are_their_differences(loss) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5).double().requires_grad_(), torch.randn(3, 5).double()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, 1.7), (student,))


def test_the_gradient_of_the_forward_divergence_times_t_squared_is_t_times_the_difference() -> None:
    student, teacher = torch.randn(5, 4).double().requires_grad_(), torch.randn(5, 4).double()
    (9 * losses.forward_kl(student, teacher, 3.0)).backward()
    torch.testing.assert_close(student.grad, 3.0 * ((student / 3).softmax(-1) - (teacher / 3).softmax(-1)).detach())


def test_both_limits_of_jsd() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 9).double(), torch.randn(6, 9).double()
    forward, reverse = losses.forward_kl(student, teacher), losses.reverse_kl(student, teacher)
    ends = {beta: losses.jsd(student, teacher, beta=beta) for beta in (1e-7, 1 - 1e-7)}
    assert all(0 <= float(x) < 1e-5 for x in ends.values())  # as published it vanishes at both
    torch.testing.assert_close(ends[1e-7] / 1e-7, forward, rtol=1e-5, atol=0)
    torch.testing.assert_close(ends[1 - 1e-7] / 1e-7, reverse, rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", [loss for loss, _ in DIVERGENCES], ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_certain_distributions_give_no_nan_and_none_is_negative(loss, dtype) -> None:
    student = torch.tensor([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[1000.0, 0.0, -1000.0], [1000.0, 0.0, -1000.0]], dtype=dtype)
    found = loss(student, teacher)
    found.backward()
    assert float(found.detach()) >= 0 and bool(student.grad.isfinite().all())
    assert float(loss(student[:0], teacher[:0])) == 0


def test_draws_from_the_teacher_are_unbiased_where_its_largest_probabilities_are_not() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 12).double().requires_grad_(), 2 * torch.randn(4, 12).double()
    p = teacher.softmax(-1)
    exact = -(p * student.log_softmax(-1)).sum()
    wanted, = torch.autograd.grad(exact, student)
    drawn = losses.draw(teacher, 400_000, generator=torch.Generator().manual_seed(0))
    found = losses.sampled_kl(student, drawn)
    got, = torch.autograd.grad(found, student)
    torch.testing.assert_close(found, exact, rtol=5e-3, atol=0)
    torch.testing.assert_close(got, wanted, rtol=0, atol=5e-3)
    top = p.topk(3).values
    kept = torch.zeros_like(p).scatter(1, p.topk(3).indices, top / top.sum(1, keepdim=True))
    biased, = torch.autograd.grad(-(kept * student.log_softmax(-1)).sum(), student)
    assert float((biased - wanted).abs().max()) > 0.02


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def naive_embedding(s: Rows, t: Rows) -> float:
    return sum(1 - cosine(a, b) for a, b in zip(s, t, strict=True)) / len(s)


def naive_similarity(s: Rows, t: Rows) -> float:
    n = len(s)
    return sum((cosine(s[i], s[j]) - cosine(t[i], t[j])) ** 2 for i in range(n) for j in range(n)) / n**2


def naive_feature(s: Rows, t: Rows) -> float:
    return (sum((a - b) ** 2 for x, y in zip(s, t, strict=True) for a, b in zip(x, y, strict=True))
            / sum(b**2 for y in t for b in y))


@pytest.mark.parametrize("loss, naive, width", [
    (losses.embedding_distance, naive_embedding, 3), (losses.similarity_distance, naive_similarity, 5),
    (losses.feature_distance, naive_feature, 3)])
@pytest.mark.parametrize("rows", [1, 4, 7])
def test_distances_of_vectors_are_the_formulas(loss, naive, width, rows) -> None:
    torch.manual_seed(rows)
    s, t = torch.randn(rows, 3).double().requires_grad_(), torch.randn(rows, width).double()
    assert float(loss(s, t).detach()) == pytest.approx(naive(s.tolist(), t.tolist()), abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: loss(x, t), (s,))
    assert float(loss(s[:0], t[:0])) == 0


def test_attention_maps_are_the_formulas() -> None:
    torch.manual_seed(0)
    s, t = torch.randn(3, 4, 2, 5).double().requires_grad_(), torch.randn(3, 6, 2, 5).double()

    def looks(x: Tensor) -> list[float]:
        cells = [sum(float(x[c, i, j]) ** 2 for c in range(len(x))) / len(x) for i in range(2) for j in range(5)]
        return [cell / math.hypot(*cells) for cell in cells]

    expected = sum(sum((a - b) ** 2 for a, b in zip(looks(s[n].detach()), looks(t[n]), strict=True)) for n in range(3)) / 3
    assert float(losses.attention_map_distance(s, t).detach()) == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: losses.attention_map_distance(x, t), (s,))


def test_relations_of_attention_are_the_formulas() -> None:
    torch.manual_seed(0)
    s, t = torch.randn(2, 4, 6).double().requires_grad_(), torch.randn(2, 4, 12).double()
    valid = torch.tensor([[True, True, True, False], [True, True, True, True]])

    def relation(x: Tensor, place: int, head: int, places: list[int]) -> list[float]:
        part = x.unflatten(-1, (2, -1))[:, head].tolist()
        return softmax([sum(a * b for a, b in zip(part[place], part[other], strict=True)) / math.sqrt(len(part[0]))
                        for other in places], 1.0)

    rows = []
    for n in range(2):
        places = [i for i in range(4) if valid[n, i]]
        rows += [kl(relation(t[n], i, head, places), relation(s[n].detach(), i, head, places))
                 for i in places for head in range(2)]
    got = losses.attention_relation_distance(s, t, valid, 2)
    assert float(got.detach()) == pytest.approx(sum(rows) / len(rows), abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: losses.attention_relation_distance(x, t, valid, 2), (s,))
    assert float(losses.attention_relation_distance(s, t, torch.zeros_like(valid), 2)) == 0


