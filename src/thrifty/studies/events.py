"""What is told while things go on: frozen values that the terminal, the page and a live view read alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from thrifty.studies.ledger import Charge
from thrifty.studies.serialization import plain, typed
from thrifty.studies.trial import Trial


@final
@dataclass(frozen=True)
class SweepBegan:
    """So many recipes will run."""

    total: int


@final
@dataclass(frozen=True)
class BudgetSpent:
    """So many seconds of an exploration's budget are gone."""

    total: float
    spent: float


@final
@dataclass(frozen=True)
class Proposed:
    """Recipes that a search will run next, as text."""

    recipes: tuple[str, ...]


@final
@dataclass(frozen=True)
class Promoted:
    """So many trials of the front are measured again, with so many pairs of processes each."""

    total: int
    pairs: int


@final
@dataclass(frozen=True)
class RecipeBegan:
    """A recipe runs; ``id`` is its trial's."""

    text: str
    id: str


@final
@dataclass(frozen=True)
class PhaseBegan:
    """A phase of the recipe runs, or a part of its measurement."""

    text: str


@final
@dataclass(frozen=True)
class Stepped:
    """The phase has come so far.

    Args:
        step, total: of its steps.
        text: what was just done.
        loss: of the training step.
        examples_per_second, tokens_per_second: trained on; tokens without padding.
        seconds_left: until the last step.
    """

    step: int
    total: int | None = None
    text: str = ""
    loss: float | None = None
    examples_per_second: float | None = None
    seconds_left: float | None = None
    tokens_per_second: float | None = None


@final
@dataclass(frozen=True)
class Noted:
    """Something that stays to be read."""

    text: str


@final
@dataclass(frozen=True)
class Charged:
    """Something was paid for."""

    charge: Charge


@final
@dataclass(frozen=True)
class TrialEnded:
    """A trial is in the store."""

    trial: Trial


Event = (SweepBegan | BudgetSpent | Proposed | Promoted | RecipeBegan | PhaseBegan | Stepped | Noted | Charged | TrialEnded)
Listener = Callable[[Event], None]

_KINDS: dict[str, type] = {kind.__name__: kind for kind in (
    SweepBegan, BudgetSpent, Proposed, Promoted, RecipeBegan, PhaseBegan, Stepped, Noted, Charged, TrialEnded)}


def ignore(event: Event) -> None:
    """A listener that hears nothing."""


def to_json(event: Event) -> dict[str, Any]:
    """The event as JSON values, with its kind.

    >>> to_json(Noted("hello"))
    {'event': 'Noted', 'text': 'hello'}
    """
    return {"event": type(event).__name__, **plain(event)}


def from_json(values: dict[str, Any]) -> Event:
    """The event that `to_json` wrote.

    Raises:
        ValueError: it is none.

    >>> from_json({"event": "Noted", "text": "hello"})
    Noted(text='hello')
    """
    rest = {key: value for key, value in values.items() if key != "event"}
    kind = _KINDS.get(values.get("event", ""))
    if kind is None:
        raise ValueError(f"{values.get('event')!r} is not an event")
    found: Event = typed(kind, rest)
    return found
