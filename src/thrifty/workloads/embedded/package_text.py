"""Functions of installed packages: text without labels, of the kind that `functions` judges by and from none of its files.

The packages are those that Thrifty itself stands on, so that they are always there: torch and numpy, tests left out. Their
functions' code and first sentences, cut to some wordpieces, are kept in the user's cache under the packages' versions.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from thrifty.workloads.embedded.functions import Function, clear, functions
from thrifty.workloads.embedded.sources import build_once, data_folder, package_folder

PACKAGES = ("torch", "numpy")
VERSION = 1
"""Of the way from packages to tokens; raised with every change of it."""


def package_functions(package: str) -> list[Function]:
    """Functions of an installed package that have a docstring of one clear sentence, its tests left out."""
    root = package_folder(package, package, "workloads")
    paths = sorted(path for path in root.rglob("*.py") if not any("test" in part for part in path.relative_to(root).parts))
    found = [function for path in paths
             for function in functions(path.read_text(errors="replace"), f"{package}/{path.relative_to(root).as_posix()}")]
    return clear(found)


@final
class PackageText(Dataset[tuple[Tensor, Tensor]]):
    """Each function's code and its docstring's first sentence as items (ids [tokens], mask [tokens]); made at first use.

    Args:
        tokenizer: tokens -> a tokenizer that cuts and pads to so many.
        tokens: that a text is padded to.
        packages: whose functions.
    """

    def __init__(self, tokenizer: Callable[[int], Any], tokens: int, packages: Sequence[str] = PACKAGES) -> None:
        self._tokenizer, self.tokens, self.packages = tokenizer, tokens, tuple(packages)

    def __len__(self) -> int:
        return len(self._texts[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        ids, lengths = self._texts
        return (torch.from_numpy(ids[index].astype(np.int64)),
                (torch.arange(self.tokens) < int(lengths[index])).long())

    @functools.cached_property
    def _texts(self) -> tuple[np.ndarray, np.ndarray]:
        versions = "-".join(f"{name}-{importlib.metadata.version(name)}" for name in self.packages)
        folder = build_once(data_folder() / f"package-text-{VERSION}-{self.tokens}-{versions}", self._build)
        return np.load(folder / "ids.npy"), np.load(folder / "lengths.npy")

    def _build(self, folder: Path) -> None:
        texts = [text for name in self.packages for f in package_functions(name) for text in (f.code, f.sentence)]
        encoded = self._tokenizer(self.tokens).encode_batch(texts)
        np.save(folder / "ids.npy", np.array([e.ids for e in encoded], dtype=np.uint16))
        np.save(folder / "lengths.npy", np.array([sum(e.attention_mask) for e in encoded], dtype=np.uint16))
