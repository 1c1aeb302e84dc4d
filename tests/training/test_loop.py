"""The training loop: what it computes, counts, refuses, and that it is the same every time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from thrifty import AdamW, Bf16, CrossEntropy
from thrifty.errors import ThriftyError, TrainingFailed
from thrifty.recipes.card import Card
from thrifty.recipes.phases import Train
from thrifty.recipes.training_method import Stage, TrainingMethod
from thrifty.training.flops import count_flops
from thrifty.training.loop import Loader, Step, fit
from thrifty.training.schedules import rate
from thrifty.training.session import TrainingSession


def data(n: int = 96, features: int = 6) -> TensorDataset:
    x = torch.randn(n, features, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


class Rows(Dataset[Any]):
    """The same rows one by one, without tensors to look at."""

    def __init__(self, rows: TensorDataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


# -- what it computes -------------------------------------------------------------------------------------------


def test_it_is_the_plain_loop_of_the_textbook() -> None:
    settings = Train(epochs=2, schedule="linear", warmup=0.25, clip=0.5)
    done = fit(net(), [AdamW(lr=0.02, weight_decay=0.0)], data(), CrossEntropy(), settings=settings, batch_size=32, seed=5)

    model = net().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.0, fused=True)
    x, y = data().tensors
    step, total, losses = 0, 6, []
    torch.manual_seed(5)
    for epoch in range(2):
        for chosen in torch.randperm(96, generator=torch.Generator().manual_seed(5 + epoch)).split(32):
            warm = 0.25 * total
            rate = (step + 1) / (warm + 1) if step < warm else 1 - (step - warm) / (total - warm)
            optimizer.param_groups[0]["lr"] = 0.02 * rate
            loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
    assert [number for number, _ in done.history] == [1, 2, 3, 4, 5, 6]
    assert [loss for _, loss in done.history] == pytest.approx(losses, rel=1e-4)


def test_the_same_seed_gives_the_same_weights_bit_by_bit() -> None:
    def weights(seed: int) -> list[Tensor]:
        model = net()
        torch.rand(random.randrange(1, 9))  # what was drawn before does not count
        done = fit(model, [AdamW(lr=0.01), Bf16()], data(), CrossEntropy(), seed=seed, batch_size=16)
        return [p.detach() for p in done.model.parameters()]

    first, second, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    model = net()
    torch.manual_seed(3)
    fit(model, [], data(), CrossEntropy())
    assert torch.equal(torch.rand(4), expected)


def test_a_loop_of_the_users_own_drives_the_methods_too() -> None:
    session = TrainingSession(net(), [Bf16(), AdamW(lr=0.03)], CrossEntropy(), steps=60)
    first = last = 0.0
    for i, batch in zip(range(60), Loader(data(), 32, 0), strict=False):
        last = float(session.step(batch))
        first = first if i else last
    model = session.finish()
    assert last < 0.6 * first
    assert not model.training
    assert dict(session.claims())["bf16"].after == 1.0


def test_it_ends_in_eval_mode_and_learns() -> None:
    done = fit(net(), [AdamW(lr=0.03)], data(), CrossEntropy(), settings=Train(epochs=20), batch_size=32)
    assert not done.model.training
    with torch.no_grad():
        x, y = data().tensors
        assert float((done.model(x).argmax(-1) == y).float().mean()) > 0.9


# -- the schedule -----------------------------------------------------------------------------------------------


@given(st.sampled_from(["cosine", "linear", "constant"]), st.floats(0, 0.9), st.integers(1, 200))
def test_the_rate_rises_then_falls_and_stays_within_bounds(schedule: str, warmup: float, steps: int) -> None:
    rates = [rate(schedule, step, steps, warmup) for step in range(steps)]
    assert all(0 < each <= 1 for each in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if schedule != "constant":
        assert rate(schedule, steps, steps, warmup) == pytest.approx(0, abs=1e-9)


def test_wsd_is_held_and_falls_over_its_last_fifth() -> None:
    rates = [rate("wsd", step, 100, 0.0) for step in range(101)]
    assert rates[:81] == pytest.approx([1.0] * 81)
    assert rates[80:] == pytest.approx([1 - i / 20 for i in range(21)])


# -- data -------------------------------------------------------------------------------------------------------


def test_an_epoch_is_every_example_once_in_another_order_each_time() -> None:
    loader = Loader(TensorDataset(torch.arange(24), torch.arange(24)), 8, seed=1)
    seen = [batch[1] for batch, _ in zip(loader, range(6), strict=False)]
    for epoch in (seen[:3], seen[3:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(24))
    assert not torch.equal(torch.cat(seen[:3]), torch.cat(seen[3:]))


def test_rows_one_by_one_give_the_batches_of_the_whole() -> None:
    for (a, b), (c, d), _ in zip(Loader(data(), 10, 4), Loader(Rows(data()), 10, 4), range(12), strict=False):
        assert torch.equal(a[0], c[0])
        assert torch.equal(b, d)


def test_a_collate_of_ones_own_is_used() -> None:
    def collate(rows: list[Any]) -> Any:
        return torch.stack([x for x, _ in rows]) * 0, torch.tensor([int(y) for _, y in rows])

    (inputs, _), = [batch for batch, _ in zip(Loader(data(), 4, 0, collate), range(1), strict=False)]
    assert not inputs[0].any()


@pytest.mark.parametrize(("settings", "steps"), [
    (Train(epochs=1), 3), (Train(epochs=2.5), 8), (Train(epochs=0.01), 1), (Train(steps=7), 7), (Train(), 3),
    (Train(epochs=1, batch_size=16), 6), (Train(epochs=1, batch_size=1000), 1),
])
def test_epochs_may_be_fractions(settings: Train, steps: int) -> None:
    assert fit(net(), [], data(), CrossEntropy(), settings=settings, batch_size=32).steps == steps


# -- hooks ------------------------------------------------------------------------------------------------------

CALLS: list[str] = []


@dataclass(frozen=True)
class Outer(TrainingMethod):
    """Notes when each of its hooks is called."""

    name: ClassVar[str] = "outer"
    card: ClassVar[Card] = Card("peft", "training time", "none", "none")

    def prepare(self, session: TrainingSession) -> None:
        session.memory(self)["updates"] = 0
        CALLS.append(f"{self.name} prepare")

    def forward(self, session: TrainingSession, batch: Any, proceed: Callable[[Any], Any]) -> Any:
        CALLS.append(f"{self.name} forward")
        return proceed(batch)

    def loss(self, session: TrainingSession, outputs: Any, batch: Any, total: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        CALLS.append(f"{self.name} loss")
        return total * 2, weight

    def backward(self, session: TrainingSession, loss: Tensor, proceed: Callable[[Tensor], None]) -> None:
        CALLS.append(f"{self.name} backward")
        proceed(loss)

    def update(self, session: TrainingSession, proceed: Callable[[], None]) -> None:
        CALLS.append(f"{self.name} update")
        session.memory(self)["updates"] += 1
        if session.memory(self)["updates"] != 2:  # the second step is skipped
            proceed()

    def finish(self, session: TrainingSession, model: nn.Module) -> nn.Module:
        CALLS.append(f"{self.name} finish")
        return nn.Sequential(model)


@dataclass(frozen=True)
class Inner(Outer):
    name: ClassVar[str] = "inner"
    stage: ClassVar[Stage] = "numerics"


@pytest.mark.parametrize("methods", [[Outer(), Inner()], [Inner(), Outer()]])
def test_hooks_run_in_the_order_of_layers_whatever_the_texts(methods: list[TrainingMethod]) -> None:
    CALLS.clear()
    session = TrainingSession(nn.Linear(6, 3), methods, CrossEntropy(), steps=3)
    loader = iter(Loader(data(), 8, 0))
    session.step(next(loader))
    session.finish()
    hooks = ["prepare", "forward", "loss", "backward", "update"]
    ends = ["inner finish", "outer finish"]  # what was applied last is taken off first
    assert [*(f"{who} {hook}" for hook in hooks for who in ("outer", "inner")), *ends] == CALLS


def test_a_method_changes_the_loss_and_may_skip_a_step() -> None:
    model = nn.Linear(6, 3)
    session = TrainingSession(model, [Outer()], CrossEntropy(), steps=3)
    batch = next(iter(Loader(data(), 8, 0)))
    with torch.no_grad():
        plain = float(nn.functional.cross_entropy(model(*batch[0]), batch[1]))
    assert float(session.step(batch)) == pytest.approx(2 * plain)
    before = model.weight.detach().clone()
    session.step(batch)
    assert torch.equal(model.weight, before)
    session.step(batch)
    assert not torch.equal(model.weight, before)


def test_two_optimizers_or_nothing_to_train_are_refused() -> None:
    with pytest.raises(ThriftyError, match="one optimizer but its methods made 2"):
        TrainingSession(net(), [AdamW(), AdamW(lr=1.0)], CrossEntropy(), steps=1)
    with pytest.raises(ThriftyError, match="nothing to train"):
        TrainingSession(net().requires_grad_(False), [], CrossEntropy(), steps=1)


# -- what it counts ---------------------------------------------------------------------------------------------


def test_flops_are_those_of_the_products_forward_and_backward() -> None:
    model = nn.Sequential(nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 3, bias=False))
    done = fit(model, [], data(96), CrossEntropy(), settings=Train(epochs=2), batch_size=32)
    forward = 2 * 32 * (6 * 16 + 16 * 3)
    backward = 2 * 32 * (6 * 16) + 2 * 2 * 32 * (16 * 3)  # the first layer's input needs no gradient
    assert done.flops == 6 * (forward + backward)


def test_operators_without_a_formula_are_named() -> None:
    _, count = count_flops(lambda: torch.linalg.det(torch.randn(3, 3)) + torch.cumsum(torch.ones(3), 0))
    assert count.flops == 0
    assert {"aten._linalg_det", "aten.cumsum", "aten.add"} <= set(count.uncounted)
    _, moved = count_flops(lambda: torch.ones(3, 2).t().contiguous().clone().view(-1))
    assert not moved.uncounted


def test_evaluations_are_spaced_evenly_and_their_time_is_not_trainings() -> None:
    import time

    def slow(model: nn.Module) -> float:
        model.eval()
        time.sleep(0.2)
        return 0.5

    done = fit(net(), [], data(), CrossEntropy(), settings=Train(steps=10, evaluations=4), batch_size=32, evaluate=slow)
    assert [e.step for e in done.evaluations] == [2, 5, 8, 10]
    assert done.evaluation_seconds >= 0.8
    assert done.seconds < 0.8
    assert [e.flops for e in done.evaluations] == sorted(e.flops for e in done.evaluations)
    assert done.evaluations[-1].flops == done.flops
    assert done.evaluations[-1].seconds <= done.seconds


def test_an_evaluation_changes_nothing() -> None:
    def end(evaluate: Any) -> Tensor:
        torch.manual_seed(0)
        done = fit(net(), [], data(), CrossEntropy(), settings=Train(steps=6, evaluations=3), evaluate=evaluate)
        return torch.cat([p.detach().flatten() for p in done.model.parameters()])

    assert torch.equal(end(None), end(lambda model: float(model.eval()(torch.ones(1, 6)).detach().sum())))


def test_progress_ends_at_the_last_step() -> None:
    told: list[Step] = []
    fit(net(), [], data(), CrossEntropy(), settings=Train(steps=5), progress=told.append)
    assert told[-1].step == told[-1].total == 5
    assert told[-1].seconds_left == 0
    assert told[-1].examples_per_second > 0


# -- what it refuses --------------------------------------------------------------------------------------------


class Explodes(nn.Module):
    """Gives NaN from its third forward pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(6, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) * (math.nan if self.calls >= 3 else 1.0)  # type: ignore[no-any-return]


