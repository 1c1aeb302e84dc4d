"""A workload's model, made anew: the one place where every phase gets it from."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from thrifty.errors import WorkloadError
from thrifty.numerics.plain import refuse_old_norms
from thrifty.recipes.session import Teachers
from thrifty.runs.job import Teacher
from thrifty.workloads import huggingface
from thrifty.workloads.loading import load_workload
from thrifty.workloads.models import apart
from thrifty.workloads.workload import Workload


def made(workload: Workload) -> nn.Module:
    """The model as it comes, its lazy layers initialized from the example; random numbers are torch's own.

    Raises:
        WorkloadError: the example does not reach a lazy layer.
        ThriftyError: a layer has its norm of weights as a hook.
    """
    model = workload.model()
    refuse_old_norms(model)
    if lazy(model):
        _initialise(model, workload)
    return model


def home(teacher: Teacher, workload: Workload) -> Workload:
    """The workload whose recipe a teacher is.

    Raises:
        WorkloadError: it cannot be loaded, or reads other tokens than the workload that is taught.
    """
    if not teacher.workload:
        return workload
    found = apart(load_workload(teacher.workload))
    huggingface.require_same_tokens(found.source, workload.source)
    return found


def untrained_teachers(workload: Workload) -> Teachers:
    """Teachers for a rehearsal: models as they come, in the place of those that recipes would leave."""
    return lambda *named: made(home(Teacher(*named), workload)).eval()


def lazy(model: nn.Module) -> list[str]:
    """Names of parameters and buffers that have no size yet."""
    return [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]


def _initialise(model: nn.Module, workload: Workload) -> None:
    training = model.training
    with torch.no_grad():
        model.eval()(*workload.example(1))
    model.train(training)
    if left := lazy(model):
        raise WorkloadError(f"model: {left[0]!r} is lazy, and the example does not reach its layer in eval mode, so "
                            "its size is unknown: give the layer its size")
