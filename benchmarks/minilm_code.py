"""`minilm` with more text to learn from and 10,000 queries to be judged by: functions of all packages that are installed.

    thrifty run benchmarks/minilm_code.py "prune(structure=blocks, ratio=0.2) | train(distill(embedding), bf16, steps=4000) |
        quantize(w8a8) | compile(onnxruntime)" --training-device cuda

Every fourth package, by the hash of its name, is held out: its functions are the queries and documents of test, in pools of 1,000
documents, as many to choose from as in `minilm`. The functions of the others are the unlabelled text. What `minilm` is judged by
(the standard library, which is validation here) is in neither, nor is any text of it that a package has copied.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import sysconfig
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from thrifty.workloads.embedded.functions import PAIRS, Function, clear, functions, pairs
from thrifty.workloads.embedded.minilm import TOKENS, tokenizer
from thrifty.workloads.embedded.minilm import workload as minilm
from thrifty.workloads.embedded.retrieval import DOCUMENT, QUERY, recalled
from thrifty.workloads.embedded.sources import bucket, build_once, data_folder
from thrifty.workloads.quality import Predict, Quality, Scores, batches

QUERIES = 10_000
TEXTS = 400_000
"""Largest number to learn from."""
VERSION = 1


def found(path: Path) -> list[Function]:
    root = Path(sysconfig.get_paths()["purelib"])
    return list(functions(path.read_text(errors="replace"), path.relative_to(root).as_posix()))


def folder() -> Path:
    """The texts' tokens, made once."""
    root = Path(sysconfig.get_paths()["purelib"])
    files = sorted(path for path in root.rglob("*.py") if "tests" not in path.parts and "test" not in path.parts)
    named = hashlib.sha256("\n".join(path.relative_to(root).as_posix() for path in files).encode()).hexdigest()[:16]
    return build_once(data_folder() / f"minilm-code-{VERSION}-{named}", functools.partial(build, files))


def build(files: list[Path], place: Path) -> None:
    with concurrent.futures.ProcessPoolExecutor() as pool:
        every = [f for several in pool.map(found, files, chunksize=64) for f in several]
    judged = {text for split in ("validation", "test") for f in pairs(split) for text in (f.code, f.sentence)}
    every = [f for f in every if f.code not in judged and f.sentence not in judged]
    held = {f.path.split("/")[0] for f in every if bucket(f.path.split("/")[0], 4) == 0}
    shuffled = sorted(every, key=lambda f: hashlib.sha256(f.code.encode()).digest())
    asked = clear([f for f in shuffled if f.path.split("/")[0] in held])[:QUERIES // PAIRS * PAIRS]
    known = {text for f in asked for text in (f.code, f.sentence)}
    learned = list(dict.fromkeys(text for f in shuffled if f.path.split("/")[0] not in held
                                 for text in (f.code, f.sentence) if text not in known))[:TEXTS]
    numbers = {path: i for i, path in enumerate(sorted({f.path for f in asked}))}
    np.save(place / "files.npy", np.array([numbers[f.path] for f in asked]))
    for name, texts in (("learned", learned), ("asked", [text for f in asked for text in (f.code, f.sentence)])):
        encoded = tokenizer().encode_batch(texts)
        np.save(place / f"{name}.npy", np.array([e.ids for e in encoded], dtype=np.uint16))
        np.save(place / f"{name}_lengths.npy", np.array([sum(e.attention_mask) for e in encoded], dtype=np.uint8))


@final
class Texts(Dataset[tuple[Tensor, Tensor]]):
    """(ids [128], mask [128]) of one of the two sets."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __len__(self) -> int:
        return len(self._texts[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        ids, lengths = self._texts
        return torch.from_numpy(ids[index].astype(np.int64)), (torch.arange(TOKENS) < int(lengths[index])).long()

    @functools.cached_property
    def _texts(self) -> tuple[np.ndarray, np.ndarray]:
        place = folder()
        return np.load(place / f"{self.name}.npy"), np.load(place / f"{self.name}_lengths.npy")


@final
class Asked(Dataset[tuple[tuple[Tensor, Tensor], tuple[int, int, int]]]):
    """The held-out functions as `minilm` has its own: ((ids, mask), (side, pair, file))."""

    def __init__(self) -> None:
        self.texts = Texts("asked")

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], tuple[int, int, int]]:
        pair, side = divmod(index, 2)
        return self.texts[index], ((DOCUMENT, QUERY)[side], pair, int(self._files[pair]))

    @functools.cached_property
    def _files(self) -> np.ndarray:
        return np.load(folder() / "files.npy")


@final
@dataclasses.dataclass(frozen=True)
class PooledRecall(Quality):
    """`Recall` among the 1,000 documents of a query's own pool."""

    k: int = 10
    name = "recall"
    higher_is_better = True

    @property
    def embeds(self) -> bool:
        return True

    def sample(self, dataset: Dataset[Any], most: int) -> Dataset[Any]:
        return dataset

    def __call__(self, predict: Predict, dataset: Dataset[Any]) -> Scores:
        parts = [(torch.as_tensor(predict(inputs)).double(), *map(torch.as_tensor, target))
                 for inputs, target in batches(dataset, 32)]
        vectors, side, pair, cluster = (torch.cat(columns).cpu() for columns in zip(*parts, strict=True))
        query, document = side == QUERY, side == DOCUMENT
        hits = np.concatenate([
            recalled(vectors[query & inside], pair[query & inside], vectors[document & inside], pair[document & inside], self.k)
            for inside in (pair // PAIRS == pool for pool in range(int(pair.max()) // PAIRS + 1))])
        return Scores(hits, np.ones_like(hits), cluster[query].long().numpy())


workload = dataclasses.replace(minilm, name="minilm-code", test=Asked(), unlabelled=Texts("learned"), quality=PooledRecall(),
                               batch_size=128)
