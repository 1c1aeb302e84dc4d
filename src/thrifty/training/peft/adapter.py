"""What all adapters share: they are put into the frozen model, trained alone, and merged into its weights."""

from __future__ import annotations

import abc
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from thrifty.errors import MissingExtra, ThriftyError
from thrifty.recipes.claim import Claim
from thrifty.recipes.hyperparameters import choice, pattern
from thrifty.recipes.training_method import Stage, TrainingMethod
from thrifty.training.distributed.parallel import whole
from thrifty.training.peft.held import Held
from thrifty.training.peft.layers import ALL_LINEAR, chosen

if TYPE_CHECKING:
    from thrifty.recipes.session import Session
    from thrifty.workloads.workload import Batch

ADAPTER = "default"
"""The one adapter's name inside peft."""


@dataclass(frozen=True)
class Adapter(TrainingMethod):
    """Trains new parameters inside the layers that ``targets`` names; the model's own stand still and take them in at
    the end, so that the model leaves training with the structure that it came with.

    Running statistics of norms stand still too: an adapter is an addition to one known model.
    """

    targets: str = pattern(ALL_LINEAR)
    base: str = choice("fp32", "fp32", "bf16", "int8", "nf4")

    stage: ClassVar[Stage] = "structure"
    telling: ClassVar[str]
    """A regular expression: the parameters that must move for a layer to compute anything new."""
    undecayed: ClassVar[str]
    """A regular expression: parameters whose neutral value is not zero, which weight decay would pull away from it."""

    @abc.abstractmethod
    def config(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> Any:
        """peft's configuration for these layers.

        Raises:
            ThriftyError: the hyperparameters do not suit the layers.
        """

    @abc.abstractmethod
    def kinds(self) -> tuple[type[nn.Module], ...]:
        """The layers that can be adapted."""

    # -- hooks --------------------------------------------------------------------------------------------------

    def prepare(self, session: Session) -> None:
        peft, model = load_peft(), session.model
        already = next((name for name, m in model.named_modules() if isinstance(m, tuner_layer())), None)
        if already is not None:
            raise ThriftyError(f"the model is already adapted ({already} is an adapter's layer): merge that one first, "
                               "as peft's merge_and_unload() does, or train it as it is, without another")
        layers = chosen(model, self.targets, self.kinds(), linear_kinds(), self.name)
        if self.base != "fp32":
            require_linear(self, layers)
        trained = {name: p.requires_grad for name, p in model.named_parameters()}
        config = self.config(model, layers)
        try:
            tuner = peft.PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](model, config, ADAPTER)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ThriftyError(f"peft cannot apply {self!r} to this model: {error}") from error
        share = trainable_share(model)
        for module in fast_paths(model):
            module.register_forward_pre_hook(_nothing)
        session.memory(self).update(
            tuner=tuner, trained=trained, share=share, names=tuple(layers),
            start={name: p.detach().cpu().clone() for name, p in self._telling(model)},
            held=self._hold(model, layers), running=[m for m in model.modules() if getattr(m, "running_mean", None) is not None],
        )

    def parameter_groups(self, session: Session, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        apart = {id(p) for name, p in session.model.named_parameters() if re.search(self.undecayed, name)}
        return parted(groups, apart, weight_decay=0.0)

    def forward(self, session: Session, batch: Batch, proceed: Callable[[Batch], Any]) -> Any:
        for norm in session.memory(self)["running"]:  # every time: an evaluation ends in model.train()
            norm.eval()
        return proceed(batch)

    def finish(self, session: Session, model: nn.Module) -> nn.Module:
        memory = session.memory(self)
        for module in model.modules():
            if isinstance(held := getattr(module, "base_layer", None), Held):
                module.base_layer = held.restore()
        for module in fast_paths(model):
            for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _nothing]:
                del module._forward_pre_hooks[key]
        memory["tuner"].model = model  # it may be an average of the one that was trained
        with torch.no_grad():
            memory["tuner"].merge_and_unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(memory["trained"][name])
        return model

    def claims(self, session: Session) -> tuple[Claim, ...]:
        memory = session.memory(self)
        moved: dict[str, bool] = {}
        for name, p in self._telling(session.model):
            layer = re.split(self.telling, name)[0]
            now = whole(p.detach()).cpu()  # of all ranks, where each holds a part
            moved[layer] = moved.get(layer, False) or not torch.equal(now, memory["start"][name])
        found = [Claim("share of trainable parameters", 1.0, memory["share"], minimum=0.1),
                 Claim("share of adapters that moved", 0.0, sum(moved.values()) / len(moved), minimum=0.5)]
        if memory["held"]:
            bytes_now = sum(h.bytes_per_weight for _, h in memory["held"]) / len(memory["held"])
            found.append(Claim("bytes an adapted weight in training", 4.0, bytes_now, minimum=1.5))
        return tuple(found)

    # -- inside -------------------------------------------------------------------------------------------------

    def _telling(self, model: nn.Module) -> list[tuple[str, Tensor]]:
        return [(name, p) for name, p in model.named_parameters() if re.search(self.telling, name)]

    def _hold(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> list[tuple[nn.Module, Held]]:
        """Hold the adapted layers' weights in fewer bits, behind their adapters."""
        if self.base == "fp32":
            return []
        found = []
        for name in layers:
            wrapper = model.get_submodule(name)
            wrapper.base_layer = held = Held(wrapper.base_layer, self.base)  # type: ignore[arg-type]
            found.append((wrapper, held))
        return found


# -- pieces -----------------------------------------------------------------------------------------------------


def load_peft() -> Any:
    """The peft library.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it imports
            import peft
    except ImportError as error:
        raise MissingExtra("peft", "peft") from error
    return peft


def tuner_layer() -> type:
    """What peft puts into a layer's place."""
    load_peft()
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: type = BaseTunerLayer
    return found


def linear_kinds() -> tuple[type[nn.Module], ...]:
    """Linear layers: torch's, and the transposed one of GPT-2."""
    load_peft()
    from transformers.pytorch_utils import Conv1D

    return nn.Linear, Conv1D


def exactly(layers: Mapping[str, nn.Module]) -> str:
    """The pattern of these names and no others: peft takes a list's names for ends of names."""
    return "|".join(map(re.escape, layers))


def transposed(layers: Mapping[str, nn.Module]) -> bool:
    """Whether the layers hold their weights as [in, out]."""
    return any(type(layer).__name__ == "Conv1D" for layer in layers.values())


def parted(groups: list[dict[str, Any]], apart: Collection[int], **settings: float) -> list[dict[str, Any]]:
    """Groups without the parameters whose identities stand in ``apart``, then those, with settings of their own.

    >>> a, b = torch.ones(2), torch.ones(3)
    >>> [(len(group["params"]), group.get("weight_decay")) for group in parted([{"params": [a, b]}], {id(b)}, weight_decay=0.0)]
    [(1, None), (1, 0.0)]
    """
    split = [{**group, "params": [p for p in group["params"] if (id(p) in apart) == own], **(settings if own else {})}
             for own in (False, True) for group in groups]
    return [group for group in split if group["params"]]


def trainable_share(model: nn.Module) -> float:
    """Parameters that require a gradient over all, adapters among them: as peft counts."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in counts if trained) / max(1, sum(n for n, _ in counts))


def fast_paths(model: nn.Module) -> list[nn.Module]:
    """Modules that in eval mode read the weights of their layers and would pass adapters by; a hook stops that."""
    return [module for module in model.modules() if isinstance(module, nn.TransformerEncoderLayer)]


def _nothing(module: nn.Module, inputs: Any) -> None:
    """A hook: that there is one is enough."""


def require_linear(method: Adapter, layers: Mapping[str, nn.Module]) -> None:
    """A base in fewer bits is that of nn.Linear layers.

    Raises:
        ThriftyError: another one is among them.
    """
    for name, layer in layers.items():
        if not isinstance(layer, nn.Linear):
            raise ThriftyError(f"{method.name}(base={method.base}) holds weights of nn.Linear layers, but {name} is "
                               f"{type(layer).__name__}: choose other targets, or base=fp32")
