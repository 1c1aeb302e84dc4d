"""Training in 8 bits: those linear layers whose shape gains from it, as measured on the device."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from thrifty.kernels.float8 import E4M3
from thrifty.recipes.card import Card
from thrifty.training.mixed_precision.autocast import Autocast
from thrifty.training.mixed_precision.scaled import MULTIPLE, Products, fp8_linear

if TYPE_CHECKING:
    from thrifty.recipes.session import Session
    from thrifty.workloads.workload import Batch

Shape = tuple[int, ...]
"""Of a linear layer's products: rows, inputs, outputs."""
GAIN = 0.97
"""A layer is taken into 8 bits where its time falls below so much of bf16's: less is noise."""
ROUNDS, ROUND_SECONDS = 5, 0.02


@final
@dataclass(frozen=True)
class Fp8(Autocast):
    """Matrix multiplications of linear layers in 8 bits, forward and backward, with 32-bit weights; the rest as with bf16.

    Weights and activations are e4m3, gradients e5m2, each under one scale per tensor, its largest number's, found anew each time.
    Before the first step every shape of linear layer is timed on the device, forward and backward, in bf16, in 8 bits, and in 8
    bits but for the weight's gradient: each layer takes the fastest, so that none is slower than with bf16. Which ones those
    are is measured, so two trainings may choose differently; one that is resumed keeps its choice.

    >>> Fp8()
    Fp8()
    """

    dtype: ClassVar[torch.dtype] = torch.bfloat16
    least: ClassVar[float] = 0.01
    name: ClassVar[str] = "fp8"
    card: ClassVar[Card] = Card(
        family="mixed-precision",
        benefit="training time",
        trade_off="2 or 3 bits of mantissa in matrix multiplications; small layers gain nothing and stay in bf16",
        paper='"FP8 Formats for Deep Learning", Micikevicius et al. 2022, arXiv:2209.05433',
        requires=frozenset({"module", "float-weights"}),
        slot="precision",
        devices=frozenset({"cuda"}),
        capability=(8, 9),
    )

    @property
    def counted(self) -> torch.dtype:
        return E4M3

    def forward(self, session: Session, batch: Batch, proceed: Callable[[Batch], Any]) -> Any:
        if "choices" not in session.memory(self):
            with torch.autocast(session.device, dtype=self.dtype):
                seen = shapes_of(session.model, functools.partial(proceed, batch))
            # A rehearsal's batch is smaller than the training's, whose size decides what is fast.
            times = max(1.0, (session.batch_size or 0) / session.accumulate / len(batch[0][0]))
            shapes = {name: (round(rows * times), *sizes) for name, (rows, *sizes) in seen.items()}
            session.memory(self)["choices"] = choose(shapes, session.device, session.compiled)
            install(session.model, session.memory(self)["choices"])
        return super().forward(session, batch, proceed)

    def load_state_dict(self, session: Session, state: dict[str, Any]) -> None:
        super().load_state_dict(session, state)
        install(session.model, state.get("choices", {}))

    def finish(self, session: Session, model: nn.Module) -> nn.Module:
        return remove(model)


# -- which layers -----------------------------------------------------------------------------------------------


def shapes_of(model: nn.Module, run: Callable[[], object]) -> dict[str, Shape]:
    """Name -> shape of every linear layer that a run of the model calls and that 8 bits can take.

    The run is uncompiled and in eval mode, so that no running statistic or random number of the training is touched.
    """
    found: dict[str, Shape] = {}

    def note(name: str, module: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].numel() // module.in_features
        found[name] = (max(rows, found.get(name, (0,))[0]), module.in_features, module.out_features)

    hooks = [module.register_forward_pre_hook(functools.partial(note, name)) for name, module in _linears(model)]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            run()
    finally:
        for module, training in modes:
            module.training = training
        for hook in hooks:
            hook.remove()
    return {name: shape for name, shape in found.items() if not any(size % MULTIPLE for size in shape[1:])}


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward and "forward" not in vars(module):
            yield name, module


def choose(shapes: Mapping[str, Shape], device: str, compiled: bool) -> dict[str, Products]:
    """Name -> products in 8 bits, of those layers that are faster with them than in bf16.

    Args:
        shapes: of the layers.
        device: that they are timed on, on random numbers.
        compiled: whether Inductor compiles them, as it will in training.
    """
    with _disable_current_modes():  # whoever counts operators slows them down, and Dynamo then compiles nothing
        best = {shape: _fastest(shape, device, compiled) for shape in set(shapes.values())}
    return {name: found for name, shape in shapes.items() if (found := best[shape]) is not None}


def _fastest(shape: Shape, device: str, compiled: bool) -> Products | None:
    rows, inputs, outputs = shape
    generator = torch.Generator(device).manual_seed(0)  # its own: those that training draws from stay as they are
    normal = functools.partial(torch.randn, device=device, generator=generator)
    x = normal(rows, inputs, dtype=torch.bfloat16).requires_grad_()
    weight = normal(outputs, inputs).mul_(inputs**-0.5).requires_grad_()
    upstream = normal(rows, outputs, dtype=torch.bfloat16)
    ways: dict[Products | None, Callable[[Tensor, Tensor], Tensor]] = {
        None: _bf16, "all": functools.partial(fp8_linear, products="all"),
        "but_weight": functools.partial(fp8_linear, products="but_weight")}
    seconds: dict[Products | None, list[float]] = {way: [] for way in ways}
    calls = {way: _call(torch.compile(run, dynamic=False) if compiled else run, x, weight, upstream)
             for way, run in ways.items()}
    with torch._dynamo.config.patch(recompile_limit=1000):  # all shapes share one function's code
        for call in calls.values():
            call()
    count = max(1, round(ROUND_SECONDS / max(1e-6, _timed(calls[None], device, 2))))
    for _ in range(ROUNDS):
        for way, call in calls.items():
            seconds[way].append(_timed(call, device, count))
    middle = {way: statistics.median(values) for way, values in seconds.items()}
    fastest = min(middle, key=lambda way: middle[way])
    return fastest if middle[fastest] < GAIN * middle[None] else None


def _bf16(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype))


def _call(run: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, upstream: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.enable_grad():
            return torch.autograd.grad(run(x, weight), (x, weight), upstream)

    return call


def _timed(call: Callable[[], object], device: str, count: int) -> float:
    """Seconds of a call."""
    wait = torch.cuda.synchronize if device == "cuda" else contextlib.nullcontext
    wait()
    began = time.perf_counter()
    for _ in range(count):
        call()
    wait()
    return (time.perf_counter() - began) / count


# -- their place in the model -----------------------------------------------------------------------------------


def install(model: nn.Module, choices: Mapping[str, Products]) -> None:
    """Give layers products of 8 bits wherever autocast is on; elsewhere, as where quality is scored, they are as they were."""
    for name, products in choices.items():
        module = model.get_submodule(name)
        assert isinstance(module, nn.Linear)
        module.forward = functools.partial(_forward, module, products)  # type: ignore[method-assign]


def remove(model: nn.Module) -> nn.Module:
    """The model as it was before `install`."""
    for module in model.modules():
        if getattr(vars(module).get("forward"), "func", None) is _forward:
            del module.forward
    return model


def _forward(module: nn.Linear, products: Products, x: Tensor) -> Tensor:
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return F.linear(x, module.weight, module.bias)
    return fp8_linear(x, module.weight, module.bias, products=products, low=torch.get_autocast_dtype(kind))
