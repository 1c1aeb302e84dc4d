"""Blockwise local distillation: a block learns to stand in another's place, from recorded inputs and outputs alone.

The rest of the model is run once, to record; after that every alternative to a block trains by itself, so that many can be
compared at the price of a few passes through one block each. A search over a model's alternatives wants that before it
ranks them: rankings made without it turn round once the whole is trained.

    examples = record(model, ["blocks.3"], batches)["blocks.3"]
    trained = distil_block(candidate, examples, steps=100)
    trained.student, trained.error_before, trained.error      # errors are of held-out examples

A method that plans reaches this as ``context.distil``, which charges it, keeps it and holds it to the budget.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.recipes.context import DistilledBlock
from thrifty.training.flops import count_flops

HELD_OUT = 4
"""One in so many examples is held out, to judge by."""
CHECKS = 4
"""Times that a training is judged; the best state is what stays."""


@final
@dataclass(frozen=True)
class Example:
    """One call of a block, as it was recorded.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        output: what the teacher's block gave: a tensor, or a nest of lists, tuples and dictionaries of them.
        valid: [batch] or [batch, tokens] bool, the places that count; all of them where None.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    valid: Tensor | None = None


def record(model: nn.Module, names: Sequence[str], batches: Iterable[tuple[Tensor, ...]],
           valid: int | None = None) -> dict[str, list[Example]]:
    """Record the inputs and outputs of blocks of a model, all in one pass over the batches.

    Args:
        model: put into eval mode for the pass.
        names: names of its blocks; each is called once a pass.
        batches: batches of the model's inputs.
        valid: position of the input that is a mask [batch, tokens] of the places that count; all count where None.

    Returns:
        {name: [an example for each batch]}, detached, on the device of the model.

    Raises:
        ThriftyError: the model has no such block, or does not call it, or calls it several times.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> examples = record(model, ["2"], [(torch.randn(3, 4),), (torch.randn(5, 4),)])["2"]
    >>> [tuple(example.output.shape) for example in examples]
    [(3, 2), (5, 2)]
    """
    modules = dict(model.named_modules())
    if missing := [name for name in names if name not in modules]:
        raise ThriftyError(f"the model has no block {missing[0]!r}; it has {', '.join(list(modules)[1:6])}, ...")
    found: dict[str, list[Example]] = {name: [] for name in names}
    read: dict[str, tuple[Any, Any]] = {}
    mask: Tensor | None = None

    def note(name: str) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read[name] = _copied(args), _copied(kwargs)

        return before

    def see(name: str) -> Any:
        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            found[name].append(Example(*read.pop(name), _copied(output), mask))

        return after

    # What it reads is copied before the block runs, which may write over it.
    handles = [modules[name].register_forward_pre_hook(note(name), with_kwargs=True) for name in names]
    handles += [modules[name].register_forward_hook(see(name), with_kwargs=True) for name in names]
    was_training = model.training
    try:
        with torch.no_grad():
            for count, inputs in enumerate(batches, 1):
                mask = None if valid is None else inputs[valid].bool()
                model.eval()(*inputs)
                if odd := [name for name in names if len(found[name]) != count]:
                    times = "not called" if len(found[odd[0]]) < count else "called several times"
                    raise ThriftyError(f"{odd[0]} is {times} in one pass of the model: name a block that is called once")
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return found


