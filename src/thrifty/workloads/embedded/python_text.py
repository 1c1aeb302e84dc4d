"""The standard library's text in tokens: which files, which split, and a byte-pair vocabulary of 2,048.

The vocabulary is learned from the training files alone (6 s, 2 cores); the tokens of all files are kept in the
user's cache, whose name holds the hash of the files, so another Python version makes its own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from thrifty.errors import MissingExtra
from thrifty.workloads.embedded.sources import bucket, build_once, data_folder, digest, library_files, read_library

VOCABULARY = 2048
START = 0
"""The token before the first of a window; no text contains it."""

VERSION = 1
"""Of the way from files to tokens; raised with every change of it."""

SPLITS = ("train", "validation", "test")

PIECES = r"\n? *[^\s\w]+|\n? *[^\W\d]+|\n? *\d{1,3}|\s+"
"""What a token may not cross: a run of punctuation, letters, digits or white space; spaces go with what follows."""


@functools.cache
def file_list() -> Mapping[str, tuple[str, ...]]:
    """Split -> paths relative to the standard library: a tenth each for validation and test, by hash of the path.

    Whole modules are held out. Left out: tables written by machines (encodings, pydoc_data, _sysconfigdata) and
    empty files.
    """
    split: dict[str, list[str]] = {name: [] for name in SPLITS}
    for path in library_files():
        first = path.split("/")[0]
        if first in ("encodings", "pydoc_data") or first.startswith(("config-", "_sysconfigdata")):
            continue
        if read_library(path):
            split[{0: "validation", 1: "test"}.get(bucket(path, 10), "train")].append(path)
    return MappingProxyType({name: tuple(paths) for name, paths in split.items()})


@functools.cache
def fingerprint() -> str:
    """sha256 of the names and contents of all files of `file_list`: results compare only where it is the same."""
    return digest([path for name in SPLITS for path in file_list()[name]])


@functools.cache
def tokens(split: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids [tokens] int64, bytes of text behind each [tokens] int64) of each file of a split.

    Raises:
        MissingExtra: the cache is empty and the `tokenizers` library, which fills it, is not installed.
    """
    folder = build_once(data_folder() / f"python-lm-{VERSION}-{VOCABULARY}-{fingerprint()[:16]}", _build)
    flat = np.load(folder / f"{split}.npy").astype(np.int64)
    sizes = np.array(json.loads((folder / "bytes.json").read_text()), dtype=np.int64)
    lengths = json.loads((folder / "files.json").read_text())[split]
    return [(ids, sizes[ids]) for ids in np.split(flat, np.cumsum(lengths)[:-1])]


def _build(folder: Path) -> None:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtra("tokenizers", "workloads") from error
    texts = {name: [read_library(path) for path in file_list()[name]] for name in SPLITS}
    model = _learn(tokenizers, texts["train"])
    # A byte-level vocabulary writes every byte as one character, so a token's bytes are its characters.
    words = {number: word for word, number in model.get_vocab().items()}
    sizes = [0 if number == START else len(words[number]) for number in range(VOCABULARY)]
    (folder / "bytes.json").write_text(json.dumps(sizes))
    lengths = {}
    for name in SPLITS:
        encoded = [np.array(e.ids, dtype=np.uint16) for e in model.encode_batch(texts[name])]
        lengths[name] = [len(ids) for ids in encoded]
        np.save(folder / f"{name}.npy", np.concatenate(encoded))
    (folder / "files.json").write_text(json.dumps(lengths))
    model.save(str(folder / "tokenizer.json"))


def _learn(tokenizers: Any, texts: list[str]) -> Any:
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(PIECES), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["\0"],  # START: no Python source holds a NUL,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return model
