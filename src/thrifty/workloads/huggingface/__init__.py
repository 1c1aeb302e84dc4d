"""Workloads from Hugging Face directories: a local model, its tokenizer or image processor, and a file of examples.

Nothing is fetched and nothing of the directory is executed: weights are safetensors, tokenizers are tokenizer.json, and
a config that brings code of its own is refused. A workload's reference is a text that any process finds again:

    hf:/absolute/directory?task=text-classification&data=/absolute/data.jsonl&tokens=64
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from thrifty.errors import WorkloadError
from thrifty.workloads.embedded.retrieval import Recall
from thrifty.workloads.huggingface.directory import DESCRIPTIONS, TOKENIZER, Directory, digest, open_directory, weights
from thrifty.workloads.huggingface.images import Images, image_path, pixels_of
from thrifty.workloads.huggingface.jsonl import SPLITS, Format, Line, Lines, read, values
from thrifty.workloads.huggingface.models import Embedder, ImageLogits, TextLogits, TokenLogits, load_body, pooling_of
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

SCHEME = "hf:"
DATA = "data.jsonl"
RECALL = 10

# -- tasks ------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Task:
    """What a model is for.

    Args:
        auto: the transformers class that reads it.
        endings: of the architectures that are for nothing else.
        format: of a line of data.
    """

    auto: str
    endings: tuple[str, ...]
    format: Format


_LABEL = (int, str)

TASKS: Mapping[str, Task] = {
    "text-classification": Task(
        "AutoModelForSequenceClassification", ("ForSequenceClassification",),
        Format({"text": (str,), "label": _LABEL}, ("text",), '{"text": "as good as the first", "label": "positive"}', {})),
    "causal-lm": Task(
        "AutoModelForCausalLM", ("ForCausalLM", "LMHeadModel"),
        Format({"text": (str,)}, ("file", "text"), '{"text": "Call me Ishmael.", "file": "moby-dick"} ("file" may be '
               "left out)", {"file": (str,)})),
    "feature-extraction": Task(
        "AutoModel", ("Model",),
        Format({"query": (str,), "document": (str,)}, ("document",),
               '{"query": "sum of two", "document": "def add(a, b): return a + b"}', {})),
    "image-classification": Task(
        "AutoModelForImageClassification", ("ForImageClassification",),
        Format({"image": (str,), "label": _LABEL}, ("image",), '{"image": "images/0001.png", "label": "cat"}', {})),
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


# -- references -------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Reference:
    """A workload's text, read.

    Args:
        directory: of the model, absolute.
        task: one of `TASKS`; "" for what the architecture is for.
        data: the JSON Lines file, absolute.
        tokens: length of every text; None for what the data need. Images have none.

    >>> Reference.parse("hf:/models/a b?task=causal-lm&data=/d.jsonl").directory.name
    'a b'
    """

    directory: Path
    task: str
    data: Path
    tokens: int | None = None

    def __str__(self) -> str:
        given = {"task": self.task, "data": str(self.data), "tokens": self.tokens}
        query = urllib.parse.urlencode({k: v for k, v in given.items() if v}, quote_via=urllib.parse.quote, safe="/")
        return f"{SCHEME}{urllib.parse.quote(str(self.directory))}?{query}"

    @staticmethod
    def parse(text: str) -> Reference:
        """Read "hf:DIRECTORY?task=...&data=...&tokens=...", or a directory's path alone, which is taken as it is.

        Raises:
            WorkloadError: an option is unknown or no value of its kind.
        """
        place, query = text, ""
        if text.startswith(SCHEME):
            place, _, query = text.removeprefix(SCHEME).partition("?")
            place = urllib.parse.unquote(place)
        given = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        if unknown := given.keys() - {"task", "data", "tokens"}:
            raise WorkloadError(f"{text!r} asks for {', '.join(sorted(unknown))}; known: task, data, tokens")
        if given.get("task") and given["task"] not in TASKS:
            raise WorkloadError(f"there is no task {given['task']!r}; those of a Hugging Face directory: {', '.join(TASKS)}")
        tokens = given.get("tokens")
        if tokens is not None and not re.fullmatch(r"[1-9]\d{0,8}", tokens):
            raise WorkloadError(f"tokens must be a whole number, 1 or more, but is {tokens!r}")
        directory = Path(place).expanduser().resolve()
        data = Path(given["data"]).expanduser().resolve() if given.get("data") else directory / DATA
        return Reference(directory, given.get("task", ""), data, int(tokens) if tokens else None)


def require_same_tokens(teacher: str, student: str) -> None:
    """Refuse a directory whose tokenizer gives a text other numbers than another's: what one wrote the other would misread.

    Args:
        teacher, student: sources of workloads; what is no directory of texts is not looked at.

    Raises:
        WorkloadError: a token that both know has another number.
    """
    if not (teacher.startswith(SCHEME) and student.startswith(SCHEME)):
        return
    known = [Reference.parse(each).directory / TOKENIZER for each in (teacher, student)]
    if not all(path.is_file() for path in known):
        return
    theirs, ours = map(_vocabulary, known)
    for token, number in ours.items():
        if theirs.get(token) != number:
            where = f"has no {token!r}" if token not in theirs else f"numbers {token!r} {theirs[token]}"
            raise WorkloadError(f"the teacher's tokenizer {where}, and the student's numbers it {number}: a teacher must read "
                                "the student's own tokens; take one of the same tokenizer")


def _vocabulary(path: Path) -> dict[str, int]:
    """{token: number} of a tokenizer.json."""
    model = json.loads(path.read_text())["model"].get("vocab", {})
    return dict(model) if isinstance(model, dict) else {piece[0]: i for i, piece in enumerate(model)}


def is_reference(text: str) -> bool:
    """Whether a workload's reference is a Hugging Face directory's: its scheme, or a directory that is there."""
    return text.startswith(SCHEME) or (text.strip() != "" and Path(text).expanduser().is_dir())


def reference(workload: str, task: str | None = None, data: str | Path | None = None) -> str:
    """The reference of a directory with a task and data, as `load_workload` takes it.

    Args:
        workload: a directory, or any other reference where neither task nor data are given.
        task: one of `TASKS`; None for what the architecture is for.
        data: a JSON Lines file; None for data.jsonl in the directory.

    Raises:
        WorkloadError: there is no such directory or task.
    """
    if task is None and data is None:
        return workload
    if not is_reference(workload):
        raise WorkloadError(f"--task and --data go with a Hugging Face directory, and there is none at {workload!r}")
    known = Reference.parse(workload)
    return str(dataclasses.replace(known, task=known.task if task is None else task,
                                   data=known.data if data is None else Path(data).expanduser().resolve()))


# -- the workload -----------------------------------------------------------------------------------------------


def load(text: str) -> Workload:
    """The workload of a directory and a file of examples.

    Args:
        text: "hf:DIRECTORY?task=...&data=...&tokens=...", or the directory alone: the task is then what its
            architecture is for, and the data are its data.jsonl.

    Returns:
        the workload, its ``source`` naming task, data and tokens, so that a fresh process finds the very same.

    Raises:
        WorkloadError: the directory or the data cannot be used; a line of the data is named with its number.
        MissingExtra: transformers, tokenizers or pillow is not installed.
    """
    known = Reference.parse(text)
    directory = open_directory(known.directory)
    if quantized := directory.config.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise WorkloadError(
            f"{known.directory} is quantized already ({method or 'by an unknown method'}): a workload "
            "starts from floating point, which is its baseline. Give the directory that it was made from; or, of "
            "compressed-tensors, take the module: thrifty.import_compressed_tensors(DIRECTORY)")
    if not known.task:
        known = dataclasses.replace(known, task=task_of(directory))
    files = (*(known.directory / name for name in DESCRIPTIONS), *weights(known.directory), known.data)
    return _load(known, tuple((str(path), (stat := path.stat()).st_mtime_ns, stat.st_size) for path in files if path.is_file()))


@functools.lru_cache(maxsize=4)
def _load(known: Reference, stamps: tuple[Any, ...]) -> Workload:
    """As files stand: one process asks for its workload several times, and texts are tokenized once."""
    directory = open_directory(known.directory)
    lines = read(known.data, TASKS[known.task].format)
    fields, tokens = _BUILD[known.task](directory, lines, known.tokens)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", known.directory.name).lstrip("-_.") or "model"
    source = str(dataclasses.replace(known, tokens=tokens))
    return Workload(name=name, example=functools.partial(_example, fields["validation"]), scenario=SingleStream(),
                    source=source, **fields)


def _example(dataset: Dataset[Any], n: int) -> tuple[Tensor, ...]:
    """n requests: the first of validation, again from the first where there are fewer."""
    rows = [as_inputs(dataset[i % length(dataset)][0]) for i in range(n)]
    return tuple(default_collate(rows))


def fingerprint(source: str) -> bytes:
    """Hash of a directory and of its file of examples, for the workload's."""
    known = Reference.parse(source)
    with known.data.open("rb") as file:
        data = hashlib.file_digest(file, "sha256").digest()
    return digest(known.directory) + data + f"{known.task} {known.tokens}".encode()


