"""What a run gives its methods: calibration batches, a clock, a judge, the training loop."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from thrifty.compilers.parity import as_tuple
from thrifty.errors import ThriftyError
from thrifty.recipes.context import Context
from thrifty.recipes.phases import Train
from thrifty.recipes.ranks import Alone, Ranks
from thrifty.runs import cache
from thrifty.target import Target
from thrifty.training.setup import Setup
from thrifty.workloads.quality import as_inputs, batches, length
from thrifty.workloads.workload import Workload

CALIBRATION_EXAMPLES = 256
CALIBRATION_BATCH = 32

Tell = Callable[[Mapping[str, Any]], None]


def score(workload: Workload, model: nn.Module) -> float:
    """Quality on validation of a module in this process; higher is better whatever the measure."""
    was_training = model.training
    model.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        value = workload.quality(
            lambda inputs: _to_cpu(model(*(x.to(device) for x in inputs))), workload.validation
        ).value
    model.train(was_training)
    return value if workload.quality.higher_is_better else -value


def _to_cpu(outputs: Any) -> Any:
    found = tuple(x.cpu() for x in as_tuple(outputs))
    return found[0] if len(found) == 1 else found


def calibration(workload: Workload, seed: int, examples: int = CALIBRATION_EXAMPLES) -> Iterator[tuple[Tensor, ...]]:
    """Batches of inputs drawn without replacement from the training set (validation inputs where there is none)."""
    dataset = workload.training_set
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(length(dataset), generator=generator)[:examples].tolist()
    for inputs, _ in batches(Subset(dataset, chosen), CALIBRATION_BATCH, workload.collate):
        yield as_inputs(inputs)


def make_context(workload: Workload, target: Target, seed: int, searched: list[float], tell: Tell,
                 examples: int = CALIBRATION_EXAMPLES, recalled: list[float] | None = None) -> Context:
    """What a transform may use; the seconds of its timings and scorings are appended to ``searched``.

    What it recalls from the cache cost seconds once: they are appended to ``recalled``.
    """
    example = workload.example(1)

    def charged(measure: Callable[[nn.Module], float]) -> Callable[[nn.Module], float]:
        def call(model: nn.Module) -> float:
            began = time.perf_counter()
            try:
                return measure(model)
            finally:
                searched.append(time.perf_counter() - began)

        return call

    return Context(
        example=example,
        calibration=lambda: calibration(workload, seed, examples),
        seed=seed,
        target=target,
        time=charged(lambda model: eager_seconds(model, example, target)),
        score=charged(lambda model: score(workload, model)),
        shapes=workload.served_shapes,
        recall=functools.partial(recall, [] if recalled is None else recalled),
        progress=lambda text: tell({"event": "note", "text": text}),
    )


def recall(seconds: list[float], key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """JSON values from the cache, computed where it has none; what computing them once took is appended where it has."""
    name = hashlib.sha256(key.encode()).hexdigest()
    with cache.using("findings", name) as place:
        if place is not None:
            kept = json.loads((place / "values.json").read_text())
            seconds.append(kept["seconds"])
            return dict(kept["values"])
    began = time.perf_counter()
    values = compute()
    with cache.building("findings", name) as room:
        (room / "values.json").write_text(json.dumps({"seconds": time.perf_counter() - began, "values": values}))
    return values


def eager_seconds(model: nn.Module, example: tuple[Tensor, ...], target: Target) -> float:
    """Median seconds of one request through the module, on the target's threads."""
    from torch.utils.benchmark import Timer

    with torch.no_grad():
        timer = Timer("model(*example)", globals={"model": model.eval(), "example": example},
                      num_threads=target.threads)
        return float(timer.blocked_autorange(min_run_time=0.2).median)


def training_setup(workload: Workload, phase: Train, seed: int, device: str, teacher: Callable[[str], nn.Module],
                   ranks: Ranks = Alone()) -> Setup:
    """One ``train`` phase of a workload, put together.

    Raises:
        ThriftyError: the workload has no training set or no loss.
    """
    if workload.train is None or workload.loss is None:
        raise ThriftyError(f"{workload.name} has no training set or no loss, so {phase} cannot train it")
    return Setup(phase, workload.train, workload.loss, workload.batch_size, seed, workload.forward, workload.collate, device,
                 teacher, ranks)


def outputs_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The module's outputs as a tuple, on the CPU."""
    with torch.no_grad():
        outputs = _to_cpu(model(*inputs))
    return outputs if isinstance(outputs, tuple) else (outputs,)
