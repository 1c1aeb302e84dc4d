"""The options of Hugging Face directories, which every verb on a workload takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.models import ArgumentInfo

TaskOption = Annotated[str | None, typer.Option("--task", help="What a Hugging Face directory is for: text-classification, "
                                                "causal-lm, feature-extraction or image-classification.")]
DataOption = Annotated[Path | None, typer.Option(
    "--data", help="Examples of a Hugging Face directory, JSON Lines; data.jsonl in it by default.")]
TrainOption = Annotated[Path | None, typer.Option(
    "--train", help="Examples to train a Hugging Face directory with, JSON Lines; those of --data are then used only for "
                    "evaluation.")]
ReferenceOption = Annotated[str | None, typer.Option(
    "--reference", metavar="RECIPE", help='How a Hugging Face directory is trained today: "train(adamw(lr=3e-5), epochs=3)".')]

OPTIONS = {"task": TaskOption, "data": DataOption, "train": TrainOption, "reference": ReferenceOption}


def of_directories(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with these options behind its arguments; its ``workload`` is then the reference that holds them."""
    own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
           for each in inspect.signature(verb, eval_str=True).parameters.values()]
    arguments = [each for each in own if any(isinstance(said, ArgumentInfo) for said in each.annotation.__metadata__)]
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
             for name, option in OPTIONS.items()]
    parameters = [*arguments, *added, *(each for each in own if each not in arguments)]

    @functools.wraps(verb)
    def taking(*, workload: str, task: str | None, data: Path | None, train: Path | None, reference: str | None,
               **rest: Any) -> None:
        if any(value is not None for value in (task, data, train, reference)):
            from thrifty.workloads import huggingface

            workload = huggingface.reference(workload, task, data, train, reference)
        verb(workload=workload, **rest)

    taking.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    taking.__annotations__ = {each.name: each.annotation for each in parameters}
    return taking
