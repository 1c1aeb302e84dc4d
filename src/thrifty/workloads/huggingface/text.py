"""From lines of text to tokens of one length: classified texts, pairs to retrieve, windows of a language model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from thrifty.errors import MissingExtra, WorkloadError
from thrifty.workloads.embedded.retrieval import DOCUMENT, QUERY
from thrifty.workloads.huggingface.directory import TOKENIZER, Directory
from thrifty.workloads.huggingface.models import EXTRA

IGNORED = -100
SHARE_THAT_FITS = 0.95
MOST_BY_DEFAULT = 1024
"""A context of 131,072 tokens is the model's right, not what its users send: more is chosen, never guessed."""
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


@final
@dataclass(frozen=True)
class Words:
    """A directory's tokenizer with what it needs to know of the model.

    Args:
        tokenizer: of the tokenizers library.
        vocabulary: rows of the model's embedding.
        longest: tokens that the model takes.
        pad: token that fills texts up.
        start: token before the first of a text, None where there is none.
    """

    tokenizer: Any
    vocabulary: int
    longest: int
    pad: int
    start: int | None


def words_of(directory: Directory) -> Words:
    """Read a directory's fast tokenizer.

    Raises:
        MissingExtra: the tokenizers library is not installed.
        WorkloadError: there is no tokenizer.json, or it is damaged.
    """
    path = directory.needs(
        TOKENIZER, "only fast tokenizers are supported; convert a slow one: python -c \"import transformers as t; "
        f"t.AutoTokenizer.from_pretrained('{directory.path}').save_pretrained('{directory.path}')\"")
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtra("tokenizers", EXTRA) from error
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise WorkloadError(f"{path} is damaged: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config, noted = directory.config, directory.json("tokenizer_config.json")
    limits = [config.get(name) for name in POSITIONS] + [noted.get("model_max_length")]
    longest = min((int(n) for n in limits if isinstance(n, int | float) and 0 < n < 1e9), default=MOST_BY_DEFAULT)
    special = functools.partial(_special, directory, tokenizer)
    end, start = special("eos"), special("bos")
    pad = next((token for token in (special("pad"), end) if token is not None), 0)
    return Words(tokenizer, int(config.get("vocab_size", tokenizer.get_vocab_size())), longest, pad,
                 end if start is None else start)


def _special(directory: Directory, tokenizer: Any, kind: str) -> int | None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = directory.json(name).get(f"{kind}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and (known := tokenizer.token_to_id(token)) is not None:
            return int(known)
    number = directory.config.get(f"{kind}_token_id")
    number = number[0] if isinstance(number, list) and number else number
    return number if isinstance(number, int) else None


def fixed_length(counts: Sequence[int], longest: int) -> int:
    """The one length that all texts are padded or cut to.

    One length, since engines are compiled for fixed shapes, and since a request must cost the same whenever it comes
    for a latency to mean anything. The smallest power of 2 that holds 95% of the texts: the longest text of a file is
    often ten times the usual one, and would make all others pay for it; the reference model sees the same cut ones. At
    most the largest power of 2 that the model takes, and at most 1,024 unless `tokens` asks for more.

    Args:
        counts: tokens of each text.
        longest: tokens that the model takes.

    >>> fixed_length([9] * 95 + [700] * 5, 512)
    16
    >>> fixed_length([700], 514)
    512
    """
    needed = int(np.quantile(counts, SHARE_THAT_FITS, method="inverted_cdf"))
    most = 1 << (min(longest, MOST_BY_DEFAULT).bit_length() - 1)
    return min(most, max(8, 1 << (needed - 1).bit_length()))


def check_tokens(tokens: int, words: Words) -> int:
    """The asked-for length itself.

    Raises:
        WorkloadError: the model does not take it.
    """
    if not 1 <= tokens <= words.longest:
        raise WorkloadError(f"tokens must be 1 to {words.longest}, which the model takes, but is {tokens}")
    return tokens


def lengths(words: Words, texts: Sequence[str], special: bool = True) -> list[int]:
    """Tokens of each text, with those that the tokenizer puts around it where ``special``."""
    return [len(found.ids) for found in words.tokenizer.encode_batch(list(texts), add_special_tokens=special)]


def encoded(words: Words, texts: Sequence[str], tokens: int) -> tuple[Tensor, Tensor]:
    """(ids, mask) [texts, tokens] int64: cut, or filled up on the right; the mask is 0 where they are filled.

    Raises:
        WorkloadError: the tokenizer gives tokens that the model does not know.
    """
    words.tokenizer.enable_truncation(tokens)
    try:
        found = [each.ids for each in words.tokenizer.encode_batch(list(texts))]
    finally:
        words.tokenizer.no_truncation()
    ids = torch.full((len(found), tokens), words.pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, some in enumerate(found):
        ids[row, : len(some)] = torch.tensor(some, dtype=torch.int64)
        mask[row, : len(some)] = 1
    _check_known(words, int(ids.max()))
    return ids, mask


def _check_known(words: Words, highest: int) -> None:
    if highest >= words.vocabulary:
        raise WorkloadError(f"the tokenizer gives token {highest} but the model knows {words.vocabulary}: "
                            f"{TOKENIZER} is not the model's own")


@final
class Texts(Dataset[tuple[tuple[Tensor, Tensor], Any]]):
    """Texts as ((ids [tokens], mask [tokens]), target); tokenized at first use.

    Args:
        words: the tokenizer.
        texts: one an example.
        targets: likewise.
        tokens: length of every row.
    """

    def __init__(self, words: Words, texts: Sequence[str], targets: Sequence[Any], tokens: int) -> None:
        self.words, self.texts, self.targets, self.tokens = words, texts, targets, tokens

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], Any]:
        ids, mask = self._encoded
        return (ids[index], mask[index]), self.targets[index]

    @functools.cached_property
    def _encoded(self) -> tuple[Tensor, Tensor]:
        return encoded(self.words, self.texts, self.tokens)


def sides(pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[tuple[int, int, int]]]:
    """The texts and targets (side, pair, cluster) of `Recall`, from pairs of query and document.

    Equal documents are one: each of its queries wants it, and its queries are one cluster.

    >>> sides([("a", "x"), ("b", "y"), ("c", "x")])[0]
    ['x', 'a', 'c', 'y', 'b']
    """
    wanting: dict[str, list[str]] = {}
    for query, document in pairs:
        wanting.setdefault(document, []).append(query)
    texts, targets = [], []
    for number, (document, queries) in enumerate(wanting.items()):
        texts += [document, *queries]
        targets += [(DOCUMENT, number, number)] + [(QUERY, number, number)] * len(queries)
    return texts, targets


@final
class Windows(Dataset[tuple[Tensor, Any]]):
    """Documents as windows of a language model: every token is predicted exactly once; tokenized at first use.

    A document is the texts of one file (or one text where lines name no file). Its texts are joined by the start token
    and cut into windows; short documents are joined likewise until a window is full. A window's inputs are the start
    token and all of its tokens but the last, its targets all of its tokens. Targets are -100, neither trained nor
    scored, where the start token or filling stands: bits / bytes is then the length of a code for the texts, given
    where they end. Windows of one document are one cluster.

    Items are (inputs [tokens], targets [tokens]) where ``scored`` is False, else (inputs, (targets, bytes, cluster)).

    Args:
        words: the tokenizer; needs a start token.
        documents: the texts of each.
        tokens: of every window.
        scored: whether items carry what `BitsPerByte` needs.
    """

    def __init__(self, words: Words, documents: Sequence[Sequence[str]], tokens: int, scored: bool) -> None:
        self.words, self.documents, self.tokens, self.scored = words, documents, tokens, scored

    def __len__(self) -> int:
        return len(self._windows[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        inputs, targets, sizes, clusters = self._windows
        if not self.scored:
            return inputs[index], targets[index]
        return inputs[index], (targets[index], int(sizes[index]), int(clusters[index]))

    @functools.cached_property
    def _windows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """inputs [n, tokens], targets [n, tokens], bytes [n], clusters [n]."""
        start = self.words.start
        assert start is not None
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        clusters: list[int] = []
        open_row = False
        for cluster, texts in enumerate(self.documents):
            ids, sizes = _joined([_sized(self.words, text) for text in texts], start)
            if not len(ids):
                continue
            if open_row and len(rows[-1][0]) + 1 + len(ids) <= self.tokens:
                rows[-1] = _joined([rows[-1], (ids, sizes)], start)
                continue
            cuts = range(self.tokens, len(ids), self.tokens)
            rows += zip(np.split(ids, cuts), np.split(sizes, cuts), strict=True)
            clusters += [cluster] * (len(cuts) + 1)
            open_row = not cuts  # the rest of a long document is not joined with another: clusters stay apart
        inputs = torch.full((len(rows), self.tokens), start, dtype=torch.int64)
        targets = torch.full((len(rows), self.tokens), IGNORED, dtype=torch.int64)
        for row, (ids, sizes) in enumerate(rows):
            inputs[row, 1 : len(ids)] = torch.from_numpy(ids[:-1])
            targets[row, : len(ids)] = torch.from_numpy(np.where(sizes < 0, IGNORED, ids))
        if len(rows):
            _check_known(self.words, int(inputs.max().maximum(targets.max())))
        counted = [int(np.maximum(sizes, 0).sum()) for _, sizes in rows]
        return inputs, targets, torch.tensor(counted), torch.tensor(clusters)


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray]], start: int) -> tuple[np.ndarray, np.ndarray]:
    """Token sequences with the start token between them; its size is -1: it stands for no text."""
    ids, sizes = [], []
    for some, covered in parts:
        if len(some):
            ids += [np.array([start]), some]
            sizes += [np.array([-1]), covered]
    if not ids:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(ids[1:]), np.concatenate(sizes[1:])


def _sized(words: Words, text: str) -> tuple[np.ndarray, np.ndarray]:
    """(ids, bytes of the text behind each): what a tokenizer drops between two tokens counts with the later one."""
    found = words.tokenizer.encode(text, add_special_tokens=False)
    if not found.ids:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    ends = np.maximum.accumulate([end for _, end in found.offsets])
    ends[-1] = len(text)
    at = np.concatenate([[0], np.cumsum([len(c.encode()) for c in text])])  # byte at which each character begins
    return np.array(found.ids, np.int64), np.diff(at[ends], prepend=0)


def documents_of(files: Sequence[str | None], texts: Sequence[str]) -> list[list[str]]:
    """Texts of one file together, in order; a text without a file is a document of its own.

    >>> documents_of(["a", None, "a", None], ["1", "2", "3", "4"])
    [['1', '3'], ['2'], ['4']]
    """
    found: dict[Any, list[str]] = {}
    for i, (file, text) in enumerate(zip(files, texts, strict=True)):
        found.setdefault(i if file is None else file, []).append(text)
    return list(found.values())
