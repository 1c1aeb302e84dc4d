"""Quantization-aware training: what leaves it, what it learns, what it refuses."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.training.test_resume import same
from thrifty import AdamW, Bf16, CrossEntropy, Distill, Ema, Qat, Quantize, Train, testing
from thrifty.errors import NoEffect, RecipeError, ThriftyError
from thrifty.numerics.modules import GroupedEmbedding, GroupedLinear, QuantConv, QuantEdge, QuantEmbedding, QuantLinear
from thrifty.numerics.observers import CalibrationError
from thrifty.numerics.schemes import INTEGERS
from thrifty.recipes.hyperparameters import HyperparameterError
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe
from thrifty.runs import checkpoint
from thrifty.training.loop import Loader, fit
from thrifty.training.qat.layers import Rounded, RoundedConv
from thrifty.training.session import TrainingSession
from thrifty.workloads.embedded.python_lm import LanguageModel


class Wide(nn.Module):
    """Residual sums, pools, a depthwise convolution, dropout, a norm that cannot be folded, wide linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.Hardswish(),
                                  nn.Dropout(0.1), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Conv2d(16, 32, 3)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(512, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.last(self.pool(torch.relu(x + self.deep(x)))))


class Untraceable(Wide):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.detach().sum()) != 1e9 else -x)


