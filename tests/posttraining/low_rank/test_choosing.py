"""Which ranks are chosen, by energy, by the loss and by the clock; and which rows count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.posttraining.low_rank.test_factors import back, correlated, drawn, root_of
from torch import Tensor, nn

from thrifty import LowRank, testing
from thrifty.errors import NoEffect, ThriftyError
from thrifty.numerics.observers import CalibrationError
from thrifty.posttraining.low_rank.calibration import row_information
from thrifty.posttraining.low_rank.factored import Factored
from thrifty.posttraining.low_rank.factors import Matrix, Outputs, Scaled, square_root
from thrifty.recipes.context import Context, Reference


def context(x: Tensor, **more: object) -> Context:
    return Context((x[:1],), lambda: iter([(x,)]), **more)  # type: ignore[arg-type]


def mean_loss(model: nn.Module, batch: tuple[tuple[Tensor, ...], Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(*batch[0]), batch[1])


@pytest.mark.parametrize(("m", "n"), [(9, 14), (14, 9), (8, 8)])
def test_outputs_give_what_inputs_give(m: int, n: int) -> None:
    weight, x = drawn(m, n, seed=m), correlated(300, n, 1)
    inputs, outputs = Matrix(weight, root_of(x)), Outputs(weight, x.T @ x / len(x))
    for rank in inputs.ranks(1):
        torch.testing.assert_close(back(outputs.factors(rank)), back(inputs.factors(rank)), rtol=1e-5, atol=1e-5)
        assert outputs.kept(rank) == pytest.approx(inputs.kept(rank), abs=1e-6)
        assert outputs.parameters(rank) == inputs.parameters(rank)


def test_rows_that_count_more_lose_less() -> None:
    weight, scale = drawn(10, 12, seed=0), torch.linspace(0.1, 3, 10, dtype=torch.float64)
    eye = torch.eye(12, dtype=torch.float64)
    shape = Scaled(Matrix(scale[:, None] * weight, (eye, eye)), scale)
    torch.testing.assert_close(shape.weight, weight)
    left, values, right = np.linalg.svd((scale[:, None] * weight).numpy(), full_matrices=False)
    want = (left[:, :4] * values[:4] @ right[:4]) / scale.numpy()[:, None]
    np.testing.assert_allclose(back(shape.factors((4,))).numpy(), want, atol=1e-9)


def test_information_is_the_mean_of_squared_gradients() -> None:
    torch.manual_seed(0)
    model, layer = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), "0"
    batches = [((torch.randn(4, 5),), torch.randint(3, (4,))) for _ in range(3)]
    told = context(torch.randn(2, 5), labelled=lambda: iter(batches), loss=mean_loss)
    with torch.no_grad():
        (found,) = row_information(model, {layer: model[0]}, told).values()
    want = torch.zeros(7)
    for batch in batches:
        model.zero_grad()
        mean_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        want += model[0].weight.grad.square().sum(1)
    torch.testing.assert_close(found.float(), (want / want.mean()).sqrt())
    with pytest.raises(CalibrationError, match="choose whiten=True"):
        LowRank(whiten="fisher").plan(model, context(torch.randn(2, 5)))


@pytest.mark.parametrize("whiten", ["outputs", "fisher"])
@pytest.mark.parametrize("law", [law for law in testing.LAWS if law is not testing.check_agrees], ids=lambda law: law.__name__)
def test_every_way_keeps_the_laws(whiten: str, law: object) -> None:
    law(LowRank(ratio=0.3, whiten=whiten, ranks="loss"))  # type: ignore[operator]


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval()


def rank_of(plan_layers: dict[str, list[int]], name: str) -> int:
    return plan_layers[name][0] if name in plan_layers else 64


@pytest.mark.parametrize("labels", [True, False])
def test_what_the_model_feels_keeps_its_rank(labels: bool) -> None:
    """The second layer's outputs hardly reach the loss; by energy alone both lose the same."""
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.felt, self.idle, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.felt(x).tanh() + 0.01 * self.idle(x).tanh())  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Beside().eval(), torch.randn(256, 64)
    batch = ((x,), model(x).argmax(-1))
    told = context(x, **({"labelled": lambda: iter([batch]), "loss": mean_loss} if labels else {}))
    energy, loss = (LowRank(ratio=0.4, ranks=by).plan(model, told).values["layers"] for by in ("energy", "loss"))
    assert abs(rank_of(energy, "felt") - rank_of(energy, "idle")) <= 8
    assert rank_of(loss, "felt") >= rank_of(loss, "idle") + 16


def test_seconds_decide_where_they_are_measured() -> None:
    """A clock by which a layer in parts takes (k + 16) / 64 of what it took: that is what counts, not its parameters."""
    model, x = two_layers(), torch.randn(64, 64)

    def clock(module: nn.Module, inputs: tuple[Tensor, ...] | None = None, *, engine: str = "eager",
              reference: Reference | None = None) -> float:
        if inputs is None:
            return 2.2
        return (module[0].out_features + 16) / 64 if isinstance(module, Factored) else 1.0  # type: ignore[operator, union-attr]

    plan = LowRank(ratio=0.3, ranks="latency").plan(model, context(x, time=clock))
    saved = sum(1 - (ranks[0] + 16) / 64 for ranks in plan.values["layers"].values())
    assert 0.3 * 2.2 <= saved <= 0.3 * 2.2 + 0.25 and LowRank(ranks="latency").timed
    with pytest.raises(ThriftyError, match="saves at most 0.000 of this model's time"):
        LowRank(ratio=0.3, ranks="latency").plan(model, context(x, time=lambda module, inputs=None, reference=None: 1.0))
    with pytest.raises(ThriftyError, match="needs timing"):
        LowRank(ratio=0.3, ranks="latency").plan(model, context(x))


def test_later_layers_see_what_earlier_ones_became() -> None:
    model, x = two_layers(), correlated(512, 64, 0).float()
    method = LowRank(ratio=0.6)
    plan = method.plan(model, context(x))
    in_turn = method.build(two_layers(), plan)
    hidden = torch.relu(in_turn[0](x)).double()  # what the second layer now reads
    weight, rank = model[2].weight.detach().double(), tuple(plan.values["layers"]["2"])
    root = square_root(hidden.T @ hidden / len(hidden))
    want = back(Matrix(weight, root).factors(rank))  # type: ignore[arg-type]
    got = in_turn[2][1].weight.double() @ in_turn[2][0].weight.double()
    torch.testing.assert_close(hidden @ got.T, hidden @ want.T, rtol=1e-3, atol=1e-4)


def test_layers_kept_by_name_stay_and_all_are_told() -> None:
    method = LowRank(ratio=0.2, keep="0")
    model = two_layers()
    plan = method.plan(model, context(torch.randn(64, 64)))
    rows = {row["layer"]: row for row in method.list_layers(model, plan)}
    assert rows["0"]["reason"] == "it is kept by name" and rows["2"]["scheme"].startswith("rank ")
    with pytest.raises(NoEffect, match="nothing to factorize"):
        LowRank(keep=".*").plan(model, context(torch.randn(64, 64)))
