"""Low-rank factorization of models: the plan, the thinner layers, what comes after, and what it refuses."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from thrifty import LowRank, Prune, Quantize, testing
from thrifty.compilers.capture import capture
from thrifty.errors import NoEffect, ThriftyError
from thrifty.numerics.modules import QuantConv, QuantLinear
from thrifty.numerics.observers import CalibrationError
from thrifty.posttraining.elements import parameters, weight_elements
from thrifty.posttraining.low_rank.factored import Factored, factored, parts, product
from thrifty.recipes.context import Context
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.transform import Plan
from thrifty.workloads.embedded.digits import DigitsNet


def net(hidden: int = 64, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                         nn.Linear(hidden, 4)).eval()


def images(n: int = 16, seed: int = 0) -> Tensor:
    return testing.stripes(n, seed).tensors[0]


def correlated(n: int, width: int, seed: int) -> Tensor:
    torch.manual_seed(7)
    turn = torch.linalg.qr(torch.randn(width, width))[0]
    torch.manual_seed(seed)
    return torch.randn(n, width) / torch.arange(1, width + 1) @ turn


def error(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


# -- what is removed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "example", "ratio", "within"), [
    (DigitsNet(), torch.rand(4, 1, 28, 28), 0.2, 0.03),  # the first step of a layer is up to its break-even rank
    (DigitsNet(), torch.rand(4, 1, 28, 28), 0.5, 0.03),
    (testing.SmallNet(), images(), 0.35, 0.03),
    (net(), correlated(64, 16, 0), 0.3, 0.1),  # a step of its one wide layer is a fifth of the model
])
@pytest.mark.parametrize("whiten", [True, False])
def test_the_share_removed_is_at_least_the_ratio_and_near_it(model: nn.Module, example: Tensor, ratio: float,
                                                             within: float, whiten: bool) -> None:
    thin = LowRank(ratio=ratio, whiten=whiten)(model, [example])
    assert ratio <= 1 - parameters(thin) / parameters(model) <= ratio + within
    assert thin(example).shape == model(example).shape
    for module in thin.modules():
        if isinstance(module, Factored):
            assert all(type(part) in (nn.Linear, nn.Conv2d) for part in module)
            assert all(len(part.weight) % 8 == 0 for part in module[:-1])


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 70), st.integers(1, 16), st.floats(0.01, 0.95), st.booleans())
def test_the_plan_survives_json_and_builds_on_any_weights(hidden: int, round_to: int, ratio: float,
                                                          whiten: bool) -> None:
    model, x = net(hidden), correlated(32, 16, 0)
    before = copy.deepcopy(model.state_dict())
    method = LowRank(ratio=ratio, whiten=whiten, round_to=round_to)
    try:
        plan = method.plan(model, Context.of([x]))
    except ThriftyError:  # nothing that pays, or not so much
        return
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    drawn = torch.get_rng_state()
    first = method.build(copy.deepcopy(model), plan)
    assert torch.equal(torch.get_rng_state(), drawn)
    again = Plan(json.loads(json.dumps(plan.values)), plan.tensors)
    assert torch.equal(first(x), method.build(copy.deepcopy(model), again)(x))
    assert parameters(first) <= (1 - ratio) * parameters(model) + 1
    blank = method.build(net(hidden, seed=1), plan)  # a fresh model, whose weights are loaded last
    blank.load_state_dict(first.state_dict())
    assert torch.equal(blank(x), first(x))


def test_a_weight_that_is_of_low_rank_is_found_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1, padding_mode="circular"), nn.ReLU(),
                          nn.Conv2d(32, 64, 1, stride=2), nn.Flatten(), nn.Linear(64 * 9, 48)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.einsum("ob,bahw,ai->oihw", torch.randn(32, 8), torch.randn(8, 8, 3, 3),
                                           torch.randn(8, 16)))
        model[2].weight.copy_((torch.randn(64, 8) @ torch.randn(8, 32))[..., None, None])
        model[4].weight.copy_(torch.randn(48, 8) @ torch.randn(8, 64 * 9))
    calibration, fresh = torch.randn(32, 16, 12, 12), torch.randn(5, 16, 12, 12)
    for whiten in (True, False):
        thin = LowRank(ratio=0.8, whiten=whiten)(model, [calibration])
        assert [len(thin[i]) for i in (0, 2, 4)] == [3, 2, 2]
        assert error(thin(fresh), model(fresh)) < 1e-4


def test_whitening_keeps_more_of_the_outputs_on_held_out_inputs() -> None:
    model, fresh = net(), correlated(200, 16, 2)
    data = [correlated(256, 16, 1)]
    white, plain = (LowRank(ratio=0.5, whiten=w)(model, data) for w in (True, False))
    assert error(white(fresh), model(fresh)) < 0.8 * error(plain(fresh), model(fresh))


def test_of_whitened_and_plain_kernels_the_better_is_kept() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1)).eval(), torch.randn(4, 32, 10, 10)
    x *= torch.logspace(0, -2, 32)[:, None, None]
    white, plain = (LowRank(ratio=0.7, whiten=w)(model, [x]) for w in (True, False))
    assert error(white(x), model(x)) <= error(plain(x), model(x)) + 1e-6


def test_a_strided_kernel_whose_first_part_reads_every_pixel_stays() -> None:
    """Its 1x1 at full resolution would cost more than the kernel at an eighth of it."""
    model, x = nn.Sequential(nn.Conv2d(16, 16, (1, 2), stride=8, bias=False)).eval(), torch.randn(4, 16, 64, 64)
    with pytest.raises(NoEffect, match="nothing to factorize"):
        LowRank(ratio=0.1)(model, [x])
    model[0].stride = (1, 1)
    assert isinstance(LowRank(ratio=0.1)(model, [x])[0], Factored)


# -- what stays -------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """An output layer that shares the table, a layer in two places, a depthwise and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(60, 64), nn.Linear(64, 60, bias=False)
        self.head.weight = self.table.weight
        self.twice = nn.ModuleList([nn.Linear(64, 64)] * 2)
        self.depthwise, self.grouped = nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 64, 3, groups=2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for layer in self.twice:
            x = layer(x).relu()
        image = self.grouped(self.depthwise(x.mT.reshape(len(x), 64, 6, 6)))
        return self.head(x) + image.mean()  # type: ignore[no-any-return]


