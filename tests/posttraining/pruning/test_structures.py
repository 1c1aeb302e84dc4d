"""Structured pruning of the shapes that are served: the share, the masked model, configurations, a clean process."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.posttraining.pruning import shapes
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from thrifty import Prune
from thrifty.artifacts import artifact
from thrifty.compilers.export import Export
from thrifty.errors import NoEffect, ThriftyError
from thrifty.numerics.observers import CalibrationError
from thrifty.posttraining.elements import parameters
from thrifty.posttraining.pruning.cutting import masked
from thrifty.posttraining.pruning.dependency import Place, dependencies
from thrifty.recipes.context import Context
from thrifty.recipes.transform import Plan

TRANSFORMERS = {"vit", "llama", "bert", "gpt2", "mixtral"}


def context(example: tuple[torch.Tensor, ...], notes: list[str] | None = None, **more: Any) -> Context:
    return Context(tuple(x[:1] for x in example), lambda: iter([example]), progress=(notes if notes is not None else []).append,
                   **more)


def pruned(name: str, **settings: Any) -> tuple[nn.Module, nn.Module, Plan]:
    """(model, the smaller one, the plan)."""
    if name.split()[0] in TRANSFORMERS:
        pytest.importorskip("transformers")
    model = shapes.make(name)
    method = Prune(**{"round_to": 2 if name != "mixtral" else 4, **settings})
    plan = method.plan(model, context(shapes.example(name)))
    return model, method.build(copy.deepcopy(model), Plan(json.loads(json.dumps(plan.values)), plan.tensors)), plan


def multiplied(name: str, model: nn.Module) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*(x[:1] for x in shapes.example(name)))
    return float(counter.get_total_flops())


LONG = ("efficientnet", "mixtral", "mobilenetv3", "bert", "gpt2")
"""Models that take ten seconds for their channels, whose heads or residual stream are pruned too, or whose kind another has."""


@pytest.mark.parametrize(("name", "structure", "ratio"), [
    *(pytest.param(name, "channels", 0.25, marks=[pytest.mark.slow] if name in LONG else []) for name in shapes.MODELS),
    *((name, "heads", 0.1) for name in ("deit", "vit", "llama", "bert", "gpt2")),
    *((name, "residual", 0.25) for name in ("convnext", "deit", "vit", "llama", "gpt2")),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("resnet50", "channels", 0.7), ("mixtral", "heads", 0.05), ("mixtral", "residual", 0.25))),
    *((name, "width", 0.3) for name in ("deit", "llama")),
    *(pytest.param(name, structure, 0.4, marks=pytest.mark.slow) for name, structure in (
        ("resnet18 whole", "channels"), ("resnet50 whole", "channels"), ("llama whole", "width"))),
])
def test_the_share_is_hit_and_the_masked_model_gives_the_same(name: str, structure: str, ratio: float) -> None:
    model, smaller, plan = pruned(name, structure=structure, ratio=ratio)
    assert 1 - parameters(smaller) / parameters(model) == pytest.approx(ratio, abs=0.02)
    example = shapes.example(name)
    found = dependencies(copy.deepcopy(model), example)
    whole = masked(model, found, {Place(tensor, dim): kept for tensor, dim, kept in plan.values["slices"]})
    with torch.no_grad():
        want, before = whole(*example), model(*example)
        torch.testing.assert_close(smaller(*example), want, rtol=1e-5, atol=1e-5)
        assert (want - before).abs().max() > 1e-3  # something did leave
    layers = {name.rpartition(".")[0] for name, tensor in model.named_parameters() if tensor.ndim > 1}
    told = {row["layer"] for row in Prune().list_layers(smaller, plan)}
    assert layers <= {layer or "token" for layer in told} | {"", "model.vit.embeddings"}
    rows = Prune().list_layers(smaller, plan)
    assert all(row["reason"] for row in rows if row["scheme"] == "whole") and any(row["bytes"] for row in rows)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3", "unet", "convnext", "deit"])
def test_multiply_adds_are_hit_too(name: str) -> None:
    model, smaller, plan = pruned(name, ratio=0.3, of="macs")
    assert 1 - multiplied(name, smaller) / multiplied(name, model) == pytest.approx(0.3, abs=0.02)
    assert plan.values["removed"][1] == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(("name", "structure", "ratio", "changed"), [
    ("llama", "channels", 0.25, {"intermediate_size"}),
    ("llama", "heads", 0.1, {"num_attention_heads", "num_key_value_heads"}),
    ("llama", "width", 0.3, {"hidden_size", "intermediate_size", "num_attention_heads"}),
    ("bert", "channels", 0.25, {"intermediate_size"}), ("gpt2", "channels", 0.25, {"n_inner"}),
    ("vit", "channels", 0.25, {"intermediate_size"}), ("mixtral", "channels", 0.25, {"intermediate_size"}),
])
def test_a_configuration_makes_the_smaller_model(name: str, structure: str, ratio: float, changed: set[str]) -> None:
    model, smaller, _ = pruned(name, structure=structure, ratio=ratio)
    inner: Any = smaller.model
    again = type(inner)(copy.deepcopy(inner.config)).eval()
    again.load_state_dict(inner.state_dict())
    rebuilt = type(smaller)(again)
    example = shapes.example(name)
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(*example), smaller(*example), rtol=1e-5, atol=1e-5)
    old = model.model.config  # type: ignore[union-attr]
    assert all(getattr(inner.config, key) != getattr(old, key) for key in changed)


def test_where_a_configuration_has_no_words_it_is_said() -> None:
    pytest.importorskip("transformers")
    notes: list[str] = []
    Prune(structure="heads", ratio=0.1).plan(shapes.make("bert"), context(shapes.example("bert"), notes))
    assert "BertModel cannot express" in notes[-1]


def test_grouped_queries_leave_with_their_key_and_value_head() -> None:
    _, smaller, _ = pruned("llama", structure="heads", ratio=0.1)
    for layer in smaller.model.model.layers:  # type: ignore[union-attr]
        query, key = layer.self_attn.q_proj.out_features, layer.self_attn.k_proj.out_features
        assert query == 3 * key < 96 and key % 4 == 0


def test_code_that_takes_the_size_of_a_head_from_the_width_keeps_its_heads() -> None:
    model = shapes.Deit(classic=True).eval()
    with pytest.raises(NoEffect, match="own code depends on its width"):
        Prune(structure="heads", ratio=0.1).plan(model, context(shapes.example("deit")))
    plan = Prune(ratio=0.25, structure="width", round_to=2).plan(model, context(shapes.example("deit")))
    assert any("own code" in why for why in plan.values["left"].values())


@pytest.mark.parametrize("name", ["resnet18", *(
    pytest.param(name, marks=pytest.mark.slow) for name in shapes.MODELS if name != "resnet18")])
def test_it_reloads_and_serves_in_a_clean_process(name: str, tmp_path: Path) -> None:
    _, smaller, plan = pruned(name, ratio=0.25, structure="width" if name == "deit" else "channels")
    example = shapes.example(name)
    with torch.no_grad():
        want = smaller(*example)
    (tmp_path / "served").mkdir()
    (tmp_path / "plan.json").write_text(json.dumps(plan.values))
    safetensors.torch.save_file({k: v.contiguous().clone() for k, v in smaller.state_dict().items()}, tmp_path / "weights")
    safetensors.torch.save_file({"want": want.contiguous()}, tmp_path / "want")
    lowered = Export().lower(copy.deepcopy(smaller), example, tmp_path / "served", context(example))
    artifact.write(tmp_path / "served", lowered, {"recipe": "prune", "layers": Prune().list_layers(smaller, plan)},
                   [x.numpy() for x in example], [want.numpy()])
    script = f"""
