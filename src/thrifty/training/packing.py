"""Sequence packing: examples of varying length share rows of one length, and none sees another."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, default_collate

from thrifty.errors import ThriftyError
from thrifty.recipes.claim import Claim
from thrifty.recipes.ranks import Alone, Ranks
from thrifty.recipes.session import Session
from thrifty.training.data import Loader
from thrifty.workloads.quality import as_inputs, length
from thrifty.workloads.workload import Batch, Loss, call_model

WINDOW = 1024
"""Examples that are packed at once: enough to fill rows, few enough that the order of an epoch stays random."""
LEAST_GAIN = 0.01
"""Share of padding that packing must save to be worth its masks."""
ROUNDING = 1e-4
"""Relative difference of outputs that summing in another order explains."""


# -- what is packed ---------------------------------------------------------------------------------------------


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of examples by first-fit decreasing: the longest first, each into the first row that has room for it.

    At most 11/9 of the least number of rows, and 6/9 of a row.

    Args:
        lengths: tokens of each example, none above ``capacity``.
        capacity: tokens of a row.

    Returns:
        the examples' places in ``lengths``, by row.

    Source: Johnson, "Near-optimal bin packing algorithms", 1973; Dosa, "The tight bound of first fit decreasing", 2007.

    >>> pack([3, 5, 2, 8], 8)
    [[3], [1, 0], [2]]
    """
    room = np.full(len(lengths), capacity)
    rows: list[list[int]] = [[] for _ in lengths]
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        first = int(np.argmax(room >= lengths[i]))
        room[first] -= lengths[i]
        rows[first].append(i)
    return [row for row in rows if row]


@final
class Sequences:
    """A data set's examples as sequences without their filling.

    An example ends with its last valid target: what stands behind it trains nothing, and no token before looks at it.

    Args:
        dataset: items ((ids [tokens],) or ids, targets [tokens]), as long as one another or not.
        ignored: target of a token that is not trained on.
        collate: joins items, called for one at a time.

    Raises:
        ThriftyError: the examples are no sequences with a target a token.
    """

    def __init__(self, dataset: Dataset[Any], ignored: int, collate: Callable[[list[Any]], Any] | None = None) -> None:
        self.dataset, self.ignored, self._collate = dataset, ignored, collate or default_collate
        found = [self.whole(i) for i in range(length(dataset))]
        self.lengths = [_end(target, ignored) for _, target in found]
        self.longest = max(len(ids) for ids, _ in found)

    def whole(self, i: int) -> tuple[Tensor, Tensor]:
        """(ids, targets) of an example, filling included."""
        inputs, target = self._collate([self.dataset[i]])
        inputs = as_inputs(inputs)
        if len(inputs) != 1:
            raise ThriftyError(f"packing needs token ids as the only input, but these examples have {len(inputs)} "
                               "inputs: a padding mask does not say where an example in a row ends; remove packing")
        if not isinstance(target, Tensor) or inputs[0].ndim != 2 or target.shape != inputs[0].shape:
            raise ThriftyError("packing needs a target for every token, but a batch of one example has inputs "
                               f"{_shape(inputs[0])} with targets {_shape(target)}: one answer to a whole row, as in "
                               "classification, would mix its examples; remove packing")
        return inputs[0][0], target[0]

    def rows(self, rows: Sequence[Sequence[int]]) -> Batch:
        """((ids, position_ids), targets), [rows, longest] int64 each.

        Positions begin at 0 in each example, and once more in the filling behind the last.
        """
        ids, positions = torch.zeros(2, len(rows), self.longest, dtype=torch.int64).unbind()
        target = torch.full_like(ids, self.ignored)
        for r, row in enumerate(rows):
            start = 0
            for i in row:
                end = start + self.lengths[i]
                known, wanted = self.whole(i)
                ids[r, start:end], target[r, start:end] = known[: self.lengths[i]], wanted[: self.lengths[i]]
                positions[r, start:end] = torch.arange(self.lengths[i])
                start = end
            positions[r, start:] = torch.arange(self.longest - start)
        return (ids, positions), target


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _end(target: Tensor, ignored: int) -> int:
    valid = (target != ignored).nonzero()
    return int(valid[-1]) + 1 if len(valid) else 1  # an example that trains nothing has its place all the same


