"""What a call takes in an engine: alone, or in turns with a reference, which takes a processor's drift out."""

from __future__ import annotations

import contextlib
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.artifacts import artifact
from thrifty.errors import ThriftyError
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context
from thrifty.recipes.registry import method_class
from thrifty.target import Target

EAGER = "eager"
CALLS = 3
"""Of a turn, each."""
TURNS, MOST_TURNS = 3, 50
"""Of a comparison, at least and at most."""
SECONDS = 3.0
"""Of a comparison, about: models that are slow get few turns."""

Call = Callable[[], Any]


@contextlib.contextmanager
def opened(module: nn.Module, inputs: tuple[Tensor, ...], target: Target, engine: str = EAGER) -> Iterator[Call]:
    """A call of the module in its engine, on the target's threads.

    Args:
        module: in eval mode.
        inputs: of the call.
        target: that it runs on.
        engine: "eager", or a compiler's name.

    Raises:
        ThriftyError: there is no such compiler, it is not installed, or it cannot take the module.
    """
    if engine == EAGER:
        # The decorator, not the statement: what is open may stay so while others train.
        call = torch.no_grad()(module.eval().to(target.device).__call__)
        yield functools.partial(call, *(x.to(target.device) for x in inputs))
        return
    compiler = method_class(engine)()
    if not isinstance(compiler, Compiler):
        raise ThriftyError(f"{engine} is not a compiler, so it makes no engine to time: give \"{EAGER}\" or a compiler's name")
    if missing := type(compiler).missing():
        raise ThriftyError(missing)
    with tempfile.TemporaryDirectory(prefix="thrifty-timing-") as place:
        lowered = compiler.lower(module.eval(), inputs, Path(place), Context(inputs, lambda: iter([inputs]), target=target))
        artifact.write(Path(place), lowered, {}, [x.numpy() for x in inputs], [])
        loaded = artifact.load(place, threads=target.threads, device=target.device, trust_native_code=True)
        with contextlib.closing(loaded):
            yield functools.partial(loaded.engine.run, loaded.engine.native([x.numpy() for x in inputs]))


def seconds_a_call(call: Call, target: Target) -> float:
    """Median seconds of a call on the target's threads."""
    from torch.utils.benchmark import Timer

    timer = Timer("call()", globals={"call": call}, num_threads=target.threads)
    return float(timer.blocked_autorange(min_run_time=0.2).median)


def ratio(call: Call, reference: Call, target: Target) -> float:
    """What a call takes for each second that the reference takes: the median over turns, each the quickest of a few calls.

    A processor that slows down slows both. A timed call follows one of its own, so neither pays for the other's use of the
    caches.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(target.threads)
    began = time.perf_counter()
    found: list[float] = []
    try:
        while len(found) < TURNS or (len(found) < MOST_TURNS and time.perf_counter() - began < SECONDS):
            found.append(_turn(call, reference, target))
        return statistics.median(found)
    finally:
        torch.set_num_threads(threads)


def _turn(call: Call, reference: Call, target: Target) -> float:
    pairs = [(_once(reference, target), _once(call, target)) for _ in range(CALLS)]
    return min(ours for _, ours in pairs) / min(theirs for theirs, _ in pairs)


def _once(call: Call, target: Target) -> float:
    call()
    if target.device != "cpu":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if target.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began