import json, sys, numpy, torch, safetensors.torch
from pathlib import Path
import thrifty
place = Path(sys.argv[1])
want = safetensors.torch.load_file(place / "want")["want"]
assert not any(name.startswith(("tests", "transformers")) for name in sys.modules)
served = thrifty.load(place / "served")
from tests.posttraining.pruning import shapes
got = served(*shapes.example({name!r}))
numpy.testing.assert_allclose(numpy.asarray(got), want.numpy(), rtol=1e-4, atol=1e-5)
from thrifty import Prune
from thrifty.recipes.transform import Plan
model = Prune().build(shapes.MODELS[{name!r}][0]().eval(), Plan(json.loads((place / "plan.json").read_text())))
model.load_state_dict(safetensors.torch.load_file(place / "weights"))
with torch.no_grad():
    torch.testing.assert_close(model(*shapes.example({name!r})), want, rtol=1e-5, atol=1e-5)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


# -- criteria ---------------------------------------------------------------------------------------------------


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def kept(plan: Plan) -> list[int]:
    return next(indices for tensor, dim, indices in plan.values["slices"] if (tensor, dim) == ("0.weight", 0))


def mean_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(*batch[0]), batch[1])


def test_activation_is_what_a_channel_brings_to_its_reader() -> None:
    model, x = two_layers(), torch.randn(64, 6)
    plan = Prune(ratio=0.4, criterion="activation", round_to=1).plan(model, context((x,)))
    with torch.no_grad():
        hidden = torch.relu(model[0](x))
    brought = [float((hidden[:, c:c + 1] * model[2].weight[:, c]).norm()) for c in range(16)]
    assert kept(plan) == sorted(sorted(range(16), key=lambda c: -brought[c])[:len(kept(plan))])


