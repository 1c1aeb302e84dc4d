"""A recipe that cannot work is answered before anything runs."""

import dataclasses

import pytest
import torch
from torch import nn

from thrifty import CrossEntropy, Loss, OnnxRuntime, OpenVino, load, lower, testing
from thrifty.compilers.capture import LoweringError
from thrifty.errors import RecipeError, ThriftyError, WorkloadError
from thrifty.recipes.recipe import Recipe
from thrifty.runs.preflight import check, check_recipe, resolve

WORKLOAD = "thrifty.testing:workload"


@pytest.mark.parametrize("recipe", ["compile(onnxruntime) | prune", "train | quantize(w8a8) | prune",
                                    "train | quantize(w8a8) | quantize(w8a8)"])
def test_an_order_that_cannot_work_is_refused(recipe):
    with pytest.raises(RecipeError, match="requires"):
        check_recipe(testing.workload, Recipe.parse(recipe))


def test_a_teacher_is_no_engine():
    with pytest.raises(WorkloadError, match="remove the compiler"):
        check_recipe(testing.workload, Recipe.parse('train(distill(teacher="train() | compile(onnxruntime)"))'))


def test_a_workload_that_cannot_be_trained_says_so():
    untrained = dataclasses.replace(testing.workload, train=None, reference="")
    with pytest.raises(WorkloadError, match="no training set"):
        check_recipe(untrained, Recipe.parse("train(epochs=1)"))


class OwnLoss(Loss):
    """__call__ alone."""

    def __call__(self, outputs, batch):
        return CrossEntropy()(outputs, batch)


@pytest.mark.parametrize("recipe", ["train(sophia)", "train(distill)", "train | prune(ratio=0.5) | train(distill, epochs=1)"])
def test_what_needs_logits_is_refused_where_the_loss_gives_none(recipe):
    own = dataclasses.replace(testing.workload, loss=OwnLoss())
    with pytest.raises(WorkloadError, match=r"(sophia|distill) needs logits, but the loss OwnLoss gives none: remove"):
        check_recipe(own, Recipe.parse(recipe))
    check_recipe(testing.workload, Recipe.parse(recipe))


def test_a_loss_of_ones_own_trains_by_its_call_alone():
    own = dataclasses.replace(testing.workload, loss=OwnLoss())
    assert "trained" in check(own, "train(adamw, epochs=1)")
    for recipe in ('train(sophia("hutchinson"))', "train(adamw, distill(similarity))"):
        assert "trained" in check_recipe(own, Recipe.parse(recipe))


def test_inputs_alone_need_a_teacher():
    alone = dataclasses.replace(testing.workload, train=None, loss=None, reference="", unlabelled=testing.stripes(8, 0))
    with pytest.raises(WorkloadError, match="only unlabelled inputs.*add distill"):
        check_recipe(alone, Recipe.parse("train(adamw, epochs=1)"))
    assert "trained" in check_recipe(alone, Recipe.parse("train(adamw, distill, epochs=1)"))


def test_a_teacher_of_another_workload_is_looked_for_before_anything_runs():
    with pytest.raises(WorkloadError, match="there is no file"):
        check_recipe(testing.workload, Recipe.parse('train(distill(teacher_workload="nowhere.py"))'))


def test_checking_rehearses():
    assert "pruned" in check(WORKLOAD, "prune(ratio=0.5) | train(adamw)")


class Recurrent(nn.Module):
    """An LSTM of both directions with projections, and a cell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.cell = nn.LSTM(12, 12, 2, batch_first=True, bidirectional=True, proj_size=6), nn.GRUCell(12, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        y, _ = self.a(x.squeeze(1))
        h = torch.zeros(x.shape[0], 12)
        for t in range(y.shape[1]):
            h = self.cell(y[:, t], h)
        return self.head(h)


@pytest.mark.slow
def test_a_backend_that_lacks_what_the_model_is_made_of_says_so_before_anything_runs(tmp_path, monkeypatch):
    """Projections: ONNX Runtime cannot open its own file of them; OpenVINO serves them."""
    workload = dataclasses.replace(testing.workload, model=Recurrent)
    with pytest.raises(LoweringError) as told:
        check(workload, "train(epochs=1) | compile(onnxruntime)")
    assert "cannot express this model: 'a' is a recurrent layer with proj_size=6; try compile(openvino)" in str(told.value)
    assert "\n" not in str(told.value)
    assert "compiled" in check(workload, "train(epochs=1) | quantize(w8a8) | compile(openvino)")
    net, (x,) = Recurrent().eval(), workload.example(5)
    with pytest.raises(LoweringError, match="cannot express"):
        lower(net, OnnxRuntime(), tmp_path / "onnx", (x[:1],))
    if not OpenVino.missing():
        lower(net, OpenVino(), tmp_path / "ir", (x[:1],), shapes={0: {0: (1, 8)}})
        torch.testing.assert_close(load(tmp_path / "ir")(x), net(x), rtol=1e-4, atol=1e-4)


def test_a_workload_without_a_place_is_refused():
    with pytest.raises(WorkloadError, match="write it in a file"):
        resolve(dataclasses.replace(testing.workload, source=""))


@pytest.mark.parametrize("quantize", ["quantize(fp8)", "quantize(w8a8, layers={'.*': fp8})"])
@pytest.mark.parametrize("compiler", ["inductor", "auto", "export"])
def test_float8_is_not_compiled_for_processors(quantize, compiler):
    assert "float8-products" in check_recipe(testing.workload, Recipe.parse(f"train | {quantize}"))
    with pytest.raises(ThriftyError, match=r"emulate them, slower than fp32; use quantize\(w8a8\), or --device cuda"):
        check_recipe(testing.workload, Recipe.parse(f"train | {quantize} | compile({compiler})"))


def test_float8_is_not_compiled_for_older_gpus(monkeypatch):
    recipe = Recipe.parse("train | quantize(fp8) | compile(inductor)")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(ThriftyError, match=r"A100 has compute capability 8.0, but float8 matrix multiplications need 8.9 or "
                                           r"more"):
        check_recipe(testing.workload, recipe, "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    assert "compiled" in check_recipe(testing.workload, recipe, "cuda")


def test_a_compiler_without_float8_says_so():
    pytest.importorskip("onnxruntime")
    with pytest.raises(RecipeError, match="onnxruntime requires a model without float8-products"):
        check_recipe(testing.workload, Recipe.parse("train | quantize(fp8) | compile(onnxruntime)"), "cuda")