def distil_block(student: nn.Module, examples: Sequence[Example], *, steps: int | None = None, seconds: float = math.inf,
                 lr: float = 1e-3, seed: int = 0) -> DistilledBlock:
    """Train a block to reproduce another block's outputs, from recorded examples.

        error = sum |student(x) - y|^2 / sum |y|^2,     over the places that count of all floating-point outputs

    Adam on all floating-point parameters, one example a step in an order drawn anew each pass, the rate falling to zero
    along a cosine. One in four examples is held out (none where there is one alone); the errors are theirs, the state that
    does best on them is kept, and so the error is never above the one that it began with. The block stays in eval mode:
    what is trained is what is served, batch norms' statistics included.

    Args:
        student: a block of the same inputs and outputs as the block that was recorded; copied, not changed.
        examples: examples of the teacher's block, from `record`; or of inputs that another model gave it.
        steps: most optimizer steps; 100 where neither they nor seconds are given. With steps alone the same seed gives the
            same weights.
        seconds: most seconds of training; the rate falls by whichever of the two runs out first.
        lr: Adam's rate at the start.
        seed: seed of the order of the examples.

    Returns:
        the trained copy, its error before and after, steps, seconds and FLOPs. A student without floating-point
        parameters (an identity, integer layers) comes back as it is, with its error and 0 steps.

    Raises:
        ThriftyError: no examples; steps, seconds or lr below 0; outputs of other shapes; an error that is not finite.

    >>> torch.manual_seed(0) and None
    >>> teacher, student = nn.Linear(4, 4), nn.Linear(4, 4)
    >>> examples = record(nn.Sequential(teacher), ["0"], [(torch.randn(32, 4),) for _ in range(8)])["0"]
    >>> found = distil_block(student, examples, steps=200, lr=0.05)
    >>> found.error < 0.01 * found.error_before
    True

    Source: "Puzzle: Distillation-Based NAS for Inference-Optimized LLMs", Bercovich et al. 2024, arXiv:2411.19146,
    section on blockwise local distillation, whose error this is.
    """
    if not examples:
        raise ThriftyError("there are no examples to distill a block from: record at least one batch")
    for name, value in (("steps", steps), ("seconds", seconds), ("lr", lr)):
        if value is not None and not value >= 0:
            raise ThriftyError(f"{name}={value}: {name} must be 0 or more")
    if steps is None and seconds == math.inf:
        steps = 100
    began = time.perf_counter()
    held = examples[::HELD_OUT] if len(examples) > 1 else examples
    seen = [example for i, example in enumerate(examples) if i % HELD_OUT] or list(examples)
    student = copy.deepcopy(student).eval()
    judge = _Judge(student, held)
    parameters = [p for p in student.parameters() if p.is_floating_point()]
    taken, flops = 0, 0.0
    with _trainable(parameters), torch.enable_grad():
        optimizer = torch.optim.Adam(parameters, lr=lr) if parameters else None
        for example in _shuffled(seen, seed):
            spent = (time.perf_counter() - began) / seconds if seconds else 1.0
            progress = max(spent, taken / steps if steps else float(steps == 0))
            if progress >= 1 or optimizer is None:
                break
            if progress * CHECKS >= judge.judged:
                judge.look()
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * progress))
            step = functools.partial(_step, student, example, optimizer)
            if taken:
                step()
            else:
                _, count = count_flops(step)
                flops = count.flops
            taken += 1
    if taken:
        judge.look()
        judge.settle()
    return DistilledBlock(student, judge.before, judge.best, taken, time.perf_counter() - began,
                          flops * taken + judge.flops * judge.judged)


class _Judge:
    """Keeps the state of a block that does best on examples held out."""

    def __init__(self, block: nn.Module, examples: Sequence[Example]) -> None:
        self._block, self._examples = block, examples
        (self.before, count) = count_flops(self._error)
        self.best, self.judged, self.flops = self.before, 1, count.flops
        self._kept = self._state()
        if not math.isfinite(self.before):
            raise ThriftyError(f"the block's error is {self.before} before any step: what it gives or what was recorded is "
                               "not finite")

    def look(self) -> None:
        self.judged += 1
        if (found := self._error()) < self.best:
            self.best, self._kept = found, self._state()

    def settle(self) -> None:
        """Give the block the best state that was seen."""
        self._block.load_state_dict(self._kept)

    def _state(self) -> dict[str, Any]:
        return {name: x.clone() if isinstance(x, Tensor) else x for name, x in self._block.state_dict().items()}

    @torch.no_grad()
    def _error(self) -> float:
        parts = [torch.stack(difference(self._block, example)).double() for example in self._examples]
        apart, size = torch.stack(parts).sum(0).tolist()
        return apart / max(size, 1e-30)


def difference(block: nn.Module, example: Example) -> tuple[Tensor, Tensor]:
    """(sum |block(x) - y|^2, sum |y|^2) over the places of an example that count.

    Raises:
        ThriftyError: the outputs' shapes are not those that were recorded.
    """
    given = _floats(block(*_copied(example.args), **_copied(example.kwargs)))
    wanted = _floats(example.output)
    if [x.shape for x in given] != [y.shape for y in wanted]:
        raise ThriftyError(f"the block outputs {[tuple(x.shape) for x in given]} where {[tuple(y.shape) for y in wanted]} was "
                           "recorded: a block can replace another only if its outputs have the same shapes")
    apart = size = torch.zeros((), device=wanted[0].device if wanted else None)
    for x, y in zip(given, wanted, strict=True):
        x, y = x.float(), y.float()
        if example.valid is not None and y.shape[: example.valid.dim()] == example.valid.shape:
            x, y = x[example.valid], y[example.valid]
        apart, size = apart + (x - y).square().sum(), size + y.square().sum()
    return apart, size


def _step(block: nn.Module, example: Example, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    apart, size = difference(block, example)
    if apart.requires_grad and float(size):
        (apart / size).backward()
        optimizer.step()


def _shuffled(examples: Sequence[Example], seed: int) -> Iterator[Example]:
    """Endlessly, in an order drawn anew each pass."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for i in torch.randperm(len(examples), generator=generator).tolist():
            yield examples[i]


@contextlib.contextmanager
def _trainable(parameters: list[nn.Parameter]) -> Iterator[None]:
    """All of them trained for a while; then as they were, without gradients."""
    asked = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p, flag in zip(parameters, asked, strict=True):
            p.requires_grad_(flag)
            p.grad = None


def _copied(value: Any) -> Any:
    return _mapped(value, lambda x: x.detach().clone())


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest of tuples, lists and dictionaries, its tensors changed; anything else as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_mapped(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _floats(value: Any) -> list[Tensor]:
    """The floating-point tensors of a nest, in order."""
    found: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        found.append(x)
        return x

    _mapped(value, note)
    return [x for x in found if x.is_floating_point()]
