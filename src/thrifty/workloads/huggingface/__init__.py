"""Workloads from Hugging Face directories: a local model, its tokenizer or image processor, and files of examples.

Nothing is fetched and nothing of the directory is executed: weights are safetensors, tokenizers are tokenizer.json, and
a config that brings code of its own is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from thrifty.errors import WorkloadError
from thrifty.workloads.embedded.retrieval import Recall
from thrifty.workloads.huggingface.directory import DESCRIPTIONS, Directory, digest, open_directory, weights
from thrifty.workloads.huggingface.hub import name_of as name_of
from thrifty.workloads.huggingface.images import Images, image_path, pixels_of
from thrifty.workloads.huggingface.jsonl import SPLITS, Line, Lines, read, values
from thrifty.workloads.huggingface.labels import labels_of
from thrifty.workloads.huggingface.models import Embedder, ImageLogits, TextLogits, TokenLogits, load_body, pooling_of
from thrifty.workloads.huggingface.source import SCHEME as SCHEME
from thrifty.workloads.huggingface.source import Reference as Reference
from thrifty.workloads.huggingface.source import is_reference as is_reference
from thrifty.workloads.huggingface.source import reference as reference
from thrifty.workloads.huggingface.source import require_same_tokens as require_same_tokens
from thrifty.workloads.huggingface.tasks import TASKS as TASKS
from thrifty.workloads.huggingface.tasks import task_of as task_of
from thrifty.workloads.huggingface.text import (
    Texts,
    Windows,
    Words,
    check_tokens,
    documents_of,
    fixed_length,
    lengths,
    sides,
    words_of,
)
from thrifty.workloads.quality import Accuracy, BitsPerByte, as_inputs, length
from thrifty.workloads.workload import Alone, CrossEntropy, SingleStream, Workload

RECALL = 10


def load(text: str) -> Workload:
    """The workload of a directory and its examples.

    Args:
        text: "hf:DIRECTORY?task=...&data=...&train=...&reference=...&tokens=...", or the directory alone: the task is then
            what its architecture is for, the data are its data.jsonl, and the model comes trained.

    Returns:
        the workload, its ``source`` naming all of that, so that a fresh process finds the very same.

    Raises:
        WorkloadError: the directory or the data cannot be used; a line of the data is named with its number.
        MissingExtra: transformers, tokenizers or pillow is not installed.
    """
    known = Reference.parse(text)
    directory = open_directory(known.directory)
    if quantized := directory.config.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise WorkloadError(
            f"{known.directory} is already quantized ({method or 'by an unknown method'}): a workload "
            "starts from floating point, which is its baseline. Give the directory that it was made from; or, for "
            "compressed-tensors, load the module: thrifty.import_compressed_tensors(DIRECTORY)")
    if not known.task:
        known = dataclasses.replace(known, task=task_of(directory))
    known = _with_recipe(known)
    files = (*(known.directory / name for name in DESCRIPTIONS), *weights(known.directory), known.data,
             *([known.train] if known.train else []))
    return _load(known, tuple((str(path), (stat := path.stat()).st_mtime_ns, stat.st_size) for path in files if path.is_file()))


def _with_recipe(known: Reference) -> Reference:
    """With the task's own fine-tuning where there are examples to train with, and nobody says how.

    Raises:
        WorkloadError: the task has no loss to be trained by.
    """
    usual = TASKS[known.task].recipe
    if (known.train or known.recipe) and not usual:
        raise WorkloadError(f"{known.task} has no training loss, so it accepts neither training data "
                            "nor a reference recipe: distill such a model, train(distill(embedding)), on its "
                            "data; for your own loss, write a workload file")
    return dataclasses.replace(known, recipe=known.recipe or (usual if known.train else ""))


@functools.lru_cache(maxsize=4)
def _load(known: Reference, stamps: tuple[Any, ...]) -> Workload:
    """As files stand: one process asks for its workload several times, and texts are tokenized once."""
    directory = open_directory(known.directory)
    lines = read(known.data, TASKS[known.task].format, known.train)
    if known.recipe and not lines.of("train"):
        raise WorkloadError(f"{known.data} has no lines to train with, but {known.recipe} trains: give some with --train FILE, "
                            'or a "split": "train"')
    fields, tokens = _BUILD[known.task](directory, lines, known.tokens, known.recipe != "")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name_of(known.directory)).lstrip("-_.") or "model"
    source = str(dataclasses.replace(known, tokens=tokens))
    return Workload(name=name, example=functools.partial(_example, fields["validation"]), scenario=SingleStream(),
                    source=source, reference=known.recipe, **fields)


def _example(dataset: Dataset[Any], n: int) -> tuple[Tensor, ...]:
    """n requests: the first of validation, again from the first where there are fewer."""
    rows = [as_inputs(dataset[i % length(dataset)][0]) for i in range(n)]
    return tuple(default_collate(rows))


def fingerprint(source: str) -> bytes:
    """Hash of a directory, of its examples and of how it is trained, for the workload's."""
    known = Reference.parse(source)
    files = b"".join(_hash(path) for path in (known.data, known.train) if path is not None)
    return digest(known.directory) + files + f"{known.task} {known.tokens}".encode() + known.recipe.encode()


