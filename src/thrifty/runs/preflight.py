"""What can be said against a recipe before anything long runs. The verb `check`."""

from __future__ import annotations

import itertools

import torch

from thrifty.errors import ThriftyError, WorkloadError
from thrifty.kernels.matmul_fp8 import CAPABILITY
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.method import require_device
from thrifty.recipes.phases import Train
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.registry import method_class, names
from thrifty.recipes.training_method import TrainingMethod
from thrifty.runs.job import spread, teachers_of
from thrifty.runs.making import home
from thrifty.runs.rehearsal import rehearse
from thrifty.studies.events import ignore
from thrifty.target import Target, training_machine
from thrifty.training.distributed.parallel import Parallel
from thrifty.workloads.blame import users_code
from thrifty.workloads.checks import check_workload
from thrifty.workloads.loading import load_workload
from thrifty.workloads.models import apart
from thrifty.workloads.quality import length
from thrifty.workloads.workload import Workload


def initial_properties(workload: Workload) -> frozenset[str]:
    """What can be said of the workload's model as it comes."""
    trained = frozenset() if workload.reference else frozenset({"trained"})
    return frozenset({"module", "float-weights"}) | trained


def check_ranks(workload: Workload, recipe: Recipe, nproc: int) -> None:
    """What can be said against a number of ranks without starting them.

    Raises:
        ThriftyError: no training is spread over them, a batch cannot be divided, or groups of them cannot be made.
    """
    spreading = [phase for phase in recipe if isinstance(phase, Train) and spread(phase)]
    for method in itertools.chain.from_iterable(phase.methods for phase in spreading):
        if isinstance(method, Parallel):
            method.require_ranks(nproc)
    if nproc == 1:
        return
    if not spreading:
        givers = ", ".join(name for name in names() if method_class(name).card.slot == "parallelism")
        raise ThriftyError(f"--nproc {nproc} asks for {nproc} ranks, but no training in {recipe} is distributed: add one "
                           f"of {givers} to it")
    for phase in spreading:
        assert workload.train is not None
        size = min(phase.batch_size or workload.batch_size, length(workload.train))
        parts = min(method.parts(nproc) for method in phase.methods if isinstance(method, Parallel))
        if size < parts * phase.accumulate:
            raise ThriftyError(f"a batch of {size} cannot be divided over {parts} ranks and {phase.accumulate} micro-batches: "
                               f"give a larger batch_size, or fewer ranks")


def check_recipe(workload: Workload, recipe: Recipe, device: str = "cpu", training_device: str | None = None) -> frozenset[str]:
    """Everything that can be said against a recipe without running anything.

    Args:
        workload: the recipe's.
        recipe: to check.
        device: where the model is served.
        training_device: where it is trained; the same where None.

    Returns:
        the properties of the model at its end.

    Raises:
        ThriftyError: an order that cannot work, a missing extra, data or a teacher that the workload lacks, a method that
            does not run on the device.
    """
    trains = training_device or device
    for named in itertools.chain.from_iterable(map(teachers_of, recipe)):
        teacher = Recipe.parse(named.recipe)
        if teacher.transforms != teacher:
            raise WorkloadError(f"a teacher is a model, not an engine: remove the compiler from {named.recipe!r}")
        other = home(named, workload)
        if len(teacher):
            check_recipe(other, teacher, device, trains)
    for method in recipe.methods():
        require_device(method, trains if isinstance(method, TrainingMethod) else device)
        if isinstance(method, Compiler) and (missing := type(method).missing()):
            raise ThriftyError(missing)
    _require_float8(recipe, device)
    trainings = [phase for phase in recipe if isinstance(phase, Train)]
    if trainings and workload.lessons is None:
        raise WorkloadError(
            f"{workload.name} has no training set or no loss, so it cannot be trained: give `train` and `loss` in its Workload, "
            "or inputs alone as `unlabelled` to distill on, or remove train(...) from the recipe"
        )
    for phase in () if workload.labelled else trainings:
        if not any("teacher" in method.card.needs for method in phase.methods):
            raise WorkloadError(f"{workload.name} has only unlabelled inputs, so {phase} has nothing to learn from: add distill "
                                "to it, train(distill(embedding), ...) where the model gives embeddings")
    for method in recipe.methods():
        if "logits" in method.needs and workload.lessons is not None and not workload.lessons[1].gives_logits:
            raise WorkloadError(f"{method.name} needs logits, but the loss {type(workload.loss).__name__} gives none: "
                                f"remove {method.name}, or define logits(outputs, batch) in the loss if its outputs are logits")
    return carry(recipe, initial_properties(workload))


