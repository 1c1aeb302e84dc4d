"""Prompt and prefix tuning of Hugging Face models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import nn

from thrifty.errors import ThriftyError
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.hyperparameters import choice, number
from thrifty.recipes.training_method import Stage, TrainingMethod
from thrifty.training.peft.adapter import ADAPTER, load_peft, trainable_share, tuner_layer

if TYPE_CHECKING:
    from thrifty.recipes.session import Session


@final
@dataclass(frozen=True)
class PromptTuning(TrainingMethod):
    """Learned tokens before a frozen language model's input, or learned keys and values before those of every layer.

    No weight can take them in: training leaves a model with the prompt in it, whose structure is not the one that
    came. So a recipe, whose checkpoints are the workload's model and weights, has no name for it; it is for
    ``thrifty.fit`` and for a loop of your own.

    Args:
        kind: "prompt": embeddings [tokens, width] before the input's; "prefix": keys and values in every layer.
        tokens: that are learned; the model's context holds as many fewer.

    >>> PromptTuning("prefix", tokens=8)
    PromptTuning(kind='prefix', tokens=8)
    """

    kind: str = choice("prompt", "prompt", "prefix")
    tokens: int = number(16, 1, log=True)

    name: ClassVar[str] = "prompt_tuning"
    stage: ClassVar[Stage] = "structure"
    card: ClassVar[Card] = Card(
        family="peft",
        benefit="training time",
        trade_off="every request computes the prompt's tokens too; it cannot be merged",
        paper='"The Power of Scale for Parameter-Efficient Prompt Tuning", Lester et al. 2021, arXiv:2104.08691; '
              '"Prefix-Tuning", Li and Liang 2021, arXiv:2101.00190',
        needs=frozenset({"labels"}),
        requires=frozenset({"module", "float-weights", "trained"}),
        refuses=frozenset({"adapters"}),
        holds=frozenset({"adapters"}),
    )

    def prepare(self, session: Session) -> None:
        peft, model = load_peft(), session.model
        require_language_model(model)
        chosen = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}[self.kind]
        frozen = [(p, p.requires_grad) for p in model.parameters()]
        tuned = peft.get_peft_model(model, chosen(task_type="CAUSAL_LM", num_virtual_tokens=self.tokens), ADAPTER)
        session.model = Prompted(tuned, self.tokens if self.kind == "prompt" else 0).train()
        start = {name: p.detach().clone() for name, p in session.model.named_parameters() if p.requires_grad}
        session.memory(self).update(share=trainable_share(session.model), start=start, frozen=frozen)

    def parameter_groups(self, session: Session, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**group, "weight_decay": 0.0} for group in groups]  # embeddings: zero is not neutral

    def finish(self, session: Session, model: nn.Module) -> nn.Module:
        for parameter, flag in session.memory(self)["frozen"]:
            parameter.requires_grad_(flag)
        return model

    def claims(self, session: Session) -> tuple[Claim, ...]:
        memory, now = session.memory(self), dict(session.model.named_parameters())
        moved = sum(not torch.equal(now[name].detach(), p) for name, p in memory["start"].items())
        return (Claim("share of trainable parameters", 1.0, memory["share"], minimum=0.1),
                Claim("learned prompts that moved", 0.0, float(moved), minimum=1.0))


@final
class Prompted(nn.Module):
    """A language model behind its prompt: logits of the request's own tokens, ``skipped`` ones before them left out."""

    def __init__(self, tuned: nn.Module, skipped: int) -> None:
        super().__init__()
        self.tuned, self.skipped = tuned, skipped

    def forward(self, *inputs: Any, **named: Any) -> Any:
        outputs = self.tuned(*inputs, **named)
        outputs.logits = outputs.logits[:, self.skipped:]
        return outputs


def require_language_model(model: nn.Module) -> None:
    """Prompts go before the tokens of a Hugging Face causal language model.

    Raises:
        ThriftyError: it is another module, or is adapted already.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise ThriftyError(f"prompt tuning needs a Hugging Face causal language model, but this is {type(model).__name__}: "
                           "only its configuration says where token embeddings and the layers' keys and values "
                           "enter; use Lora, Ia3 or Vera")
    if any(isinstance(module, tuner_layer()) for module in model.modules()):
        raise ThriftyError("the model is already adapted: merge that adapter first, as merge_and_unload() does")