def test_taylor_is_the_loss_to_first_order() -> None:
    model, x, y = two_layers(), torch.randn(64, 6), torch.randint(3, (64,))
    batch = ((x,), y)
    told = context((x,), labelled=lambda: iter([batch]), loss=mean_loss)
    plan = Prune(ratio=0.4, criterion="taylor", round_to=1).plan(model, told)
    changes = []
    for c in range(16):  # a step of a channel's own weights towards zero, by differences
        losses = []
        for step in (1e-3, -1e-3):
            moved = copy.deepcopy(model).double()
            with torch.no_grad():
                moved[0].weight[c] *= 1 - step
                moved[0].bias[c] *= 1 - step
            losses.append(float(mean_loss(moved, ((x.double(),), y))))
        changes.append(abs(losses[0] - losses[1]))
    assert kept(plan) == sorted(sorted(range(16), key=lambda c: -changes[c])[:len(kept(plan))])
    assert all(p.grad is None for p in model.parameters())


def test_taylor_without_labels_says_what_it_lacks() -> None:
    with pytest.raises(CalibrationError, match="choose criterion=magnitude"):
        Prune(ratio=0.5, criterion="taylor").plan(two_layers(), context((torch.randn(4, 6),)))


def test_the_least_important_of_the_whole_model_go_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    with torch.no_grad():
        model[0].weight[8:] *= 1e-3  # 56 channels that hardly matter
        model[0].bias[8:] *= 1e-3
        model[2].weight[:, 8:] *= 1e-3
    x = torch.randn(32, 8)
    chosen, alike = (Prune(ratio=0.6, scope=scope)(model, [x]) for scope in ("model", "layer"))
    assert chosen[0].out_features <= 24 and chosen[2].out_features == 64
    assert abs(alike[0].out_features - alike[2].out_features) <= 8


def test_layers_kept_by_name_stay() -> None:
    smaller = Prune(ratio=0.3, keep="0")(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                                                      nn.Linear(64, 4)), [torch.randn(4, 8)])
    assert smaller[0].out_features == 64 and smaller[2].out_features < 64


@pytest.mark.parametrize(("settings", "says"), [
    ({"ratio": 0}, r"ratio must be in \(0, 1\)"), ({"ratio": 1}, "ratio must be in"), ({"ratio": -0.5}, "ratio must be in"),
    ({"criterion": "wanda"}, "structure=channels is ranked by"), ({"structure": "blocks", "criterion": "taylor"}, "ranked by"),
    ({"structure": "2:4", "ratio": 0.7}, "omit ratio"), ({"structure": "unstructured", "of": "macs"}, "omit of"),
    ({"structure": "3:4"}, "structure must be one of"),
])
def test_what_does_not_go_together_is_answered_early(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ThriftyError, match=says):
        Prune(**settings)


def test_what_cannot_be_exported_names_the_operation_and_what_is_left_to_do() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if x.sum() > 0 else -x

    with pytest.raises(ThriftyError, match="data-dependent.*masks .*need no export"):
        Prune(ratio=0.5)(Branching(), [torch.ones(2, 8)])
    assert float((Prune(structure="2:4")(Branching(), []).layer.weight == 0).double().mean()) == 0.5