def _require_float8(recipe: Recipe, device: str) -> None:
    """Refuse to compile products of float8 for a device that would only emulate them.

    Raises:
        ThriftyError: it would.
    """
    if not (any(isinstance(phase, Compiler) for phase in recipe)
            and any("float8-products" in method.provides for method in recipe.methods())):
        return
    if device == "cpu":
        raise ThriftyError(f"{recipe}: CPUs have no float8 matrix multiplications and emulate them, slower than fp32; use "
                           "quantize(w8a8), or --device cuda")
    if torch.cuda.is_available() and (has := torch.cuda.get_device_capability()) < CAPABILITY:
        raise ThriftyError(f"{recipe}: {torch.cuda.get_device_name()} has compute capability {has[0]}.{has[1]}, but float8 "
                           f"matrix multiplications need {CAPABILITY[0]}.{CAPABILITY[1]} or more; use quantize(bf16) or "
                           "quantize(w4a16)")


def check(workload: str | Workload, recipe: str | Recipe | None = None, *, target: Target | None = None,
          training_device: str | None = None) -> frozenset[str]:
    """Check a workload and a recipe, and rehearse it: one training step or one calibration batch for each phase.

    Args:
        workload: a workload, or a reference that `load_workload` takes.
        recipe: text or value; the workload's own reference recipe if None.
        target: what it will run on.
        training_device: "cpu" or "cuda"; the target's where None.

    Returns:
        the properties of the model at the end of the recipe.

    Raises:
        ThriftyError: it would fail; says where and what to do.

    >>> sorted(check("digits", "prune(ratio=0.5) | train(adamw)"))
    ['float-weights', 'module', 'pruned', 'trained']
    """
    definition = resolve(workload)
    parsed = Recipe.of(definition.reference if recipe is None else recipe)
    served = target or Target()
    machine = training_machine(served, training_device)
    found = check_recipe(definition, parsed, served.device, machine.device)
    with users_code():
        check_workload(definition)
        rehearse(definition, parsed, served, machine, ignore)
    return found


def resolve(workload: str | Workload) -> Workload:
    """The workload itself, with a place where a fresh process finds it.

    Raises:
        WorkloadError: it is not there, or its reference is no recipe that trains it.
    """
    if isinstance(workload, str):
        workload = load_workload(workload)
    if not workload.source:
        raise WorkloadError(
            f"{workload.name} was not loaded from a file, but a run is a separate process: write it in a file that "
            'defines `workload` and give "file.py", or thrifty.load_workload("file.py")'
        )
    _check_reference(workload)
    return apart(workload)


def _check_reference(workload: Workload) -> None:
    """Refuse a reference that could not say how the model is trained.

    Raises:
        WorkloadError: it is no recipe, does not train, or ends in a compiler.
    """
    try:
        recipe = Recipe.parse(workload.reference)
        carry(recipe, initial_properties(workload))
    except ThriftyError as error:
        raise WorkloadError(f"the reference recipe of {workload.name}: {error}") from error
    if workload.reference and not any(isinstance(phase, Train) for phase in recipe):
        raise WorkloadError(f"the reference recipe of {workload.name}, {recipe}, trains nothing: it must say how the model is "
                            "trained today, such as train(adamw, epochs=3); omit it if the model comes trained")
    if recipe.transforms != recipe:
        raise WorkloadError(f"the reference recipe of {workload.name}, {recipe}, ends in a compiler, but it is the model "
                            "that trials are compared with: remove the compiler")