def test_a_loss_that_is_not_finite_stops_names_the_step_and_keeps_what_was_spent() -> None:
    with pytest.raises(TrainingFailed, match="the loss is nan at step 3 of 6; lower the learning rate") as caught:
        fit(Explodes(), [], data(), CrossEntropy(), settings=Train(epochs=2), batch_size=32)
    whole = fit(nn.Sequential(nn.Linear(6, 3)), [], data(), CrossEntropy(), settings=Train(epochs=2), batch_size=32)
    assert caught.value.seconds > 0
    assert caught.value.flops >= whole.flops / 3


@pytest.mark.gpu
@pytest.mark.parametrize("steps", [6, 3])  # looked at in the next step, or at the end
def test_on_a_gpu_the_same_step_is_named(steps: int) -> None:
    with pytest.raises(TrainingFailed, match=f"the loss is nan at step 3 of {steps}; lower the learning rate") as caught:
        fit(Explodes(), [], data(), CrossEntropy(), settings=Train(steps=steps), batch_size=32, device="cuda")
    assert caught.value.seconds > 0


@pytest.mark.gpu
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_gpu_tells_the_losses_of_a_cpu(accumulate: int) -> None:
    def history(device: str) -> list[float]:
        done = fit(nn.Linear(6, 3), [], data(), CrossEntropy(), batch_size=32, device=device,
                   settings=Train(steps=7, accumulate=accumulate))
        assert [step for step, _ in done.history] == [1, 2, 3, 4, 5, 6, 7]
        return [loss for _, loss in done.history]

    torch.manual_seed(0)
    first = history("cpu")
    torch.manual_seed(0)
    assert history("cuda") == pytest.approx(first, rel=1e-5)