def test_tied_and_grouped_layers_stay_and_a_shared_one_stays_one() -> None:
    torch.manual_seed(0)
    model, ids = Tied().eval(), torch.randint(60, (8, 36))
    thin = LowRank(ratio=0.02)(model, [ids])
    assert thin.head.weight is thin.table.weight
    assert isinstance(thin.twice[0], Factored) and thin.twice[0] is thin.twice[1]
    assert type(thin.depthwise) is type(thin.grouped) is nn.Conv2d
    assert thin(ids).shape == model(ids).shape


class Subclass(nn.Linear):
    """Does more than multiply."""

    def forward(self, x):
        return super().forward(x) + x


@pytest.mark.parametrize("layer", [
    Subclass(64, 64), nn.Linear(64, 12), nn.Linear(8, 64),
])
def test_layers_that_cannot_or_need_not_be_factored_stay(layer: nn.Module) -> None:
    width: Any = layer.in_features
    model = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, width), layer).eval()
    x = torch.randn(64, width)
    if width < 64:
        with pytest.raises(NoEffect, match="nothing to factorize"):
            LowRank(ratio=0.05)(model, [x])
        return
    assert type(LowRank(ratio=0.05, round_to=16)(model, [x])[3]) is type(layer)


def test_a_layer_with_hooks_and_one_that_is_never_reached_stay() -> None:
    model = net()
    model[2].register_forward_hook(lambda module, inputs, output: output)
    model.add_module("idle", nn.Identity())
    model.idle.inner = nn.Linear(64, 64)
    thin = LowRank(ratio=0.02)(model, [torch.randn(64, 16)])
    assert type(thin[2]) is nn.Linear and type(thin.idle.inner) is nn.Linear
    assert isinstance(thin[0], Factored)


