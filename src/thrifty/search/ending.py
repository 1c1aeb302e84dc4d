"""How an exploration ended: what stopped it, what it skipped, what would come next."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, final

Ended = Literal["budget", "nothing left", "interrupted", "error"]


@final
@dataclass(frozen=True)
class Waiting:
    """A recipe that did not run: what it was estimated at, in seconds, and why it was skipped."""

    recipe: str
    seconds: float
    reason: str = ""


@final
@dataclass(frozen=True)
class Ending:
    """How an exploration ended.

    Args:
        ended: by its budget, for want of recipes, by the user, or by an error.
        why: in one sentence.
        budget, spent: seconds, of the study in all.
        skipped: recipes that did not fit into what was left.
        next: what would run next with a larger budget.
    """

    ended: Ended
    why: str
    budget: float
    spent: float
    skipped: tuple[Waiting, ...] = ()
    next: tuple[Waiting, ...] = ()

    @property
    def says(self) -> str:
        """All of it in a few sentences.

        >>> Ending("budget", "no recipe fits into 2.0 s", 60, 58, next=(Waiting("train()", 9.0),)).says
        'stopped after 58 of 60 s: no recipe fits into 2.0 s; next would come: train() (about 9 s)'
        """
        parts = [f"stopped after {self.spent:.0f} of {self.budget:g} s: {self.why}"]
        if self.skipped:
            parts.append("skipped: " + ", ".join(f"{one.recipe} ({one.reason})" for one in self.skipped[:3])
                         + (f" and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else ""))
        if self.next:
            parts.append("next would come: " + ", ".join(f"{one.recipe} (about {one.seconds:.0f} s)" for one in self.next[:3]))
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "says": self.says}