def test_inputs_and_weights_that_are_not_finite_are_told_apart() -> None:
    dirty = data()
    dirty.tensors[0][:, 2] = math.inf
    with pytest.raises(TrainingFailed, match="inputs hold NaN or infinity"):
        fit(net(), [], dirty, CrossEntropy())
    model = net()
    with torch.no_grad():
        model[3].weight[0, 0] = math.nan  # type: ignore[index]
    with pytest.raises(TrainingFailed, match=r"weights of 3\.weight are no longer finite"):
        fit(model, [], data(), CrossEntropy())


def test_a_batch_without_a_valid_target_is_told() -> None:
    nothing = TensorDataset(torch.randn(8, 6), torch.full((8,), -100))
    with pytest.raises(TrainingFailed, match="no valid"):
        fit(net(), [], nothing, CrossEntropy())


@pytest.mark.parametrize("methods", [(), (Bf16(),)], ids=["fp32", "bf16"])
def test_steps_are_compiled_though_the_first_is_looked_at(methods) -> None:
    """FLOPs are counted, and products in 16 bits looked for, under a dispatch mode, where torch.compile gives up for good."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    fit(net(), [AdamW(), *methods], data(), CrossEntropy(), settings=Train(steps=3, compiled=True), batch_size=32)
    assert counters["stats"]["unique_graphs"] >= 1
    torch.compiler.reset()
