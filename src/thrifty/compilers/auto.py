"""The fastest right engine: every compiler that is installed and applies lowers the model, and they race."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from thrifty.artifacts import artifact
from thrifty.artifacts.lowered import Lowered
from thrifty.compilers.capture import LoweringError, precision_of
from thrifty.compilers.parity import as_tuple, check_parity, check_random
from thrifty.measure.sides import ArtifactSide
from thrifty.measure.timing import Effort, compare
from thrifty.recipes.card import Card
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import number
from thrifty.recipes.registry import method_class, names

ORDER = ("openvino", "onnxruntime", "inductor", "xla", "tvm")
"""Quickest to compile first, so that a small budget has several to choose from; others after them."""
LAST_RESORT = "export"
PROPERTIES = {"int8": "integer-products", "fp8": "float8-products", "bf16": "bfloat16"}
"""{precision of a model: the property by which compilers refuse it}."""
NEAR = 1.3
"""One round of fresh processes leaves those within this factor of the fastest; the others are out."""
FEWEST_ROUNDS, ROUNDS = 3, 5
"""Rounds of the near ones: the first round alone, on a machine with other work, has kept an engine 1.17 times slower."""
COMPILING = 0.75
"""The share of the seconds in which a further compiler may begin; the rest is for the race."""
PARITY_REQUESTS = 8


@final
@dataclass(frozen=True)
class Auto(Compiler):
    """Lower with every compiler that applies, drop those that are not numerically right, race the rest, keep the fastest.

    The race is of one request on the target's threads, in interleaved fresh processes: one round of all, then three to
    five of those within 30% of the fastest. What the losers took and how fast they are stays in the ledger. Which engine
    wins is a measurement: two that are equally fast may change places from run to run.

    Args:
        seconds: after three quarters of them no further compiler begins, after all of them the race has no fourth
            round. One compiler, and a race where there are several, always run, however few the seconds.
    """

    seconds: float = number(180.0, 0, open_low=True)

    name: ClassVar[str] = "auto"
    card: ClassVar[Card] = Card(
        family="compilers",
        benefit="inference time",
        trade_off="compiling and timing every candidate",
        paper='"The algorithm selection problem", Rice 1976, doi:10.1016/S0065-2458(08)60520-3',
        provides=frozenset({"compiled"}),
        removes=frozenset({"module"}),
    )

    def lower(self, model: nn.Module, example: tuple[Tensor, ...], directory: Path, context: Context) -> Lowered:
        """Write the winner's files.

        Raises:
            LoweringError: no candidate could lower the model rightly; says of each why.
        """
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            made, failed, took = self._made(model, example, Path(place), context, began)
            if not made:
                raise LoweringError("no compiler can compile this model: " + "; ".join(
                    f"{name}: {why}" for name, why in failed.items()))
            seconds = self._race({name: Path(place) / name for name in made}, example, context, began)
            winner = min(seconds, key=lambda name: seconds[name])
            for file in made[winner].files:
                (directory / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(Path(place) / winner / file, directory / file)
        spent = [(_told(name, seconds.get(name), failed.get(name)), took[name]) for name in took if name != winner]
        context.progress(f"auto: {winner}, out of {', '.join(took)}")
        return dataclasses.replace(
            made[winner], spent=tuple(spent),
            facts={**made[winner].facts, **{f"seconds a request, {name}": value for name, value in seconds.items()}},
        )

    @classmethod
    def missing(cls) -> str | None:
        return None

    def _made(self, model: nn.Module, example: tuple[Tensor, ...], place: Path, context: Context,
              began: float) -> tuple[dict[str, Lowered], dict[str, str], dict[str, float]]:
        """What each candidate wrote, why others could not, and the seconds that each took."""
        made: dict[str, Lowered] = {}
        failed: dict[str, str] = {}
        took: dict[str, float] = {}
        with torch.no_grad():
            expected = as_tuple(model.eval()(*example))
        for name in candidates(model, context.target.device):
            if made and (name == LAST_RESORT or time.perf_counter() - began > COMPILING * self.seconds):
                break
            context.progress(f"auto: compile({name})")
            started = time.perf_counter()
            try:
                (place / name).mkdir()
                made[name] = _lowered(name, model, example, expected, place / name, context)
            except Exception as error:  # whatever a backend raises on a model, the next one may take it
                failed[name] = str(error).strip().split("\n")[0][:300] or type(error).__name__
                context.progress(f"auto: {name} is out: {failed[name]}")
            took[name] = time.perf_counter() - started
        return made, failed, took

    def _race(self, places: Mapping[str, Path], example: tuple[Tensor, ...], context: Context,
              began: float) -> dict[str, float]:
        """Seconds a request of every candidate, those of the near ones from as many rounds as the budget has."""
        if len(places) == 1:
            return dict.fromkeys(places, 0.0)
        arrays = [x.cpu().numpy() for x in example]

        def raced(who: list[str], rounds: int) -> dict[str, float]:
            sides = {name: ArtifactSide(str(places[name]), trust_native_code=True) for name in who}
            found = compare(sides, who[0], arrays, threads=context.target.threads, device=context.target.device,
                            effort=Effort(rounds=rounds))
            base = found.figures[who[0]].p50
            return {name: base / ratio.value if (ratio := found.ratios.get(name)) else base for name in who}

        started = time.perf_counter()
        seconds = raced(list(places), 1)
        near = [name for name in places if seconds[name] <= NEAR * min(seconds.values())]
        now = time.perf_counter()
        affordable = int((self.seconds - (now - began)) / max(now - started, 1e-9))
        return seconds | (raced(near, min(ROUNDS, max(FEWEST_ROUNDS, affordable))) if len(near) > 1 else {})


def candidates(model: nn.Module, device: str = "cpu") -> list[str]:
    """Compilers that are installed, serve the device and take a model of this precision, in the order in which they are tried."""
    properties = {PROPERTIES[part] for part in precision_of(model).split("+") if part in PROPERTIES}
    found = []
    for name in names():
        cls = method_class(name)
        if not issubclass(cls, Compiler) or cls is Auto or cls.missing():
            continue
        if device in cls.card.devices and not cls.card.refuses & properties:
            found.append(name)
    return sorted(found, key=lambda name: (name == LAST_RESORT, (*ORDER, name).index(name)))


def _lowered(name: str, model: nn.Module, example: tuple[Tensor, ...], expected: tuple[Tensor, ...], place: Path,
             context: Context) -> Lowered:
    """One candidate's files as an artifact that opens and agrees with the model."""
    compiler = method_class(name)()
    assert isinstance(compiler, Compiler)
    lowered = compiler.lower(model, example, place, context)
    artifact.write(place, lowered, {}, [x.cpu().numpy() for x in example], [x.cpu().numpy() for x in expected])
    threads, device = context.target.threads, context.target.device

    def module(*inputs: Tensor) -> tuple[Tensor, ...]:
        return as_tuple(model(*inputs))

    requests = (tuple(x[:1] for x in inputs) for inputs in itertools.islice(context.calibration(), PARITY_REQUESTS))
    with contextlib.closing(artifact.load(place, threads=threads, device=device, trust_native_code=True)) as engine:
        check_parity(module, engine, requests, lowered.precision, device)
        check_random(module, engine, example, context.shapes, lowered.precision, device)
    return lowered


def _told(name: str, seconds: float | None, why: str | None) -> str:
    return f"auto: {name}, {why}" if seconds is None else f"auto: {name}, {seconds * 1e3:.3g} ms a request"
