"""What a directory's model is for, and what a line of its examples holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from thrifty.errors import WorkloadError
from thrifty.workloads.huggingface.directory import Directory
from thrifty.workloads.huggingface.jsonl import Format


@final
@dataclass(frozen=True)
class Task:
    """What a model is for.

    Args:
        auto: the transformers class that reads it.
        endings: of the architectures that are for nothing else.
        format: of a line of data.
        recipe: how it is fine-tuned where nobody says how; "" where it has no loss to be trained by.
    """

    auto: str
    endings: tuple[str, ...]
    format: Format
    recipe: str


_LABEL = (int, str)
FINE_TUNING = "train(adamw(lr=5e-05), epochs=3, schedule=linear)"
"""As BERT was fine-tuned: rate, epochs and decay of "BERT", Devlin et al. 2018, arXiv:1810.04805, appendix A.3."""

TASKS: Mapping[str, Task] = {
    "text-classification": Task(
        "AutoModelForSequenceClassification", ("ForSequenceClassification",),
        Format({"text": (str,), "label": _LABEL}, ("text",), '{"text": "as good as the first", "label": "positive"}', {}),
        FINE_TUNING),
    "causal-lm": Task(
        "AutoModelForCausalLM", ("ForCausalLM", "LMHeadModel"),
        Format({"text": (str,)}, ("file", "text"), '{"text": "Call me Ishmael.", "file": "moby-dick"} ("file" may be '
               "left out)", {"file": (str,)}),
        FINE_TUNING),
    "feature-extraction": Task(
        "AutoModel", ("Model",),
        Format({"query": (str,), "document": (str,)}, ("document",),
               '{"query": "sum of two", "document": "def add(a, b): return a + b"}', {}), ""),
    "image-classification": Task(
        "AutoModelForImageClassification", ("ForImageClassification",),
        Format({"image": (str,), "label": _LABEL}, ("image",), '{"image": "images/0001.png", "label": "cat"}', {}), FINE_TUNING),
}


def task_of(directory: Directory) -> str:
    """The task that the directory's architecture is for.

    Raises:
        WorkloadError: it is for none, or for several.
    """
    named = directory.architecture
    for task, entry in TASKS.items():
        # `BertModel` embeds; `ViTModel` and the two halves of `T5Model` do something else or nothing yet.
        texts = "vocab_size" in directory.config and not directory.config.get("is_encoder_decoder")
        if named.endswith(entry.endings) and (task != "feature-extraction" or texts):
            return task
    raise WorkloadError(
        f"{directory.path} does not say what it is for: its architecture is {named or 'not named'}. Name the task: "
        f"--task {' | '.join(TASKS)}"
    )
