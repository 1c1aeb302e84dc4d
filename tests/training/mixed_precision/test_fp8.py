"""Training in 8 bits: which layers, that it learns, that nothing of it is left, and who is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.data import TensorDataset

from thrifty import AdamW, CrossEntropy, Train
from thrifty.errors import NoEffect, ThriftyError
from thrifty.recipes.method import require_device
from thrifty.training import session as module
from thrifty.training.loop import fit
from thrifty.training.mixed_precision import Bf16, Fp8, fp8
from thrifty.training.mixed_precision.fp8 import choose, install, remove, shapes_of
from thrifty.training.session import TrainingSession


class Net(nn.Module):
    """Linear layers that 8 bits can take and one that they cannot; dropout and a batch norm, which a look must not touch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 32))
        self.head, self.idle = nn.Linear(32, 2), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x).relu())  # type: ignore[no-any-return]


def data(n: int = 128) -> TensorDataset:
    x = torch.randn(n, 16, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long())


@pytest.fixture
def everywhere(monkeypatch):
    """Processors emulate 8 bits, slowly: enough to see what the method does where every shape gains."""
    monkeypatch.setattr(module, "require_device", lambda method, device: None)
    monkeypatch.setattr(fp8, "_fastest", lambda shape, device, compiled: "all")


def test_the_shapes_of_what_is_called_and_nothing_else() -> None:
    net = Net()
    before, mode = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    state = torch.random.get_rng_state()
    shapes = shapes_of(net, lambda: net(torch.randn(48, 16, generator=torch.Generator())))
    assert shapes == {"inner.0": (48, 16, 64), "inner.4": (48, 64, 32)}
    assert torch.equal(state, torch.random.get_rng_state()) and mode == [m.training for m in net.modules()]
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_a_layer_that_is_called_twice_counts_with_its_larger_rows() -> None:
    layer = nn.Linear(16, 16)
    net = nn.Sequential(layer)
    assert shapes_of(net, lambda: (net(torch.ones(64, 16)), net(torch.ones(2, 8, 16)))) == {"0": (64, 16, 16)}


def test_no_shape_is_slower(monkeypatch) -> None:
    """Of three ways the fastest is taken, and bf16 where the others gain less than noise."""
    order = [None, "all", "but_weight"]

    def chosen(bf16: float, everything: float, but_weight: float) -> dict[str, str]:
        times, calls = dict(zip(order, (bf16, everything, but_weight), strict=True)), iter(range(10_000))
        real = fp8._call
        monkeypatch.setattr(fp8, "_call", lambda *args: (lambda name: lambda: name)(order[next(calls)]))
        monkeypatch.setattr(fp8, "_timed", lambda call, device, count: times[call()])
        found = choose({"a": (16, 16, 16), "b": (16, 16, 16)}, "cpu", False)
        monkeypatch.setattr(fp8, "_call", real)
        return found

    assert chosen(1.0, 0.7, 0.8) == {"a": "all", "b": "all"}
    assert chosen(1.0, 0.9, 0.8) == {"a": "but_weight", "b": "but_weight"}
    assert chosen(1.0, 0.99, 1.2) == {} == chosen(1.0, 1.5, 1.5)


@pytest.mark.slow
def test_layers_are_really_timed_forward_and_backward() -> None:
    """Emulated on a processor, 8 bits cost more than they save: nothing is chosen."""
    assert choose({"a": (64, 64, 64)}, "cpu", False) == {}


def test_it_learns_and_says_its_share(everywhere) -> None:
    torch.manual_seed(1)
    ends = [fit(Net(), [method, AdamW(lr=0.03)], data(), CrossEntropy(), settings=Train(epochs=6), batch_size=32)
            for method in (Bf16(), Fp8())]
    assert ends[1].history != ends[0].history
    assert ends[1].history[-1][1] == pytest.approx(ends[0].history[-1][1], abs=0.1)
    [(name, claim)] = ends[1].claims
    inner, head = 16 * 64 + 64 * 32, 32 * 2
    assert (name, claim.after) == ("fp8", pytest.approx(inner / (inner + head)))
    assert {p.dtype for p in ends[1].model.parameters()} == {torch.float32}


def test_nothing_of_it_stays_in_the_model(everywhere) -> None:
    done = fit(Net(), [Fp8()], data(), CrossEntropy(), batch_size=32)
    assert not any("forward" in vars(m) for m in done.model.modules())


