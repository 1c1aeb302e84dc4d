"""(IA)^3: learned factors of activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from thrifty.errors import ThriftyError
from thrifty.recipes.card import Card
from thrifty.recipes.hyperparameters import matches, pattern
from thrifty.training.peft.adapter import Adapter, exactly, linear_kinds, load_peft, transposed


@final
@dataclass(frozen=True)
class Ia3(Adapter):
    """A learned factor for every output of a frozen layer, or for every input of those that ``inputs`` names.

        y = l * (W x + b),  l [out] = 1;    of ``inputs``:  y = W (l * x) + b,  l [in] = 1

    The paper's: keys and values by their outputs, the second layer of an MLP by its inputs. Factors are not decayed:
    zero would not be neutral.

    Args:
        targets: "all-linear", every linear layer whose weight no other layer reads; or a regular expression over
            names ("key|value|down"), which may name convolutions too.
        base: how the frozen weights of adapted linear layers are held in training; merging rounds them for good.
        inputs: a regular expression over names: those of the adapted layers whose inputs are scaled; empty for none.

    >>> Ia3(targets="key|value|down", inputs="down")
    Ia3(targets='key|value|down', base='fp32', inputs='down')
    """

    inputs: str = pattern("")

    name: ClassVar[str] = "ia3"
    telling: ClassVar[str] = "ia3_l"
    undecayed: ClassVar[str] = "ia3_l"
    card: ClassVar[Card] = Card(
        family="peft",
        benefit="training time",
        trade_off="one factor per unit: it cannot learn what the model does not already compute",
        paper='"Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", Liu et al. '
              "2022, arXiv:2205.05638, section 3.3",
        needs=frozenset({"labels"}),
        requires=frozenset({"module", "float-weights", "trained"}),
        refuses=frozenset({"adapters", "mixture", "undecided"}),
        holds=frozenset({"adapters"}),
    )

    def kinds(self) -> tuple[type[nn.Module], ...]:
        return (*linear_kinds(), nn.Conv2d, nn.Conv3d)

    def config(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> Any:
        scaled = {name: layer for name, layer in layers.items() if self.inputs and matches(self.inputs, name)}
        if self.inputs and not scaled:
            raise ThriftyError(f"ia3(inputs={self.inputs!r}) matches none of the layers that are adapted: "
                               f"{', '.join(list(layers)[:6])}{', ...' if len(layers) > 6 else ''}")
        return load_peft().IA3Config(target_modules=exactly(layers), feedforward_modules=exactly(scaled),
                                     fan_in_fan_out=transposed(layers))
