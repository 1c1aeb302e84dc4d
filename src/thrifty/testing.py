"""The conformance kit: laws that every method keeps, ours and third parties'.

A package that registers a method under the entry point ``thrifty.methods`` tests it with::

    import pytest
    from thrifty import testing

    @pytest.mark.parametrize("law", testing.LAWS, ids=lambda law: law.__name__)
    def test_my_method(law):
        law(MyMethod(strength=0.5))
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from thrifty.architectures.backbone import Residual
from thrifty.architectures.blocks import Sizes, layers
from thrifty.artifacts import artifact
from thrifty.compilers.export import Export
from thrifty.errors import NoEffect, ThriftyError
from thrifty.recipes.claim import Claim
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.method import Method
from thrifty.recipes.phases import Train
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.registry import method_class, names
from thrifty.recipes.training_method import TrainingMethod
from thrifty.recipes.transform import Plan, Transform
from thrifty.runs import checkpoint
from thrifty.runs.checkpoint import Checkpoint
from thrifty.runs.context import Measurements, make_context, score, training_setup
from thrifty.runs.journal import Entry, Journal
from thrifty.runs.rehearsal import rehearse
from thrifty.target import Machine, Target
from thrifty.training.loop import TrainingResult, train
from thrifty.workloads.quality import Accuracy
from thrifty.workloads.workload import CrossEntropy, Workload

TRAINED = frozenset({"module", "float-weights", "trained"})


# -- small workloads --------------------------------------------------------------------------------------------


class SmallNet(nn.Module):
    """Convolutions with batch norm, a residual sum, a linear layer wide enough to prune: a little of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
                                   nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32))
        self.head = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = torch.relu(y + self.inner(y))
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


class SmallAttention(nn.Module):
    """A transformer over an image's rows, for methods that change what mixes tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(12, 32)
        self.blocks = nn.ModuleList(Residual(layer, 32, 1e-5)
                                    for layer in layers("attention mlp attention mlp", Sizes(32, heads=2, hidden=192)))
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embedding(x[:, 0])
        for block in self.blocks:
            y = block(y)
        return self.head(y.mean(1))  # type: ignore[no-any-return]


def stripes(n: int, seed: int) -> TensorDataset:
    """n noisy 12x12 images of stripes in four directions, and which direction it is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    row, column = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    phases = torch.stack([row, column, row + column, row - column])[labels]
    shift = torch.rand(n, 1, 1, generator=generator) * 6
    images = torch.sin(phases * 1.5 + shift) + 0.3 * torch.randn(n, 12, 12, generator=generator)
    return TensorDataset(images[:, None], labels)


workload = Workload(
    name="stripes",
    model=SmallNet,
    train=stripes(256, 0),
    validation=stripes(64, 1),
    test=stripes(64, 2),
    loss=CrossEntropy(),
    quality=Accuracy(),
    example=lambda n: (stripes(n, 3).tensors[0],),
    reference="train(adamw(lr=0.003), epochs=2)",
    batch_size=32,
    source="thrifty.testing:workload",
)

attending = dataclasses.replace(workload, name="rows", model=SmallAttention, source="thrifty.testing:attending")


def bench(method: Method) -> Workload:
    """The small workload whose model has what the method works on."""
    return attending if "attention" in method.card.needs else workload


@functools.cache
def _trained(model: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    found: nn.Module = train(training_setup(workload, Train(epochs=2), 0, "cpu", teacher), model()).model
    return found


def trained(method: Method | None = None) -> nn.Module:
    """The small net as its reference leaves it; a copy each time.

    Args:
        method: for which it is; one that works on any model where None.
    """
    return copy.deepcopy(_trained(SmallNet if method is None or bench(method) is workload else SmallAttention))


def teacher(text: str) -> nn.Module:
    return trained().eval()


def _hear(event: Any) -> None:
    """Training is not watched here."""


# -- what a method does, in one shape for all three kinds -------------------------------------------------------


@functools.singledispatch
def apply(method: Method, model: nn.Module, seed: int = 0) -> nn.Module:
    """The model after the method alone; the model that was given is not to be changed."""
    raise TypeError(f"{type(method).__name__} is not a Transform, TrainingMethod or Compiler")


@apply.register
def _(method: Transform, model: nn.Module, seed: int = 0) -> nn.Module:
    context = make_context(bench(method), Target(), seed, _hear, examples=64)
    with torch.no_grad():
        return method.build(copy.deepcopy(model), method.plan(model, context)).eval()


@apply.register
def _(method: TrainingMethod, model: nn.Module, seed: int = 0) -> nn.Module:
    return _fitted(method, copy.deepcopy(model), seed).model


def _fitted(method: TrainingMethod, model: nn.Module, seed: int = 0) -> TrainingResult:
    torch.manual_seed(seed)
    return train(training_setup(workload, Train(method, steps=3), seed, "cpu", teacher), model)


class Served(nn.Module):
    """An engine behind a module's call, one request at a time, so that laws read the same for compilers."""

    def __init__(self, engine: Callable[..., Any]) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.engine(row) for row in x.split(1)])