def _hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


Built = tuple[dict[str, Any], int | None]
"""Fields of the Workload, and the length of its texts."""


def _text_classification(directory: Directory, lines: Lines, asked: int | None, trains: bool) -> Built:
    words, labels = words_of(directory), labels_of(directory, "text-classification", lines, trains)
    tokens = _tokens(words, asked, lambda: lengths(words, values(_seen(lines), "text")))
    sets = {split: Texts(words, values(lines.of(split), "text"), labels.of(lines.of(split)), tokens)
            for split in SPLITS}
    return {
        "model": lambda: TextLogits(load_body(directory.path, TASKS["text-classification"].auto, words.pad,
                                              labels.of_new_head)).eval(),
        "loss": CrossEntropy(), "quality": Accuracy(batch_size=64), "batch_size": 32, **_present(sets),
    }, tokens


def _causal_lm(directory: Directory, lines: Lines, asked: int | None, trains: bool) -> Built:
    words = words_of(directory)
    if words.start is None:
        raise WorkloadError(f"{directory.path} names no token for the start or the end of a text, from which the first "
                            "one could be predicted: give tokenizer_config.json a bos_token or an eos_token")
    documents = {split: documents_of([line.values.get("file") for line in lines.of(split)],
                                     values(lines.of(split), "text")) for split in SPLITS}
    tokens = _tokens(words, asked, lambda: [
        sum(lengths(words, texts, special=False)) for split in SPLITS[:2] for texts in documents[split]])
    sets = {split: Windows(words, documents[split], tokens, scored=split != "train")
            for split in SPLITS}
    return {
        "model": lambda: TokenLogits(load_body(directory.path, TASKS["causal-lm"].auto)).eval(),
        "loss": CrossEntropy(), "quality": BitsPerByte(), "batch_size": 8,
        **_present({split: sets[split] for split in SPLITS if documents[split]}),
    }, tokens


def _feature_extraction(directory: Directory, lines: Lines, asked: int | None, trains: bool) -> Built:
    words, pooling = words_of(directory), pooling_of(directory)
    sets = {}
    tokens = _tokens(words, asked, lambda: lengths(
        words, [text for name in ("query", "document") for text in values(_seen(lines), name)]))
    for split in SPLITS:
        found = lines.of(split)
        texts, targets = sides([(line.values["query"], line.values["document"]) for line in found])
        documents = len(texts) - len(found)
        if split != "train" and documents <= RECALL:
            raise WorkloadError(f"{lines.path}: {split} has {documents} different documents, so every query "
                                f"finds its own within the first {RECALL}; give more than {RECALL}")
        sets[split] = Texts(words, texts, targets, tokens)
    return {
        "model": lambda: Embedder(load_body(directory.path, TASKS["feature-extraction"].auto), pooling).eval(),
        "quality": Recall(k=RECALL), **_present(sets), **({"unlabelled": Alone(sets["train"])} if len(sets["train"]) else {}),
    }, tokens


def _image_classification(directory: Directory, lines: Lines, asked: int | None, trains: bool) -> Built:
    if asked is not None:
        raise WorkloadError("tokens is for text models; omit it for images")
    pixels, labels = pixels_of(directory), labels_of(directory, "image-classification", lines, trains)
    sets = {}
    for split in SPLITS:
        paths = []
        for line in lines.of(split):
            try:
                paths.append(image_path(line.path.parent, line.values["image"]))
            except WorkloadError as error:
                raise lines.wrong(line, str(error)) from error
        sets[split] = Images(paths, labels.of(lines.of(split)), pixels)
    return {
        "model": lambda: ImageLogits(load_body(directory.path, TASKS["image-classification"].auto,
                                               new_head=labels.of_new_head)).eval(),
        "loss": CrossEntropy(), "quality": Accuracy(batch_size=64), "batch_size": 32, **_present(sets),
    }, None


_BUILD: Mapping[str, Callable[[Directory, Lines, int | None, bool], Built]] = {
    "text-classification": _text_classification,
    "causal-lm": _causal_lm,
    "feature-extraction": _feature_extraction,
    "image-classification": _image_classification,
}


def _present(sets: Mapping[str, Any]) -> dict[str, Any]:
    """Data sets by split; without training lines there is no training set."""
    return {split: found for split, found in sets.items() if split != "train" or len(found)}


def _seen(lines: Lines) -> Sequence[Line]:
    """All lines but those of test, which decides nothing."""
    return [line for line in lines.lines if line.split != "test"]


def _tokens(words: Words, asked: int | None, counts: Callable[[], Sequence[int]]) -> int:
    return fixed_length(counts(), words.longest) if asked is None else check_tokens(asked, words)