Built = tuple[dict[str, Any], int | None]
"""Fields of the Workload, and the length of its texts."""


def _text_classification(directory: Directory, lines: Lines, asked: int | None) -> Built:
    words, labels = words_of(directory), _labels(directory, lines)
    tokens = _tokens(words, asked, lambda: lengths(words, values(_seen(lines), "text")))
    sets = {split: Texts(words, values(lines.of(split), "text"), [labels[line.number] for line in lines.of(split)], tokens)
            for split in SPLITS}
    return {
        "model": lambda: TextLogits(load_body(directory.path, TASKS["text-classification"].auto, words.pad)).eval(),
        "loss": CrossEntropy(), "quality": Accuracy(batch_size=64), "batch_size": 32, **_present(sets),
    }, tokens


def _causal_lm(directory: Directory, lines: Lines, asked: int | None) -> Built:
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


def _feature_extraction(directory: Directory, lines: Lines, asked: int | None) -> Built:
    words, pooling = words_of(directory), pooling_of(directory)
    sets = {}
    tokens = _tokens(words, asked, lambda: lengths(
        words, [text for name in ("query", "document") for text in values(_seen(lines), name)]))
    for split in SPLITS:
        found = lines.of(split)
        texts, targets = sides([(line.values["query"], line.values["document"]) for line in found])
        documents = len(texts) - len(found)
        if split != "train" and documents <= RECALL:
            raise WorkloadError(f"{lines.path}: {split} has {documents} different documents, among which every query "
                                f"finds its own within the first {RECALL}; give more than {RECALL}")
        sets[split] = Texts(words, texts, targets, tokens)
    return {
        "model": lambda: Embedder(load_body(directory.path, TASKS["feature-extraction"].auto), pooling).eval(),
        "quality": Recall(k=RECALL), **_present(sets), **({"unlabelled": Alone(sets["train"])} if len(sets["train"]) else {}),
    }, tokens


