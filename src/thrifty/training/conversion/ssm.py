"""Attention into state-space layers: a trained transformer that generates at a cost which does not grow with the context."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import nn

from thrifty.architectures.attention import Attention
from thrifty.errors import NoEffect, ThriftyError
from thrifty.numerics.graph import replace
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import number
from thrifty.recipes.transform import Plan, Transform
from thrifty.training.conversion.alignment import align, attentions, converted, counterpart


@final
@dataclass(frozen=True)
class Ssm(Transform):
    """Replace attention layers with Mamba-2 layers that start from them: C from the queries, B from the keys, x from the values.

    1. Each new layer is trained to give what its attention gives, on what the model lets that read: ``steps`` steps, all
       layers side by side, the model itself standing still.
    2. Where the two differ most, attention is kept.
    3. The model as a whole recovers in a training that follows it in the recipe:
       ``ssm(keep_attention=0.25) | train(adamw(lr=0.001), distill, steps=200)``.

    Layers are those of `thrifty.architectures.attention.Attention`: those of `Backbone` and of `python-lm`.

    Args:
        keep_attention: share of the layers of attention that stay, rounded up.
        steps: steps of the alignment; 0 leaves the new layers as they begin and keeps the last layers' attention.
        lr: learning rate of the alignment.

    >>> from thrifty.architectures.backbone import Backbone
    >>> from thrifty.architectures.blocks import Sizes
    >>> model = Backbone(50, "attention mlp attention mlp", Sizes(32, heads=4, hidden=32))
    >>> after = Ssm(keep_attention=0.5, steps=5)(model, [torch.randint(50, (4, 12))])
    >>> sorted(type(block.mixer).__name__ for block in after.blocks)
    ['Attention', 'Mamba2', 'Mlp', 'Mlp']
    """

    keep_attention: float = number(0.25, 0, 1, open_high=True, search=(0.25, 0.5))
    steps: int = number(100, 0)
    lr: float = number(2e-3, 0, open_low=True, log=True)

    name: ClassVar[str] = "ssm"
    card: ClassVar[Card] = Card(
        family="architectures",
        benefit="inference time",
        trade_off="quality, of generation more than of likelihood, partly recovered by distillation; no gain at short "
                  "contexts",
        paper='"The Mamba in the Llama", Wang et al. 2024, arXiv:2408.15237; "Transformers to SSMs", Bick et al. 2024, '
              "arXiv:2408.10189",
        needs=frozenset({"attention", "calibration", "training"}),
        requires=frozenset({"module", "float-weights"}),
    )

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Align the new layers, and choose where attention stays.

        Raises:
            NoEffect: there is no attention that can be replaced, or all of it is to stay.
        """
        model = copy.deepcopy(model).eval().requires_grad_(False)
        layers = attentions(model)
        if not layers:
            raise NoEffect(f"ssm finds no attention in {type(model).__name__} that it can replace (it replaces "
                           "thrifty.architectures.attention.Attention with plain linear layers); remove ssm, or put it before "
                           "what changes them")
        kept = math.ceil(self.keep_attention * len(layers) - 1e-9)
        if kept == len(layers):
            raise NoEffect(f"ssm(keep_attention={self.keep_attention:g}) keeps all {kept} layers of attention: lower it")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            made = {name: converted(layer) for name, layer in layers.items()}
        steps = min(self.steps, 1) if context.rehearsal else self.steps
        context.progress(f"aligning {len(made)} layers for {steps} steps")
        errors = align(model, layers, made, context.calibration, steps, self.lr)
        order = sorted(layers, key=lambda name: errors.get(name, 0.0))
        chosen = [name for name in layers if name in order[: len(layers) - kept]]
        tensors = {f"{name}.{key}": value.detach().clone() for name in chosen for key, value in made[name].state_dict().items()}
        return Plan({"layers": chosen, "kept": [name for name in layers if name not in chosen],
                     "errors": {name: round(value, 6) for name, value in errors.items()}}, tensors)

    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        found = attentions(model)
        for name in plan.values["layers"]:
            if name not in found:
                raise ThriftyError(f"the plan replaces the attention {name}, which this model does not have: it was made for "
                                   "another model")
            layer = counterpart(found[name])
            layer.load_state_dict({key: plan.tensors[f"{name}.{key}"] for key in layer.state_dict()}, assign=True)
            for weight in layer.parameters():
                weight.requires_grad_(True)
            replace(model, name, layer.train(found[name].training))
        return model

    def list_layers(self, model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
        return [{"layer": name, "now": "attention" if name in plan.values["kept"] else "mamba2", "relative error": error}
                for name, error in plan.values["errors"].items()]

    def claims(self, before: nn.Module, after: nn.Module) -> tuple[Claim, ...]:
        return (Claim("layers of attention", attention_layers(before), attention_layers(after), minimum=1.0,
                      probe=attention_layers),)


def attention_layers(model: nn.Module) -> float:
    return float(sum(isinstance(layer, Attention) for layer in model.modules()))
