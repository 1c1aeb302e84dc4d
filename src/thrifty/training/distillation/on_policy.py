"""Texts that a student continues itself, to be judged by its teacher: on-policy distillation of language models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from thrifty.errors import ThriftyError

if TYPE_CHECKING:
    from thrifty.recipes.session import Session
    from thrifty.workloads.workload import Batch


@final
@dataclass(frozen=True)
class Continued:
    """A batch whose texts end as the student would have them.

    Args:
        batch: the inputs, the token numbers first; the targets are those of the batch that it was made from, and no longer
            theirs.
        rows: [rows] of the texts that are long enough to be continued.
        start: first place whose prediction was drawn.
        count: of those places.
    """

    batch: Batch
    rows: Tensor
    start: int
    count: int

    def logits(self, outputs: Any) -> Tensor:
        """[n, vocabulary] at the places whose next token was drawn."""
        return logits_of(outputs)[self.rows, self.start : self.start + self.count].flatten(0, 1)  # type: ignore[no-any-return]


def continued(session: Session, batch: Batch, count: int) -> Continued | None:
    """Let the student continue the beginning of each text, token by token, drawn from its own distribution.

    Args:
        session: of a model (ids [batch, tokens], ...) -> logits [batch, tokens, vocabulary] in which no place sees a later one.
        batch: its texts keep all but their last ``count`` tokens.
        count: tokens to draw.

    Returns:
        the batch, or None where no text reaches so far: those that end earlier are padding from there on.

    Raises:
        ThriftyError: the inputs or outputs are not a language model's, or texts are too short.

    Source: "On-Policy Distillation of Language Models", Agarwal et al. 2023, arXiv:2306.13649, algorithm 1.
    """
    ids, others = batch[0][0], batch[0][1:]
    if ids.dim() != 2 or ids.is_floating_point():
        raise ThriftyError(f"distill(on_policy=...) continues texts, but the first input is {tuple(ids.shape)} {ids.dtype}: it "
                           "must be token ids [batch, tokens]")
    start = ids.shape[1] - count
    if start < 1:
        raise ThriftyError(f"distill(sampled={count}) needs texts of more than {count} tokens, but these have {ids.shape[1]}: "
                           f"draw fewer, sampled={max(1, ids.shape[1] // 2)}")
    rows = _reaching(session, batch, start)
    if not len(rows):
        return None
    ids = ids.clone()
    was_training = session.model.training
    session.model.eval()
    with torch.no_grad():
        for place in range(start, ids.shape[1]):
            inputs = (ids[:, :place], *(x[:, :place] if x.shape[:2] == ids.shape else x for x in others))
            last = logits_of(session.call(session.model, (inputs, batch[1])))[:, place - 1]
            ids[:, place] = torch.multinomial(last.float().softmax(-1), 1)[:, 0].to(ids.dtype)
    session.model.train(was_training)
    return Continued(((ids, *others), batch[1]), rows, start - 1, count)


def logits_of(outputs: Any) -> Tensor:
    """A language model's logits [batch, tokens, vocabulary].

    Raises:
        ThriftyError: there are none.
    """
    tensors = [x for x in torch.utils._pytree.tree_leaves(outputs) if isinstance(x, Tensor)]
    if not tensors or tensors[0].dim() != 3:
        given = ", ".join(str(tuple(x.shape)) for x in tensors) or type(outputs).__name__
        raise ThriftyError(f"distill(on_policy=...) needs logits [batch, tokens, vocabulary], but the model gives {given}")
    return tensors[0]


def _reaching(session: Session, batch: Batch, start: int) -> Tensor:
    """Rows with a token that counts from ``start`` on: their beginning is no padding."""
    ids = batch[0][0]
    _, valid = session.loss.logits(torch.zeros(*ids.shape, 2, device=ids.device), batch)
    return valid.reshape(ids.shape)[:, start:].any(1).nonzero()[:, 0]