# -- batches ----------------------------------------------------------------------------------------------------


@final
@dataclass
class PackedLoader:
    """Shuffled batches of packed rows, epoch after epoch, from a generator of its own.

    The examples are shuffled anew each epoch, packed a window of `WINDOW` at a time, and the rows of a window shuffled.

    Args:
        sequences: to pack.
        batch_size: rows, over all ranks.
        seed: of the order, the same on every rank.
        ranks: that train together; batches are this rank's part.
    """

    sequences: Sequences
    batch_size: int
    seed: int
    ranks: Ranks = Alone()

    def plan(self, epoch: int) -> list[list[int]]:
        """The rows of an epoch, as places in the data set: each example stands in one of them."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(len(self.sequences.lengths), generator=generator)
        rows: list[list[int]] = []
        for chosen in order.split(WINDOW):
            examples = chosen.tolist()
            packed = pack([self.sequences.lengths[i] for i in examples], self.sequences.longest)
            shuffled = torch.randperm(len(packed), generator=generator).tolist()
            rows += [[examples[i] for i in packed[r]] for r in shuffled]
        return rows

    def batches(self, skip: int = 0) -> Iterator[Batch]:
        """Batches without end; the first ``skip`` of them are passed over unread."""
        epoch = 0
        while True:
            chosen = self._batches(epoch)
            for rows in chosen[skip:]:
                yield self.sequences.rows(rows[self.ranks.index * len(rows) // self.ranks.count :
                                               (self.ranks.index + 1) * len(rows) // self.ranks.count])
            skip, epoch = max(0, skip - len(chosen)), epoch + 1

    def steps(self, epochs: float) -> int:
        whole = int(epochs)
        counts = sum(len(self._batches(epoch)) for epoch in range(whole))
        rest = (epochs - whole) * len(self._batches(whole)) if epochs > whole else 0
        return max(1, round(counts + rest))

    def again(self, batch_size: int, seed: int) -> PackedLoader:
        return PackedLoader(self.sequences, batch_size, seed)

    def _batches(self, epoch: int) -> list[list[list[int]]]:
        rows = self.plan(epoch)
        # A smaller last batch waits for the next epoch, as in `Loader`.
        kept = rows[: len(rows) - len(rows) % self.batch_size] or rows
        return [kept[i : i + self.batch_size] for i in range(0, len(kept), self.batch_size)]

    # -- what packing is worth ----------------------------------------------------------------------------------

    @property
    def padding(self) -> tuple[float, float]:
        """Share of padding in the examples, filled up to the longest as they come, and in the first epoch's rows."""
        lengths, longest = self.sequences.lengths, self.sequences.longest
        return 1 - sum(lengths) / (len(lengths) * longest), 1 - sum(lengths) / (self._rows * longest)

    @functools.cached_property
    def _rows(self) -> int:
        return len(self.plan(0))

    @property
    def examples_per_batch(self) -> float:
        return self.batch_size * len(self.sequences.lengths) / self._rows

    @property
    def tokens_per_batch(self) -> float:
        return self.batch_size * self.sequences.longest * (1 - self.padding[1])

    def claims(self) -> tuple[tuple[str, Claim], ...]:
        before, after = self.padding
        return (("packing", Claim("share of padding", before, after, minimum=LEAST_GAIN)),)

    def require_suited(self, session: Session) -> None:
        """Refuse data that gain nothing, and a model for which a row is more than its examples.

        Raises:
            ThriftyError: either.
        """
        lengths, longest = self.sequences.lengths, self.sequences.longest
        before, after = self.padding
        if before - after < LEAST_GAIN:
            least, most = min(lengths), max(lengths)
            which = (f"every example has {most} tokens" if least == most else
                     f"rows of {longest} tokens have {100 * before:.2g}% of padding, packed {100 * after:.2g}%")
            raise ThriftyError(f"{which}: packing gains nothing; remove it")
        require_positions(session)
        require_independence(session, self.sequences)