class Tied(nn.Module):
    """Ids to logits; the table is the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(90, 64), nn.Linear(64, 64), nn.Linear(64, 90, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.table(ids))))


def images() -> TensorDataset:
    return testing.stripes(96, 0)


def texts() -> TensorDataset:
    ids = torch.randint(90, (64, 12), generator=torch.Generator().manual_seed(0))
    return TensorDataset(ids, ids.flip(1))


NETS: dict[str, tuple[Any, Any]] = {
    "convolutions": (Wide, images), "untraceable": (Untraceable, images), "tied": (Tied, texts),
    "transformer": (lambda: LanguageModel(vocabulary=90, width=64, layers=3, heads=2, hidden=128, context=12), texts),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = NETS[name][0]().train()
    with torch.no_grad():
        net(NETS[name][1]().tensors[0])
    return net.eval()


def session(net: nn.Module, data: TensorDataset, *methods: Any, steps: int = 4, **settings: Any) -> TrainingSession:
    return TrainingSession(net, list(methods), CrossEntropy(), steps=steps, settings=Train(**settings),
               aside=lambda examples, passed: Loader(data, examples, 1).batches(passed))


def trained(name: str, *methods: Any, steps: int = 4, **settings: Any) -> TrainingSession:
    data = NETS[name][1]()
    found = session(made(name), data, *methods, steps=steps, **settings)
    for batch in itertools.islice(Loader(data, 16, 0).batches(), steps):
        found.step(batch)
    return found


def answers(model: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        return model.eval()(NETS[name][1]().tensors[0][:24])


def kinds(model: nn.Module) -> dict[str, type]:
    of = (QuantConv, QuantEdge, QuantLinear, QuantEmbedding, GroupedLinear, GroupedEmbedding)
    return {name: type(module) for name, module in model.named_modules() if isinstance(module, of)}


CELLS = [(name, scheme, "lsq") for name in NETS for scheme in INTEGERS]
CELLS += [(name, scheme, "ste") for name in ("convolutions", "tied") for scheme in ("w4a8", "w3a16")]
LONG = [("transformer", scheme, "lsq") for scheme in ("w8a16", "w3a16", "w4a8")]
CELLS = [pytest.param(*cell, marks=[pytest.mark.slow] if cell in LONG else []) for cell in CELLS]


@pytest.mark.parametrize(("name", "scheme", "estimator"), CELLS)
def test_what_was_evaluated_leaves_as_quantize_builds_it(name, scheme, estimator, tmp_path):
    method = Qat(scheme, estimator=estimator, group=32 if INTEGERS[scheme].grouped else 128)
    fitted = trained(name, AdamW(lr=3e-3), method)
    evaluated = answers(fitted.evaluated(), name)
    left = fitted.finish()
    ((transform, plan),) = fitted.plans
    torch.testing.assert_close(answers(left, name), evaluated, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, Rounded) for module in left.modules())
    assert not any(parameter.requires_grad for parameter in left.parameters())

    data = NETS[name][1]()
    default = Quantize(scheme, group=method.group)
    assert kinds(left) == kinds(default(made(name), [data.tensors[0]])) and kinds(left)
    built = transform.build(made(name), plan)
    assert {k: (v.shape, v.dtype) for k, v in left.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in built.state_dict().items()}

    torch.manual_seed(1)
    checkpoint.save(checkpoint.Checkpoint("", "", ((str(Recipe.of(transform)), plan),)), left, tmp_path)
    again = checkpoint.load(tmp_path, NETS[name][0]())[1]
    assert torch.equal(answers(again, name), answers(left, name))


def test_its_place_in_a_recipe():
    properties = carry(Recipe.parse("train(adamw) | train(qat(w8a8), steps=3) | compile(openvino)"), testing.TRAINED)
    assert "quantized" in properties and "compiled" in properties
    with pytest.raises(RecipeError, match="requires float-weights, which the earlier qat removed"):
        carry(Recipe.parse("train(qat(w8a8)) | quantize(w8a8)"), testing.TRAINED)
    with pytest.raises(RecipeError, match="requires float-weights"):
        carry(Recipe.parse("quantize(w8a8) | train(qat(w8a8))"), testing.TRAINED)


# -- what it learns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["lsq", "ste"])
def test_it_gives_back_what_rounding_takes(estimator):
    """Three-bit weights ruin a small net; training with them mends most of it."""
    torch.manual_seed(0)
    net, data = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)), rows(2048)
    fit(net, [AdamW(lr=1e-2)], data, CrossEntropy(), settings=Train(epochs=8), batch_size=64)
    scheme: dict[str, Any] = {"scheme": "w3a16", "group": 64}
    rounded = Quantize(algorithm="rtn", **scheme)(net, [data.tensors[0][:256]])
    done = fit(copy.deepcopy(net), [AdamW(lr=1e-3), Qat(estimator=estimator, **scheme)], data, CrossEntropy(),
               settings=Train(epochs=6), batch_size=64)
    full, worse, better = (loss(model) for model in (net, rounded, done.model))
    assert worse - full > 0.02
    assert better < full + 0.3 * (worse - full)


def rows(n: int, seed: int = 0) -> TensorDataset:
    x = torch.randn(n, 64, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] + x[:, 3] > 0).long())


def loss(model: nn.Module) -> float:
    x, y = rows(2048).tensors
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(x), y))


def test_statistics_of_norms_stand_still_at_the_end():
    data = images()
    fitted = session(made("convolutions"), data, AdamW(lr=1e-3), Qat("w8a8", freeze=0.5), steps=6)
    norms = fitted.memory(Qat())["norms"]
    assert len(norms) == 4
    seen = []
    for batch in itertools.islice(Loader(data, 16, 0).batches(), 6):
        fitted.model.train()  # as an evaluation leaves it
        fitted.step(batch)
        seen.append([norm.running_mean.clone() for norm in norms])
    moved = [any(not torch.equal(a, b) for a, b in zip(x, y, strict=True)) for x, y in itertools.pairwise(seen)]
    assert moved == [True, True, True, False, False]  # the third time they are taken anew


def test_statistics_are_taken_anew_from_the_rounded_model():
    """The plain average over 1,024 examples, of the weights as they are; the norms average as before afterwards."""
    data = images()
    fitted = session(made("convolutions"), data, AdamW(lr=1e-3), Qat("w4a8", freeze=0.5), steps=2)
    first, second = itertools.islice(Loader(data, 16, 0).batches(), 2)
    fitted.step(first)
    now = copy.deepcopy(fitted.model)
    norm = now.get_submodule("stem.0").norm
    norm.reset_running_stats()
    norm.momentum = None
    with torch.no_grad():
        for inputs, _ in itertools.islice(Loader(data, 32, 1).batches(), 32):
            now(*inputs)
    assert fitted.kind != session(made("convolutions"), data, Qat("w4a8", freeze=0.5), steps=2).kind
    fitted.step(second)
    settled = fitted.model.get_submodule("stem.0").norm
    torch.testing.assert_close(settled.running_mean, norm.running_mean)
    torch.testing.assert_close(settled.running_var, norm.running_var)
    assert settled.momentum == 0.1 and not settled.training


@pytest.mark.parametrize("beside", [[], [Ema(decay=0.9)]], ids=["alone", "ema"])
def test_integers_stand_still_at_the_end(beside):
    data = images()
    fitted = session(made("convolutions"), data, AdamW(lr=1e-2), Qat("w4a8", freeze=0.5), *beside, steps=8)

    def present() -> list[Tensor]:
        model = copy.deepcopy(fitted.evaluated())
        return [m.integer().weight.abs() for m in model.modules() if isinstance(m, RoundedConv)]

    seen = []
    for batch in itertools.islice(Loader(data, 16, 0).batches(), 8):
        fitted.model.train()
        fitted.step(batch)
        seen.append(present())
    same = [all(torch.equal(a, b) for a, b in zip(x, y, strict=True)) for x, y in itertools.pairwise(seen)]
    assert same[4:] == [True, True, True] and not any(same[:3])
    left = [m.weight.abs() for m in fitted.finish().modules() if isinstance(m, QuantConv)]
    assert all(torch.equal(a, b) for a, b in zip(left, seen[-1], strict=True))


def test_claims_hold():
    claims = {claim.what: claim for _, claim in trained("convolutions", AdamW(lr=1e-3), Qat("w8a8")).claims()}
    assert claims["layers in integers"].after == 6 and claims["bytes a weight"].after == 1
    assert claims["share of learned grids that moved"].after == 1
    for claim in claims.values():
        claim.checked("qat")
    still = trained("convolutions", AdamW(lr=1e-3), Qat("w8a8", estimator="ste"))
    assert {claim.what for _, claim in still.claims()} == {"layers in integers", "bytes a weight"}


# -- beside other methods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convolutions", "tied"])
@pytest.mark.parametrize("beside", [Bf16(), Ema(decay=0.5), "schedule_free"], ids=str)
def test_beside_other_methods(name, beside):
    if beside == "schedule_free":
        beside = pytest.importorskip("pytorch_optimizer") and testing.method_class("schedule_free")(lr=1e-2)
    optimizer = [AdamW(lr=1e-2)] if beside.name != "schedule_free" else []
    fitted = trained(name, Qat("w4a8"), beside, *optimizer, steps=6)
    steps = [p for key, p in fitted.model.named_parameters() if key.endswith("ratio")]
    assert steps and all(p.dtype == torch.float32 for p in steps)
    evaluated = answers(copy.deepcopy(fitted.evaluated()), name)
    last = answers(copy.deepcopy(fitted.model), name)
    torch.testing.assert_close(answers(fitted.finish(), name), evaluated, rtol=1e-4, atol=1e-4)
    assert torch.equal(evaluated, last) == (beside.name == "bf16")


def test_a_teacher():
    data, teacher = images(), made("convolutions")
    done = fit(made("convolutions"), [Qat("w4a8"), Distill(temperature=2), AdamW(lr=1e-3)], data, CrossEntropy(),
               settings=Train(steps=3), batch_size=16, teachers=lambda text: copy.deepcopy(teacher))
    assert dict(done.claims)["distill"].after >= 3 and kinds(done.model)


@pytest.mark.parametrize("checkpointing", ["blocks", "selective"])
def test_recomputed_blocks_give_the_same_gradients(checkpointing):
    whole, again = (trained("transformer", AdamW(lr=1e-3), Qat("w4a16", group=32), checkpointing=kind)
                    for kind in ("none", checkpointing))
    for (key, a), b in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=key)


def test_micro_batches_give_the_whole_batchs_gradients():
    whole, parts = (trained("transformer", AdamW(lr=1e-3), Qat("w8a16"), accumulate=n) for n in (1, 4))
    for (key, a), b in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-4, msg=key)


@pytest.mark.parametrize("estimator", ["lsq", "ste"])
def test_a_killed_training_goes_on_bit_for_bit(estimator, tmp_path):
    same([AdamW(), Qat("w4a8", estimator=estimator)], tmp_path)


def test_an_adapter_is_refused():
    for text in ("train(lora, qat(w4a8))", "train(qat(w4a8), lora)"):
        with pytest.raises(RecipeError, match="qat requires a model without adapters, which lora gives it"):
            carry(Recipe.parse(text), testing.TRAINED)


# -- what it refuses --------------------------------------------------------------------------------------------


def test_what_quantize_refuses_is_refused():
    data = images()
    with pytest.raises(HyperparameterError, match=r"qat\(scheme='w5a8'.*one of w8a8, w4a8"):
        Qat("w5a8")
    with pytest.raises(NoEffect, match="nothing to quantize"):
        session(nn.Sequential(nn.Flatten(), nn.LayerNorm(144)), data, Qat("w8a8"))
    with pytest.raises(ThriftyError, match="is already quantized"):
        session(Quantize()(made("convolutions"), [data.tensors[0]]), data, Qat("w8a8"))
    spoiled = TensorDataset(data.tensors[0] * float("nan"), data.tensors[1])
    with pytest.raises(CalibrationError, match="layer .* saw NaN"):
        session(made("convolutions"), spoiled, Qat("w8a8"))
    with pytest.raises(ThriftyError, match="groups of 128 do not divide"):
        session(made("tied"), texts(), Qat("w4a16"))
    with pytest.raises(HyperparameterError, match="matches no layer"):
        session(made("tied"), texts(), Qat("w8a8", layers={"heat": "fp32"}))


def test_a_loop_of_the_users_own_must_show_examples():
    with pytest.raises(ThriftyError, match="examples are needed besides those of the steps.*aside="):
        TrainingSession(made("tied"), [Qat("w8a8")], CrossEntropy(), steps=1)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
def test_layers_of_another_scheme(scheme):
    layers = {"stem.0": "fp32", "head.1": "w8a16" if scheme == "w4a16" else "fp32"}
    fitted = trained("convolutions", AdamW(lr=1e-3), Qat(scheme, layers=layers, group=64 if scheme == "w4a16" else 128))
    evaluated = answers(fitted.evaluated(), "convolutions")
    left = fitted.finish()
    torch.testing.assert_close(answers(left, "convolutions"), evaluated, rtol=1e-2, atol=1e-2)
    transform, plan = fitted.plans[0]
    again = transform.build(NETS["convolutions"][0](), plan)
    again.load_state_dict(left.state_dict())
    assert torch.equal(answers(again, "convolutions"), answers(left, "convolutions"))


def test_calibration_is_charged():
    fitted = session(made("transformer"), texts(), Qat("w8a8"))
    assert fitted.prepared_seconds > 0 and fitted.prepared_flops > 0


class Odd(nn.Module):
    """A subclass, a hook, a parametrization, a layer of two names, an argument that is not given, torch's own transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.normed = Tripled(1, 16, 3), nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 3))
        self.norm, self.twice = nn.BatchNorm2d(16), nn.Linear(16, 16)
        self.again, self.hooked = self.twice, nn.Linear(16, 32)
        self.mix, self.head = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), nn.Linear(32, 4)
        self.hooked.register_forward_hook(lambda module, inputs, output: output * 2)

    def forward(self, x, gate=None):
        h = torch.relu(self.norm(self.normed(self.own(x))))
        if gate is not None:
            h = h * gate
        h = self.hooked(self.again(torch.relu(self.twice(h.mean(3).transpose(1, 2)))))
        return self.head(self.mix(h).mean(1))


class Tripled(nn.Conv2d):
    def forward(self, x):
        return 3 * super().forward(x)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_odd_modules_leave_as_they_were_evaluated(scheme, tmp_path):
    torch.manual_seed(0)
    net, data = Odd(), images()
    found = session(net, data, AdamW(lr=1e-3), Qat(scheme), steps=3)
    for batch in itertools.islice(Loader(data, 16, 0).batches(), 3):
        found.step(batch)
    x = data.tensors[0][:24]
    with torch.no_grad():
        evaluated = found.evaluated().eval()(x)
        left = found.finish().eval()
        torch.testing.assert_close(left(x), evaluated, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, Rounded) for module in left.modules())
    kept = found.plans[0][1].values["left"]
    assert kept.keys() >= {"own", "hooked"} and type(left.get_submodule("hooked")) is nn.Linear
    checkpoint.save(checkpoint.Checkpoint("", "", ((str(found.plans[0][0]), found.plans[0][1]),)), left, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.load(tmp_path, Odd())[1].eval()(x), left(x), rtol=1e-5, atol=1e-5)