def _image_classification(directory: Directory, lines: Lines, asked: int | None) -> Built:
    if asked is not None:
        raise WorkloadError("tokens are for text models; leave them out with images")
    pixels, labels = pixels_of(directory), _labels(directory, lines)
    sets = {}
    for split in SPLITS:
        paths = []
        for line in lines.of(split):
            try:
                paths.append(image_path(lines.path.parent, line.values["image"]))
            except WorkloadError as error:
                raise lines.wrong(line, str(error)) from error
        sets[split] = Images(paths, [labels[line.number] for line in lines.of(split)], pixels)
    return {
        "model": lambda: ImageLogits(load_body(directory.path, TASKS["image-classification"].auto)).eval(),
        "loss": CrossEntropy(), "quality": Accuracy(batch_size=64), "batch_size": 32, **_present(sets),
    }, None


_BUILD: Mapping[str, Callable[[Directory, Lines, int | None], Built]] = {
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


def _labels(directory: Directory, lines: Lines) -> dict[int, int]:
    """{line's number: class}: a number, or a word that config.json's label2id knows."""
    numbers = {str(word): int(number) for word, number in (directory.config.get("label2id") or {}).items()}
    classes = len(directory.config.get("id2label") or {}) or len(numbers) or int(directory.config.get("num_labels", 2))
    found = {}
    for line in lines.lines:
        label = line.values["label"]
        number = numbers.get(label) if isinstance(label, str) else label
        if number is None or not 0 <= number < classes:
            known = f"0 to {classes - 1}" + (f", or one of {', '.join(list(numbers)[:8])}" if numbers else "")
            raise lines.wrong(line, f'"label" is {label!r}, which this model does not have; it has {known}')
        found[line.number] = number
    return found
