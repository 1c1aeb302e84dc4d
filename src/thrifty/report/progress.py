"""What goes on, told on stderr while it does: bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TextIO, final

from thrifty.report.verbosity import Verbosity
from thrifty.report.words import NOT_MEASURED, literal, ratio, scaled, seconds
from thrifty.studies.events import (
    BudgetSpent,
    Charged,
    Event,
    Noted,
    PhaseBegan,
    Promoted,
    RecipeBegan,
    Stepped,
    SweepBegan,
    TrialEnded,
)
from thrifty.studies.ledger import Charge
from thrifty.studies.trial import Trial
from thrifty.units import fixed


@dataclass
class _Step:
    """One thing under way, inside the one before it."""

    title: str
    total: float | None
    began: float
    done: float = 0.0
    bar: Any = None
    said: float = field(default=0.0)

    def left(self, now: float) -> float | None:
        """Seconds left if the rest goes as what is done; None where that is not known."""
        if self.total is None or not 0 < self.done <= self.total:
            return None
        return (now - self.began) / self.done * (self.total - self.done)


@final
class Progress:
    """Nested steps with the time left.

    Args:
        file: stderr where None.
        every: seconds between two plain lines about one step.
        clock: seconds, for tests.
        verbosity: what this process was asked for where None; quiet, nothing is told.

    >>> import io
    >>> with Progress(io.StringIO()) as progress, progress.step("recipes", total=2):
    ...     progress.advance()
    ...     progress.note("halfway")
    """

    def __init__(self, file: TextIO | None = None, every: float = 10.0,
                 clock: Callable[[], float] = time.monotonic, verbosity: Verbosity | None = None) -> None:
        self._file = sys.stderr if file is None else file
        self._every, self._clock = every, clock
        self._steps: list[_Step] = []
        self._began = clock()
        self._outer = 0  # how many of the steps outlast a recipe
        self._bars: Any = None
        self._verbosity = verbosity or Verbosity.asked()
        if self._file.isatty() and self._verbosity is not Verbosity.quiet:
            self._bars = _bars(self._file)

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._keep(0)
        if self._bars is not None:
            self._bars.stop()

    def start(self, title: str, total: float | None = None) -> None:
        """Begin a step inside the current one."""
        step = _Step(literal(title), total, self._clock())
        step.said = step.began
        if self._bars is not None:
            step.bar = self._bars.add_task("  " * len(self._steps) + _short(step.title), total=total)
        elif total is None or len(self._steps):
            self._line(f"{'  ' * len(self._steps)}{self._position()}{step.title}")
        self._steps.append(step)

    def advance(self, amount: float = 1.0) -> None:
        """So much more of the current step is done."""
        if self._steps:
            self.reach(self._steps[-1].done + amount)

    def reach(self, done: float, total: float | None = None, text: str = "") -> None:
        """The current step has come this far."""
        if not self._steps:
            return
        step, now = self._steps[-1], self._clock()
        step.done, step.total = done, step.total if total is None else total
        if step.bar is not None:
            self._bars.update(step.bar, completed=done, total=step.total)
        elif now - step.said >= self._every:
            step.said = now
            of = "" if step.total is None else f"/{step.total:g}"
            left = step.left(now)
            rest = "" if left is None else f", about {seconds(left)} left"
            self._line(f"{'  ' * len(self._steps)}{done:g}{of}{' ' if text else ''}{literal(text)}{rest}")

    def finish(self) -> None:
        """End the current step."""
        self._keep(len(self._steps) - 1)

    @contextlib.contextmanager
    def step(self, title: str, total: float | None = None) -> Iterator[None]:
        """A step that ends with the context, and with it those inside."""
        depth = len(self._steps)
        self.start(title, total)
        try:
            yield
        finally:
            self._keep(depth)

    def note(self, text: str) -> None:
        """Say something that stays to be read."""
        self._line("  " * len(self._steps) + literal(text))

    def hear(self, event: Event) -> None:
        """Follow the events of a run; what it shows nothing of is passed over."""
        match event:
            case SweepBegan(total=total):
                self._keep(0)
                self.start("recipes", total)
                self._outer = 1
            case BudgetSpent(total=total, spent=spent):
                if not self._steps or self._steps[0].title != "exploring":
                    self._keep(0)
                    self.start("exploring", total)
                    self._outer = 1
                self._keep(1)
                self._steps[0].said = self._clock()  # each recipe says how much of the budget is gone
                self.reach(spent)
            case RecipeBegan(text=text):
                self._keep(self._outer)
                if self._bars is not None:
                    self.note(f"{self._position()}{text}")  # whole, above its bar, which has room for a part
                self.start(text)
            case PhaseBegan(text=text):
                self._keep(self._outer + 1)
                self.start(text)
            case Stepped(step=done, total=total, text=text):
                self.reach(done, total, text)
            case Charged(charge=charge) if self._verbosity is Verbosity.verbose:
                self.note(_charged(charge))
            case Noted(text=text):
                self.note(text)
            case Promoted(total=total, pairs=pairs):
                self._keep(0)
                self.note(f"the fastest on the front are measured again, {pairs} pairs each, and scored on test")
                self.start("measured again", total)
            case TrialEnded(trial=trial):
                self._keep(self._outer)
                self.note(_outcome(trial))
                if self._steps and self._steps[-1].title != "exploring":  # whose measure is time
                    self.advance()

    def _position(self) -> str:
        """Which one of how many comes next, and how long the rest will take."""
        if not self._steps or self._steps[-1].total is None:
            return ""
        outer = self._steps[-1]
        if outer.title == "exploring":
            return f"{_clock(outer.done).strip()} of {_clock(outer.total or 0).strip()}: "
        left = outer.left(self._clock())
        rest = "" if left is None else f" (about {seconds(left)} left)"
        return f"{min(outer.done + 1, outer.total or 0):g}/{outer.total:g}{rest} "

    def _keep(self, depth: int) -> None:
        while len(self._steps) > max(0, depth):
            step = self._steps.pop()
            if step.bar is not None:
                self._bars.remove_task(step.bar)
        self._outer = min(self._outer, len(self._steps))

    def _line(self, text: str) -> None:
        """Progress that nobody can read any more (a closed pipe, an encoding) must not end the run."""
        if self._verbosity is Verbosity.quiet:
            return
        line = f"[{_clock(self._clock() - self._began)}] {text}"
        with contextlib.suppress(OSError, ValueError):
            if self._bars is not None:
                from rich.text import Text

                self._bars.console.print(Text(line))
            else:
                encoding = getattr(self._file, "encoding", None) or "utf-8"
                self._file.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
                self._file.flush()


def _charged(charge: Charge) -> str:
    """What something took, as far as it was measured."""
    figures = [("", seconds(charge.seconds)), ("", scaled(charge.flops, "FLOP")),
               ("peak memory ", scaled(charge.peak_memory_bytes, "B")), ("GPU memory ", scaled(charge.device_memory_bytes, "B"))]
    return f"{charge.kind} of {charge.what}: " + ", ".join(f"{name}{value}" for name, value in figures if value != NOT_MEASURED)


def _outcome(trial: Trial) -> str:
    if trial.status != "done":
        return f"failed: {trial.error}"
    if trial.inference is None and trial.quality is not None:
        return f"done: {trial.quality.name} {fixed(trial.quality.value)}"
    return f"done: {ratio(trial.inference and trial.inference.speedup)}"


def _short(title: str) -> str:
    return title if len(title) <= 48 else title[:45] + "..."


def _clock(elapsed: float) -> str:
    return f"{int(elapsed) // 60:3d}:{int(elapsed) % 60:02d}"


def _bars(file: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Left(ProgressColumn):
        """The time left by the mean so far: rich's own estimate says nothing before the second of two steps."""

        def render(self, task: Any) -> Text:
            done, total, elapsed = task.completed, task.total, task.elapsed
            if not total or not 0 < done <= total or elapsed is None:
                return Text("")
            return Text(f"{seconds(round(elapsed / done * (total - done)))} left", style="cyan")

    return Bars(
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeElapsedColumn(), Left(), console=Console(file=file, highlight=False), transient=True,
        redirect_stdout=False,  # stdout is for results
    )
