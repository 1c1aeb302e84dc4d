"""Distillation, against the formula, and its gradients against the derivative."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from thrifty import AdamW, Bf16, CrossEntropy, Distill
from thrifty.errors import ThriftyError
from thrifty.recipes.phases import Train
from thrifty.training.distillation.distill import divergence
from thrifty.training.loop import fit
from thrifty.training.session import TrainingSession

DATA = TensorDataset(torch.randn(64, 4), torch.randint(0, 3, (64,)))
CONSTANT = Train(schedule="constant", warmup=0, clip=None, steps=1)


def naive(student: list[float], teacher: list[float], temperature: float) -> float:
    def softmax(logits: list[float]) -> list[float]:
        exps = [math.exp(x / temperature - max(logits) / temperature) for x in logits]
        return [e / sum(exps) for e in exps]

    return temperature**2 * sum(p * (math.log(p) - math.log(q))
                                for p, q in zip(softmax(teacher), softmax(student), strict=True))


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=6), st.floats(0.5, 20))
def test_the_divergence_is_the_formulas(pairs: list[tuple[float, float]], temperature: float) -> None:
    student, teacher = [a for a, _ in pairs], [b for _, b in pairs]
    got = float(divergence(torch.tensor([student, teacher], dtype=torch.float64),
                           torch.tensor([teacher, teacher], dtype=torch.float64), temperature))
    assert got == pytest.approx(naive(student, teacher, temperature), abs=1e-9)


def test_the_gradient_is_t_times_the_difference_of_the_distributions() -> None:
    student = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 4, dtype=torch.float64)
    divergence(student, teacher, 3.0).backward()
    torch.testing.assert_close(student.grad, 3.0 * ((student / 3).softmax(-1) - (teacher / 3).softmax(-1)).detach())


def test_a_step_minimises_the_weighted_sum_over_valid_examples() -> None:
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    x, y = torch.randn(6, 4), torch.tensor([0, 1, -100, 2, -100, 1])
    valid = y != -100
    logits, taught = student(x).detach()[valid], teacher(x).detach()[valid]
    hard = float(nn.functional.cross_entropy(logits, y[valid]))
    soft = sum(naive(a, b, 2.0) for a, b in zip(logits.tolist(), taught.tolist(), strict=True)) / 4
    session = TrainingSession(student, [Distill(temperature=2.0, weight=0.7)], CrossEntropy(), steps=1, settings=CONSTANT,
                  teachers=lambda text: teacher)
    assert float(session.step(((x,), y))) == pytest.approx(0.3 * hard + 0.7 * soft, rel=1e-5)


def test_the_teacher_is_asked_for_by_its_recipe_called_every_step_and_not_changed() -> None:
    asked: list[str] = []
    teacher = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    before = {k: v.clone() for k, v in teacher.state_dict().items()}

    def provide(text: str) -> nn.Module:
        asked.append(text)
        return teacher

    done = fit(nn.Linear(4, 3), [Distill(teacher="train(adamw)"), AdamW(lr=0.1), Bf16()], DATA, CrossEntropy(),
               batch_size=16, teachers=provide)
    assert asked == ["train(adamw)"]
    assert next(c.after for name, c in done.claims if name == "distill") == done.steps == 4
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    alone = fit(nn.Linear(4, 3), [AdamW()], DATA, CrossEntropy(), batch_size=16)
    assert done.flops > alone.flops  # the teacher's forward passes count


def test_the_student_comes_nearer_to_the_teacher() -> None:
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    x = DATA.tensors[0]

    def distance() -> float:
        with torch.no_grad():
            return float(divergence(student(x), teacher(x), 1.0))

    before = distance()
    fit(student, [Distill(weight=1.0), AdamW(lr=0.05)], DATA, CrossEntropy(), settings=Train(epochs=20),
        batch_size=16, teachers=lambda text: teacher)
    assert distance() < 0.1 * before


def test_mistakes_are_told() -> None:
    with pytest.raises(ThriftyError, match="teachers="):
        fit(nn.Linear(4, 3), [Distill()], DATA, CrossEntropy())
    with pytest.raises(ThriftyError, match="same classes"):
        fit(nn.Linear(4, 3), [Distill()], DATA, CrossEntropy(), teachers=lambda text: nn.Linear(4, 5))