def make_loader(data: Dataset[Any], batch_size: int, seed: int, collate: Callable[[list[Any]], Any] | None,
                packing: bool, loss: Loss, ranks: Ranks = Alone(), workers: int = 0) -> Loader | PackedLoader:
    """Batches of examples, or of packed rows, which are all in memory and need no workers."""
    if not packing:
        return Loader(data, batch_size, seed, collate, ranks, workers)
    return PackedLoader(Sequences(data, getattr(loss, "ignore_index", -100), collate), batch_size, seed, ranks)


# -- which models may be packed ---------------------------------------------------------------------------------


def takes_positions(model: nn.Module) -> bool:
    """Whether the second input of a module's forward is ``position_ids``."""
    return list(inspect.signature(model.forward).parameters)[1:2] == ["position_ids"]


def require_positions(session: Session) -> None:
    """Packed rows come with positions, which the model must take.

    Raises:
        ThriftyError: it does not.
    """
    if session.forward is call_model and not takes_positions(session.model):
        raise ThriftyError(f"{type(session.model).__name__} takes no position_ids as its second input, so it cannot know "
                           "where an example in a packed row begins; use a causal language model of transformers, give its "
                           "forward such an input, or remove packing")


def require_independence(session: Session, sequences: Sequences) -> None:
    """Two examples in one row must give what each gives alone.

    Whatever the model is, that is what its packed gradient needs: attention that ends where an example begins,
    positions that begin anew, no state carried over, nothing read from filling behind an example. What a neighboring
    row changes by itself (one scale for a whole batch in 8 bits) is not counted.

    Raises:
        ThriftyError: they do not; says by how much.
    """
    first, second = _pair(sequences)
    start, tokens = sequences.lengths[first], sequences.lengths[second]
    (row, positions), _ = sequences.rows([[first, second]])
    alone = pad_sequence([sequences.whole(i)[0] for i in (second, first)], batch_first=True)
    alone = torch.nn.functional.pad(alone, (0, sequences.longest - alone.shape[1]))
    steady = torch.arange(sequences.longest).expand(2, -1)
    packed = _outputs(session, row, positions)[0, start : start + tokens]
    want = _outputs(session, alone[:1], steady[:1])[0, :tokens]
    beside = _outputs(session, alone, steady)[0, :tokens]
    scale = float(want.norm())
    difference, usual = float((packed - want).norm()), float((beside - want).norm())
    if not difference <= max(ROUNDING * scale, 4 * usual):
        raise ThriftyError(f"in a packed row {type(session.model).__name__} gives an example different outputs than alone (by "
                           f"{100 * difference / scale:.2g}%): it attends to or carries over what is beside it, as "
                           "recurrent and bidirectional models and learned prefixes do; remove packing")


def _pair(sequences: Sequences) -> tuple[int, int]:
    """Two examples that fit in one row: the longest of those that fill at most half of one, or the two shortest."""
    found = sorted(range(len(sequences.lengths)), key=lambda i: sequences.lengths[i])
    short = [i for i in found if 2 * sequences.lengths[i] <= sequences.longest]
    first, second = short[-2:] if len(short) > 1 else found[:2]
    return first, second


def _outputs(session: Session, ids: Tensor, positions: Tensor) -> Tensor:
    """The bare model's outputs, in eval mode and uncompiled: random generators and statistics are left as they are."""
    batch = ((ids.to(session.device), positions.to(session.device)), torch.zeros_like(ids, device=session.device))
    training = [(module, module.training) for module in session.model.modules()]
    session.model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            outputs = session.call(session.model, batch)
    finally:
        for module, flag in training:
            module.training = flag
    if not isinstance(outputs, Tensor) or outputs.shape[:2] != ids.shape:
        raise ThriftyError("packing needs outputs for every token, [rows, tokens, classes], but "
                           f"{type(session.model).__name__} gives {_shape(outputs)}; remove packing")
    return outputs.double()