def test_a_parametrized_weight_is_baked_in_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 8)).eval()
    plan = LowRank(ratio=0.3).plan(model, Context.of([x := torch.randn(64, 64)]))
    thin = LowRank(ratio=0.3).build(copy.deepcopy(model), plan)
    assert isinstance(thin[0], Factored) and nn.utils.parametrize.is_parametrized(model[0])
    weight = model[0].weight.detach()
    assert float((product(thin[0]) - weight).norm() / weight.norm()) < 1 and thin(x).shape == (64, 8)


def test_layers_whose_weight_is_read_by_others_stay() -> None:
    """The attention of torch's own transformer layer takes the weight of its output projection by itself."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    model = nn.Sequential(layer, nn.Linear(32, 32)).eval()
    x = torch.randn(4, 6, 32)
    plan = LowRank(ratio=0.2).plan(model, Context.of([x]))
    thin = LowRank(ratio=0.2).build(copy.deepcopy(model), plan)
    assert isinstance(thin[0].linear1, Factored) and "0.self_attn.out_proj" in plan.values["left"]
    whole = copy.deepcopy(model)
    with torch.no_grad():
        for place in ("linear1", "linear2"):  # the same product in one piece, by the fused path
            if isinstance(part := getattr(thin[0], place), Factored):
                getattr(whole[0], place).weight.copy_(product(part))
        torch.testing.assert_close(thin[0](x), whole[0](x), rtol=1e-4, atol=1e-4)


def test_frozen_weights_stay_frozen_and_dtypes_stay() -> None:
    model = net().to(torch.bfloat16)
    model[2].weight.requires_grad_(False)
    thin = LowRank(ratio=0.5)(model, [torch.randn(64, 16, dtype=torch.bfloat16)])
    assert {p.dtype for p in thin.parameters()} == {torch.bfloat16}
    assert not any(part.weight.requires_grad for part in parts(thin[2])) and thin[2][-1].bias.requires_grad
    assert thin[0].weight.requires_grad


# -- calibration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [
    correlated(3, 16, 0), torch.cat([correlated(64, 8, 0), torch.zeros(64, 8)], 1), torch.ones(32, 16),
], ids=["fewer rows than columns", "dead columns", "constant"])
def test_calibration_that_says_little_still_serves_what_it_says(data: Tensor) -> None:
    model = net()
    with torch.no_grad():
        white, plain, exact = (m(data) for m in (*(LowRank(ratio=0.5, whiten=w)(model, [data]) for w in (True, False)),
                                                 model))
    assert white.isfinite().all()
    assert error(white, exact) < 0.5 * error(plain, exact)


@pytest.mark.parametrize(("spoil", "says"), [
    (lambda x: x * float("nan"), "layer '0' saw NaN"), (lambda x: x / 0, "layer '0' saw NaN or infinity"),
    (lambda x: x * 0, "layer '0' saw the constant 0"),
])
def test_calibration_data_that_say_nothing_are_refused(spoil: Any, says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        LowRank()(net(), [spoil(torch.rand(8, 16) + 1)])


def test_weights_that_are_not_finite_and_no_data_are_refused() -> None:
    model = net()
    empty = Context(example=(torch.rand(1, 16),), calibration=lambda: iter(()))
    with pytest.raises(CalibrationError, match="no calibration data"):
        LowRank().plan(model, empty)
    assert LowRank(whiten=False).plan(model, empty).values["layers"]  # the weights alone decide
    with torch.no_grad():
        model[2].weight[0, 0] = torch.inf
    with pytest.raises(CalibrationError, match="layer '2' has NaN or infinity in its weight"):
        LowRank()(model, [torch.rand(8, 16)])


@pytest.mark.parametrize(("model", "ratio", "error", "says"), [
    (nn.Linear(8, 4), 0.5, NoEffect, "nothing to factorize"),
    (net(8), 0.5, NoEffect, "nothing to factorize"),
    (net(64), 0.9, ThriftyError, r"at most 0\.\d+ of this model's.*choose a ratio up to 0\.\d+"),
])
def test_what_cannot_be_factored_so_says_why(model: nn.Module, ratio: float, error: type[Exception],
                                             says: str) -> None:
    width = 8 if isinstance(model, nn.Linear) else 16
    with pytest.raises(error, match=says):
        LowRank(ratio=ratio)(model, [torch.rand(8, width)])


def test_the_ratio_that_the_limit_names_can_be_reached() -> None:
    with pytest.raises(ThriftyError) as caught:
        LowRank(ratio=0.99)(net(), [torch.rand(8, 16)])
    named = float(str(caught.value).split("a ratio up to ")[1].split(",")[0])
    LowRank(ratio=named)(net(), [torch.rand(8, 16)])


def test_a_plan_of_another_model_is_refused() -> None:
    plan = LowRank(ratio=0.5).plan(net(), Context.of([torch.rand(8, 16)]))
    for other in (net(16), nn.Linear(8, 4), nn.Sequential(*[nn.ReLU()] * 5)):
        with pytest.raises(ThriftyError, match="another model"):
            LowRank(ratio=0.5).build(other, plan)


# -- what comes before and after --------------------------------------------------------------------------------


def test_products_of_parts_are_the_weight() -> None:
    torch.manual_seed(0)
    for layer, shapes in ((nn.Linear(6, 5), [(2, 6), (5, 2)]), (nn.Conv2d(6, 5, 1), [(2, 6, 1, 1), (5, 2, 1, 1)]),
                          (nn.Conv2d(6, 5, (3, 2), padding=1, dilation=2),
                           [(2, 6, 1, 1), (3, 2, 3, 2), (5, 3, 1, 1)])):
        thin = factored(layer, [torch.randn(shape) for shape in shapes])
        x = torch.randn(3, 6) if isinstance(layer, nn.Linear) else torch.randn(3, 6, 8, 8)
        dense = copy.deepcopy(layer)
        dense.weight = nn.Parameter(product(thin).float())
        assert torch.allclose(thin(x), dense(x), atol=1e-5)


def test_it_can_be_repeated_and_trained_after() -> None:
    model, data = testing.trained(), [images(64)]
    once = LowRank(ratio=0.3)(model, data)
    twice = LowRank(ratio=0.3)(once, data)
    assert parameters(twice) == pytest.approx(0.49 * parameters(model), rel=0.06)
    assert not any(isinstance(part, Factored) for m in twice.modules() if isinstance(m, Factored) for part in m)
    twice.train()(images(4)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in twice.parameters())


def test_what_follows_factorization() -> None:
    """Its layers are plain ones, so that pruning and quantization see them, ranks included."""
    assert {"factorized", "pruned"} <= carry(Recipe.parse("low_rank(ratio=0.2) | prune(ratio=0.3)"), testing.TRAINED)
    model, data = testing.trained(), [images(64)]
    thin = LowRank(ratio=0.5)(model, data)
    (claim,) = LowRank(ratio=0.5).claims(model, thin)
    pruned = Prune(ratio=0.3)(thin, data)
    assert parameters(pruned) == pytest.approx(0.7 * parameters(thin), rel=0.1)
    integer = Quantize("w8a8")(thin, data)
    for after in (pruned, integer):
        assert claim.probe is not None and claim.holds(claim.probe(after))
    assert weight_elements(integer) == pytest.approx(weight_elements(thin), rel=0.02)
    assert error(integer(data[0]), thin(data[0])) < 0.1
    convolutions = [m for m in integer.modules() if isinstance(m, QuantConv)]
    assert len(convolutions) == sum(isinstance(m, nn.Conv2d) for m in thin.modules())
    assert not any(m.rounds for m in convolutions)  # every one reads the bytes that the one before it left
    assert sum(isinstance(m, QuantLinear) for m in integer.modules()) == sum(
        isinstance(m, nn.Linear) for m in thin.modules())
    program = capture(thin, (images(1),), {0: {0: (1, 8)}})
    assert torch.allclose(program.module()(data[0][:5]), thin(data[0][:5]), atol=1e-5)


def test_bert_is_factored() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
                                     vocab_size=64, max_position_embeddings=32)
    model = transformers.BertModel(config).eval()
    thin = LowRank(ratio=0.3)(model, [torch.randint(64, (8, 16))])
    assert parameters(thin) <= 0.7 * parameters(model)
    assert any(isinstance(layer.intermediate.dense, Factored) for layer in thin.encoder.layer)
    program = torch.export.export(thin, (torch.randint(64, (1, 16)),), strict=False)
    assert program is not None
