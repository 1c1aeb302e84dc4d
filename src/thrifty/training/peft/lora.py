"""Low-rank adaptation, and three variants: rank-stabilized, weight-decomposed, principal components."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from torch import nn

from thrifty.architectures.moe.stacks import stacks
from thrifty.errors import ThriftyError
from thrifty.numerics.norms import is_norm
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.hyperparameters import choice, number
from thrifty.training.peft.adapter import ADAPTER, Adapter, exactly, linear_kinds, load_peft, parted, transposed

if TYPE_CHECKING:
    from thrifty.recipes.session import Session


@final
@dataclass(frozen=True)
class Lora(Adapter):
    """A low-rank update alongside each frozen weight, merged into it at the end.

        y = W x + s B A dropout(x),   A [rank, in], B [out, rank] = 0,   s = alpha / rank

    - ``rslora``: s = alpha / sqrt(rank), so that a higher rank learns as fast.
    - ``dora``: W' = m (W + s B A) / |W + s B A|, a length m for each output, trained; the norm gets no gradient.
    - ``pissa``: A and B begin as W's first principal components and W as what they leave.

    A layer smaller than the rank gets its own size, at the same s: no update of it could use more.

    ``experts`` adapts mixtures of experts too, whose matrices are one tensor of three dimensions: every matrix of every expert
    gets A and B of its own. Routers stand still.

    ``norms`` trains the scales and biases of all norms too, few numbers that move what no low rank can: a norm's scale is a
    diagonal before every layer that reads it.

    Args:
        targets: "all-linear", every linear layer whose weight no other layer reads; or a regular expression over
            names ("query|value"), which may name convolutions and embeddings too.
        base: how the frozen weights of adapted linear layers are held in training; merging rounds them for good.
        rank: rank of the update.
        alpha: its strength.
        dropout: dropout of the update's input.
        variant: which of the four.
        norms: how many times the learning rate the norms are trained at; at 0 they stand still.
        experts: whether experts are adapted; with the variants plain and rslora, without dropout.

    >>> Lora(rank=16)
    Lora(targets='all-linear', base='fp32', rank=16, alpha=16, dropout=0.0, variant='plain', norms=0, experts=False)
    """

    rank: int = number(8, 1, log=True)
    alpha: float = number(16, 0, open_low=True, log=True)
    dropout: float = number(0.0, 0, 1, open_high=True)
    variant: str = choice("plain", "plain", "rslora", "dora", "pissa")
    norms: float = number(0, 0)
    experts: bool = False

    name: ClassVar[str] = "lora"
    telling: ClassVar[str] = "lora_B|lora_embedding_A"
    undecayed: ClassVar[str] = "lora_magnitude_vector"
    card: ClassVar[Card] = Card(
        family="peft",
        benefit="training time",
        trade_off="a low rank may not hold what full fine-tuning would learn; the forward pass does a little more",
        paper='"LoRA: Low-Rank Adaptation of Large Language Models", Hu et al. 2021, arXiv:2106.09685; rsLoRA: '
              "Kalajdzievski 2023, arXiv:2312.03732; DoRA: Liu et al. 2024, arXiv:2402.09353; PiSSA: Meng et al. 2024, "
              "arXiv:2404.02948; a base in nf4: Dettmers et al. 2023, arXiv:2305.14314; norms trained too: LongLoRA, Chen et "
              "al. 2023, arXiv:2309.12307, section 3.3",
        needs=frozenset({"labels"}),
        requires=frozenset({"module", "float-weights", "trained"}),
        refuses=frozenset({"adapters", "mixture", "undecided"}),
        holds=frozenset({"adapters"}),
    )

    @property
    def refuses(self) -> frozenset[str]:
        """A mixture's experts are adapted where this is asked for."""
        return self.card.refuses - (frozenset({"mixture"}) if self.experts else frozenset())

    def kinds(self) -> tuple[type[nn.Module], ...]:
        if self.variant == "pissa":  # principal components of a matrix
            return linear_kinds()
        return (*linear_kinds(), nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)

    def config(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> Any:
        sizes = {name: size(layer) for name, layer in layers.items()}
        largest = max(sizes.values())
        if self.rank > largest:
            raise ThriftyError(f"lora(rank={self.rank}): the largest layer it would adapt has rank {largest}; choose "
                               f"a rank up to {largest}, well below it to save anything")
        small = {f"^{re.escape(name)}": n for name, n in sizes.items() if n < self.rank}
        power = 0.5 if self.variant == "rslora" else 1.0
        return load_peft().LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=exactly(layers),
            use_rslora=self.variant == "rslora", use_dora=self.variant == "dora",
            init_lora_weights="pissa" if self.variant == "pissa" else True, rank_pattern=small,
            alpha_pattern={name: self.alpha * (n / self.rank) ** power for name, n in small.items()},
            fan_in_fan_out=transposed(layers), modules_to_save=self._norms(model) or None,
            target_parameters=self._experts(model) or None,
        )

    def parameter_groups(self, session: Session, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        own = {id(p) for name, p in session.model.named_parameters() if ".modules_to_save." in name}
        return parted(super().parameter_groups(session, groups), own, lr_factor=self.norms)

    def claims(self, session: Session) -> tuple[Claim, ...]:
        found = super().claims(session)
        if not self.experts:
            return found
        count = float(sum(_experts_of(wrapper) for wrapper in session.model.modules() if hasattr(wrapper, "parameter_name")))
        return (*found, Claim("experts' matrices with adapters", 0.0, count, minimum=count))

    def _experts(self, model: nn.Module) -> list[str]:
        """Names of the tensors that hold experts' matrices.

        Raises:
            ThriftyError: there are none, they are smaller than the rank, or other hyperparameters do not suit them.
        """
        if not self.experts:
            return []
        if self.dropout or self.variant not in ("plain", "rslora"):
            raise ThriftyError(f"lora(experts=True, dropout={self.dropout:g}, variant={self.variant}): experts are adapted where "
                               "their weights stand, so without dropout and with plain or rslora")
        found = {f"{name}.{own}".removeprefix("."): module.get_parameter(own)
                 for name, module in model.named_modules() for own in stacks(module)}
        if not found:
            raise ThriftyError("lora(experts=True): the model has no experts in tensors of three dimensions: omit experts")
        smallest = min(min(weight.shape[1:]) for weight in found.values())
        if self.rank > smallest:
            raise ThriftyError(f"lora(rank={self.rank}, experts=True): an expert's matrix has rank {smallest}; choose a rank "
                               f"up to {smallest}")
        return list(found)

    def _norms(self, model: nn.Module) -> list[str]:
        """Names of what is trained beside the adapters.

        Raises:
            ThriftyError: the model has no norm, or another layer whose name ends as a norm's: peft would take it for one.
        """
        if not self.norms:
            return []
        found = [name for name, module in model.named_modules() if is_norm(module)]
        if not found:
            raise ThriftyError(f"lora(norms={self.norms:g}) trains the norms too, but the model has none with a scale: omit "
                               "it")
        other = next((name for name, module in model.named_modules() if name.endswith(tuple(found)) and name not in found), None)
        if other is not None:
            raise ThriftyError(f"lora(norms={self.norms:g}): peft finds norms by the end of their name, and {other}, which is "
                               "not a norm, ends like one: rename it, or omit norms")
        return found


def _experts_of(wrapper: Any) -> int:
    """Experts whose matrices peft's wrapper of one tensor adapts."""
    return int(wrapper.lora_A[ADAPTER].weight.shape[0]) // int(wrapper.r[ADAPTER])


def size(layer: nn.Module) -> int:
    """The largest rank that an update of the layer can have.

    >>> size(nn.Linear(8, 3)), size(nn.Conv2d(2, 32, 3)), size(nn.Embedding(100, 16))
    (3, 18, 16)
    """
    if isinstance(layer, nn.Linear):
        return min(layer.in_features, layer.out_features)
    if isinstance(layer, nn.Embedding):
        return min(layer.num_embeddings, layer.embedding_dim)
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return min(layer.out_channels, layer.in_channels // layer.groups * math.prod(layer.kernel_size))
    return min(layer.weight.shape)  # type: ignore[arg-type]
