"""A hash of a workload: its source, and the items of its data sets that are the same at every look."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import enum
import hashlib
import pathlib
import random
import sys
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from thrifty.workloads.blame import part
from thrifty.workloads.quality import length
from thrifty.workloads.workload import Workload

SPLITS = ("train", "validation", "test")
LOOKED_AT = 512
"""Items of a split, spread evenly."""
DEEPEST = 20
"""Levels of objects within objects that are followed."""
VALUES = (str, bytes, int, float, complex, bool, type(None), enum.Enum, pathlib.PurePath, np.generic, type, torch.dtype)
"""Whose representation says what they are, in every process."""


def fingerprint(workload: Workload) -> str:
    """Hash of the workload's source and data: its file, those beside it that it imports, up to 512 items a split.

    Items are read twice. What is not the same both times (a random augmentation with a generator of its own), and what only an
    address tells apart, is left out, in all items of the split alike. For a Hugging Face directory: its configuration,
    tokenizer, weights and data file in place of the workload's file.
    """
    from thrifty.workloads import huggingface

    digest = hashlib.sha256()
    if workload.source.startswith(huggingface.SCHEME):
        digest.update(huggingface.fingerprint(workload.source))
    else:
        for path in _sources(workload):
            digest.update(path.read_bytes())
    for split in (*SPLITS, "unlabelled"):
        dataset = getattr(workload, split)
        if dataset is not None:
            digest.update(f"{split}{length(dataset)}".encode())
            digest.update(_of_items(dataset, split))
    return digest.hexdigest()


def item(dataset: Dataset[Any], split: str, i: int) -> Any:
    """One item.

    Raises:
        WorkloadError: the data set raised; names the item.
    """
    with part(f"item {i} of the {split} set"):
        return dataset[i]


def spread(n: int, most: int) -> list[int]:
    """At most ``most`` indices spread evenly over range(n)."""
    return list(range(n)) if n <= most else [i * (n - 1) // (most - 1) for i in range(most)]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from the generators of torch, numpy and Python as after this seed; afterwards they stand where they stood."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _of_items(dataset: Dataset[Any], split: str) -> bytes:
    kept, unsteady = [], set()
    for i in spread(length(dataset), LOOKED_AT):
        looks = []
        for _ in range(2):
            with seeded(i):
                looks.append(leaves(item(dataset, split, i)))
        unsteady |= {path for path in looks[0].keys() | looks[1].keys() if looks[0].get(path) != looks[1].get(path)}
        kept.append(looks[0])
    digest = hashlib.sha256()
    for look in kept:
        for path, found in look.items():
            if path not in unsteady and found is not None:
                digest.update(path.encode() + found)
    return digest.digest()


def leaves(value: Any) -> dict[str, bytes | None]:
    """{where in a nest of containers and objects: hash of what is there}, None for what only an address tells apart.

    >>> {path: found is not None for path, found in leaves({"a": torch.ones(2), "b": [1, object()]}).items()}
    {'/a': True, '/b': True, '/b/0': True, '/b/1': False}
    """
    found: dict[str, bytes | None] = {}
    _look(value, "", found, set())
    return found


def _look(value: Any, path: str, found: dict[str, bytes | None], above: set[int]) -> None:
    match value:
        case Tensor() if value.layout is torch.strided and not value.is_quantized:
            x = value.detach().resolve_conj().resolve_neg().contiguous().cpu()
            data = x.reshape(-1).view(torch.uint8).numpy().tobytes()
            found[path] = _hash(str((x.dtype, tuple(x.shape))).encode() + data)
        case np.ndarray() if value.dtype != object:
            found[path] = _hash(str((value.dtype, value.shape)).encode() + np.ascontiguousarray(value).tobytes())
        case _ if isinstance(value, VALUES):
            found[path] = _hash(repr(value).encode())
        case _ if id(value) in above or len(above) > DEEPEST:
            found[path] = None
        case _:
            _look_inside(value, path, found, above | {id(value)})


def _look_inside(value: Any, path: str, found: dict[str, bytes | None], above: set[int]) -> None:
    match value:
        case Mapping():
            inside = {str(key): value[key] for key in value}
        case Set():
            parts = [leaves(one) for one in value]
            steady = all(one is not None for each in parts for one in each.values())
            found[path] = _hash(b"".join(sorted(repr(sorted(each.items())).encode() for each in parts))) if steady else None
            return
        case list() | tuple():
            found[path] = _hash(f"{len(value)}".encode())
            inside = {str(i): one for i, one in enumerate(value)}
        case np.ndarray():
            inside = {str(i): one for i, one in enumerate(value.ravel().tolist())}
        case _ if hasattr(value, "__array_interface__"):  # pictures
            _look(np.asarray(value), path, found, above)
            return
        case _ if (inside := _fields(value)):
            found[path] = _hash(type(value).__qualname__.encode())
        case _:
            text = repr(value)
            own = type(value).__repr__ is not object.__repr__ and " at 0x" not in text
            found[path] = _hash(text.encode()) if own else None
            return
    for name, one in inside.items():
        _look(one, f"{path}/{name}", found, above)


def _fields(value: Any) -> dict[str, Any]:
    """What an object holds, by name."""
    if dataclasses.is_dataclass(value):
        return {spec.name: getattr(value, spec.name, None) for spec in dataclasses.fields(value)}
    slots = [vars(cls).get("__slots__", ()) for cls in type(value).__mro__]
    named = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
    return {name: getattr(value, name, None) for name in (*named, *getattr(value, "__dict__", ())) if not name.startswith("__")}


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _sources(workload: Workload) -> list[Path]:
    """The workload's file and, transitively, the files beside it that it imports."""
    place = workload.source.rpartition(":")[0]
    if not place:
        return []
    waiting = [Path(place if place.endswith(".py") else sys.modules[place].__file__ or "")]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", ())] + [getattr(node, "module", None) or ""]
            if isinstance(node, ast.Import | ast.ImportFrom):
                waiting += [path.parent / f"{name.rpartition('.')[2]}.py" for name in names if name]
    return sorted(found)