@apply.register
def _(method: Compiler, model: nn.Module, seed: int = 0) -> nn.Module:
    context = make_context(workload, Target(), seed, _hear, examples=64)
    directory = Path(_places().enter_context(tempfile.TemporaryDirectory(prefix="thrifty-conformance-")))
    example = workload.example(1)
    lowered = method.lower(copy.deepcopy(model).eval(), example, directory, context)
    with torch.no_grad():
        outputs = [model.eval()(*example).numpy()]
    artifact.write(directory, lowered, {"recipe": str(Recipe.of(method))}, [x.numpy() for x in example], outputs)
    engine = _places().enter_context(contextlib.closing(artifact.load(directory, trust_native_code=True)))
    return Served(engine).eval()


@functools.cache
def _places() -> contextlib.ExitStack:
    """What engines hold until the process ends."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack


def answers(model: nn.Module, n: int = 5) -> np.ndarray:
    """Outputs on n requests that no law trained on."""
    with torch.no_grad():
        return model.eval()(*workload.example(n)).float().numpy()


def fingerprint(model: nn.Module) -> str:
    """A hash of every parameter and buffer, bit by bit."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# -- the laws ---------------------------------------------------------------------------------------------------


def text_round_trip(method: Method) -> None:
    """Its text parses back to it, and its repr evaluates back to it."""
    recipe = Recipe.of(method)
    assert Recipe.parse(str(recipe)) == recipe, str(recipe)
    assert eval(repr(method), {type(method).__name__: type(method)}) == method


def json_round_trip(method: Method) -> None:
    """Its hyperparameters survive JSON."""
    values = json.loads(json.dumps(dataclasses.asdict(method)))
    assert type(method)(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}) == method


def card_is_whole(method: Method) -> None:
    """Its card says what it is for, what it costs, and where it comes from."""
    card = method.card
    assert card.benefit and card.trade_off and card.paper
    assert method.__doc__ and method_class(method.name) is type(method)


def input_untouched(method: Method) -> None:
    """The model that it is given is not changed."""
    assert _applied(method)[1], f"{method.name} changed the model that it was given"


@functools.cache
def _applied(method: Method) -> tuple[nn.Module, bool]:
    """The model after the method alone, and whether the model that it was given is as it was. Once for all laws."""
    model = trained(method)
    before = fingerprint(model)
    after = apply(method, model, seed=7)
    return after, fingerprint(model) == before


def same_seed_same_result(method: Method) -> None:
    """The same seed gives the same answers: bit by bit, and to rounding from an engine, which measuring may choose."""
    first, second = (answers(after) for after in (_applied(method)[0], apply(method, trained(method), seed=7)))
    if isinstance(method, Compiler):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(first, second)


def rebuilds_in_a_fresh_process(method: Method) -> None:
    """Its plan, or its weights, give the same answers in a process that never saw the data."""
    if isinstance(method, Compiler):  # its engine is reloaded by `apply` already
        return
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        text = str(Recipe.of(method))
        if isinstance(method, Transform):
            context = make_context(bench(method), Target(), 0, _hear, examples=64)
            model = trained(method)
            with torch.no_grad():
                plan = method.plan(model, context)
                after = method.build(trained(method), plan).eval()
            plans: tuple[Any, ...] = ((text, plan),)
        else:
            assert isinstance(method, TrainingMethod)
            fitted = _fitted(method, trained())
            after, plans = fitted.model, fitted.plans
        checkpoint.save(Checkpoint(bench(method).source, text, plans), after, directory)
        server = multiprocessing.get_context("forkserver")  # its processes have imported this module, and done nothing
        server.set_forkserver_preload([__name__])
        with concurrent.futures.ProcessPoolExecutor(1, server) as fresh:
            loaded = fresh.submit(_loaded_answers, bench(method).source, place).result()
        np.testing.assert_allclose(loaded, answers(after), rtol=1e-5, atol=1e-6)