def test_outside_of_training_layers_are_as_they_were(everywhere) -> None:
    session = TrainingSession(Net(), [Fp8()], CrossEntropy(), steps=2)
    x, y = torch.randn(32, 16), torch.randint(0, 2, (32,))
    session.step(((x,), y))
    scored, plain = session.evaluated().eval(), Net().eval()
    plain.load_state_dict(scored.state_dict())
    assert torch.equal(scored(x), plain(x))
    copied = copy.deepcopy(session.model)
    assert vars(copied.inner[0])["forward"].args[0] is copied.inner[0]


def test_shapes_are_timed_where_nobody_counts_operators(everywhere, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(fp8, "_fastest", lambda *shape: seen.append(_get_current_dispatch_mode()) or "all")
    [(_, claim)] = fit(Net(), [Fp8()], data(), CrossEntropy(), batch_size=32).claims  # the first step's FLOPs are counted
    assert seen == [None, None] and claim.after > 0.9


def test_where_nothing_gains_it_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(module, "require_device", lambda method, device: None)
    monkeypatch.setattr(fp8, "_fastest", lambda shape, device, compiled: None)
    [(_, claim)] = fit(Net(), [Fp8()], data(), CrossEntropy(), batch_size=32).claims
    with pytest.raises(NoEffect, match="fp8 changed nothing"):
        claim.checked("fp8")


def test_a_rehearsal_looks_at_the_size_of_the_training(everywhere, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(fp8, "choose", lambda shapes, device, compiled: seen.append(shapes) or {})
    session = TrainingSession(Net(), [Fp8()], CrossEntropy(), steps=1, settings=Train(batch_size=256, accumulate=2))
    session.step(((torch.randn(8, 16),), torch.randint(0, 2, (8,))))
    assert seen == [{"inner.0": (128, 16, 64), "inner.4": (128, 64, 32)}]


def test_a_resumed_training_keeps_its_choice(everywhere, monkeypatch) -> None:
    def session() -> TrainingSession:
        return TrainingSession(Net(), [Fp8(), AdamW(lr=0.01)], CrossEntropy(), steps=4)

    batches = [((torch.randn(32, 16),), torch.randint(0, 2, (32,))) for _ in range(4)]
    whole, first = session(), session()
    for batch in batches[:2]:
        torch.manual_seed(5)
        whole.step(batch)
        torch.manual_seed(5)
        first.step(batch)
    second = session()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    monkeypatch.setattr(fp8, "_fastest", lambda shape, device, compiled: None)
    for batch in batches[2:]:
        torch.manual_seed(5)
        whole.step(batch)
        torch.manual_seed(5)
        second.step(batch)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True))


def test_layers_that_something_else_has_changed_are_left_alone() -> None:
    net = Net()
    net.inner[0].forward = net.inner[0].forward
    assert list(shapes_of(net, lambda: net(torch.ones(16, 16)))) == ["inner.4"]
    install(net, {"inner.4": "all"})
    remove(net)
    assert [name for name, m in net.named_modules() if "forward" in vars(m)] == ["inner.0"]


def test_processors_and_old_gpus_are_refused_before_anything_runs(monkeypatch) -> None:
    with pytest.raises(ThriftyError, match=r"fp8 runs on cuda but this is cpu; .* or --training-device cuda"):
        TrainingSession(Net(), [Fp8()], CrossEntropy(), steps=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(ThriftyError, match=r"fp8 needs a GPU of compute capability 8.9 or more, but NVIDIA A100 has 8.0: use"):
        require_device(Fp8(), "cuda")
    require_device(Bf16(), "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    require_device(Fp8(), "cuda")


@pytest.mark.gpu
def test_large_layers_gain_on_a_gpu_and_train() -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(4096, 4096), nn.ReLU()) for _ in range(3)]
    net = nn.Sequential(*blocks, nn.Linear(4096, 16))
    x = torch.randn(32768, 4096, generator=torch.Generator().manual_seed(0))
    done = fit(net, [Fp8(), AdamW(lr=1e-4)], TensorDataset(x, (x[:, :4] > 0).long() @ torch.tensor([1, 2, 4, 8])),
               CrossEntropy(), settings=Train(steps=10, compiled=True), batch_size=32768, device="cuda")
    assert done.claims[0][1].after > 0.9
    assert done.history[-1][1] < done.history[0][1]