def _loaded_answers(source: str, directory: str) -> np.ndarray:
    torch.set_num_threads(1)
    return answers(checkpoint.load_module(source, directory))


def replays_from_its_timings(method: Method) -> None:
    """A plan that was timed is made again, bit for bit, from the timings that it recorded; any other times nothing."""
    if not isinstance(method, Transform):
        return
    made, timings = _planned(method, Journal())
    assert bool(timings) <= method.timed, f"{method.name} times what it decides by, and its `timed` does not say so"
    again, _ = _planned(method, Journal(entries=[Entry("time", seconds, 0.0) for seconds in timings]))
    assert json.dumps(dict(made.values), sort_keys=True) == json.dumps(dict(again.values), sort_keys=True)
    assert made.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(made.tensors[name], again.tensors[name]) for name in made.tensors)


def _planned(method: Transform, journal: Journal) -> tuple[Plan, tuple[float, ...]]:
    """A plan, and the timings by which it was decided; scores are taken anew."""
    given = bench(method)
    measured = Measurements(given, Target(), "cpu", 0, journal)
    context = make_context(given, Target(), 0, _hear, measurements=measured, examples=64)
    model = trained(method)  # which trains, the first time
    with contextlib.closing(measured), torch.no_grad():
        plan = method.plan(model, dataclasses.replace(context, score=lambda model, *, key="": score(given, model)))
    return plan, measured.timings


def claims_are_true(method: Method) -> None:
    """It changes what it says it changes: every claim holds, and probing again finds the claimed value."""
    if isinstance(method, Compiler):
        return
    if isinstance(method, Transform):
        before, after = trained(method), apply(method, trained(method))
        found = method.claims(before, after)
        assert found, f"{method.name} claims nothing, so nothing can be checked"
        for claim in found:
            _true(claim, method, after)
        return
    assert isinstance(method, TrainingMethod)
    done = _fitted(method, trained())
    for _, claim in done.claims:
        _true(claim, method, done.model)


def _true(claim: Claim, method: Method, after: nn.Module) -> None:
    claim.checked(method.name)
    if claim.probe is not None:
        assert claim.probe(after) == claim.after
        assert "<" not in claim.probe.__qualname__, "a probe is a function at the top of its module"


def check_agrees(method: Method) -> None:
    """Next to every other method: what `check` allows can be rehearsed, what it refuses says why."""
    for recipe in neighbors(method):
        try:
            carry(recipe, TRAINED)
        except ThriftyError as error:
            assert "requires" in str(error), f"{recipe} was refused without a reason: {error}"
            continue
        compiled = recipe.transforms != recipe
        _rehearsed(str(recipe.transforms | Export() if compiled else recipe), bench(method) is attending)


@functools.cache
def _rehearsed(text: str, attends: bool) -> None:
    """Once for both of two neighbors, and for every compiler: all are rehearsed by the graph that they start from."""
    with contextlib.suppress(NoEffect):  # on so small a net a neighbor may truly find nothing left to do
        rehearse(attending if attends else workload, Recipe.parse(text), Target(), Machine(), _hear)


def neighbors(method: Method) -> Iterator[Recipe]:
    """The method before and after every registered one, after a training phase."""
    start = Recipe.of("train(epochs=1)")
    for name in names():
        other = method_class(name)()
        if (isinstance(other, Compiler) and other.missing()) or "cpu" not in other.card.devices:  # its own tests say so
            continue
        if isinstance(method, TrainingMethod) and isinstance(other, TrainingMethod):
            slots = {method.card.slot, other.card.slot}
            if method.name != other.name and (slots == {None} or len(slots) == 2):
                yield start | Train(method, other)
        yield start | method | other
        yield start | other | method


LAWS: tuple[Callable[[Method], None], ...] = (
    text_round_trip, json_round_trip, card_is_whole, input_untouched, same_seed_same_result,
    rebuilds_in_a_fresh_process, replays_from_its_timings, claims_are_true, check_agrees,
)
