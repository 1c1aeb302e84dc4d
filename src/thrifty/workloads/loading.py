"""Finding a workload, and checking that it can be used before anything is spent on it."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.errors import ThriftyError, WorkloadError
from thrifty.workloads.nested_inputs import flattened
from thrifty.workloads.quality import length
from thrifty.workloads.workload import Workload


def load_workload(reference: str) -> Workload:
    """Load a workload by name or place.

    Args:
        reference: an embedded workload's name ("digits"), a file ("my.py", "my.py:workload"), a module
            ("package.module:workload"), or a Hugging Face directory ("./my-model", "hf:/my-model?data=...").

    Returns:
        the workload, its ``source`` set to an absolute place that a fresh process can load.

    Raises:
        WorkloadError: it is not there, raises while it loads, or is not a Workload.

    >>> load_workload("digits").name
    'digits'
    """
    from thrifty.workloads import huggingface
    from thrifty.workloads.embedded import EMBEDDED

    if reference not in EMBEDDED and huggingface.is_reference(reference):
        return huggingface.load(reference)
    place, _, attribute = _place(reference, EMBEDDED)
    module = _module(place, reference)
    if not hasattr(module, attribute):
        raise WorkloadError(
            f"{place} defines no {attribute!r}; end it with `{attribute} = thrifty.Workload(name=..., ...)`"
        )
    workload = getattr(module, attribute)
    if not isinstance(workload, Workload):
        raise WorkloadError(f"{attribute} of {place} must be a thrifty.Workload but is {type(workload).__name__}")
    return flattened(dataclasses.replace(workload, source=f"{place}:{attribute}"))


def _place(reference: str, embedded: Mapping[str, Any]) -> tuple[str, str, str]:
    if reference in embedded:
        reference = embedded[reference].place
    place, colon, attribute = reference.rpartition(":")
    if not colon:
        place, attribute = reference, "workload"
    if place.endswith(".py"):
        path = Path(place).expanduser().resolve()
        if not path.is_file():
            raise WorkloadError(f"there is no file {path}; give a file that defines `workload`, or one of: "
                                + ", ".join(embedded))
        return str(path), colon, attribute
    if "/" not in place and (colon or "." in place):
        return place, colon, attribute
    import difflib

    near = difflib.get_close_matches(place, embedded, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise WorkloadError(
        f"there is no workload {place!r}{hint} Embedded: {', '.join(embedded)}. "
        "Or give a file that defines `workload`: thrifty run my_workload.py ..."
    )


def _module(place: str, reference: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place)
        name = f"thrifty_workload_{hashlib.sha256(place.encode()).hexdigest()[:12]}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickling look classes up here
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))  # the file's own helpers import as when it is run
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except ThriftyError:
        raise
    except (Exception, SystemExit) as error:
        raise WorkloadError(f"loading {reference} raised {type(error).__name__}: {error}{_where(error, place)}") from error


def _where(error: BaseException, place: str) -> str:
    if isinstance(error, TypeError) and "required" in str(error):
        names = ", ".join(f.name for f in dataclasses.fields(Workload) if f.default is dataclasses.MISSING
                          and f.default_factory is dataclasses.MISSING)
        return f" (a Workload needs: {names})"
    frame = error.__traceback__
    line = None
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == place:
            line = frame.tb_lineno
        frame = frame.tb_next
    return f" (line {line})" if line else ""


def check_example(workload: Workload, model: nn.Module) -> Any:
    """Run the model on one of the workload's examples; return its outputs.

    Raises:
        WorkloadError: ``example`` gives no tensors, or the model cannot take them.
    """
    try:
        example = workload.example(1)
    except Exception as error:
        raise WorkloadError(f"example(1) raised {type(error).__name__}: {error}") from error
    if not isinstance(example, tuple) or not all(isinstance(x, Tensor) for x in example) or not example:
        raise WorkloadError(f"example(n) must return a tuple of tensors, or a dictionary of them, but returned "
                            f"{type(example).__name__}")
    try:
        with torch.no_grad():
            return model.eval()(*example)
    except Exception as error:
        shapes = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in example)
        raise WorkloadError(
            f"the model cannot take its own example ({shapes}): {type(error).__name__}: {error}"
        ) from error


def check_data(workload: Workload) -> None:
    """Refuse empty and one-class data sets before anything is spent on them.

    Raises:
        WorkloadError: a split is empty, an item cannot be read, or every label of a classification set is the same.
    """
    for split in ("train", "validation", "test"):
        dataset = getattr(workload, split)
        if dataset is None:
            continue
        n = length(dataset)
        if n == 0:
            raise WorkloadError(f"the {split} set of {workload.name} is empty")
        labels = [_label(_item(workload, split, i)) for i in _spread(n, 512)]
        if n > 1 and all(isinstance(x, int) for x in labels) and len(set(labels)) == 1:
            whole = {_label(_item(workload, split, i)) for i in range(n)}
            if len(whole) == 1:
                raise WorkloadError(
                    f"every label of the {split} set of {workload.name} is {labels[0]}: nothing can be learnt or "
                    "judged from one class"
                )


def _item(workload: Workload, split: str, i: int) -> Any:
    try:
        return getattr(workload, split)[i]
    except ThriftyError:
        raise
    except Exception as error:
        raise WorkloadError(
            f"item {i} of the {split} set of {workload.name} raised {type(error).__name__}: {error}"
        ) from error


def _label(item: Any) -> int | None:
    target = item[1] if isinstance(item, Sequence) and len(item) == 2 else None
    if isinstance(target, Tensor) and target.ndim == 0 and not target.is_floating_point():
        return int(target)
    return target if isinstance(target, int) else None


def _spread(n: int, most: int) -> list[int]:
    """At most ``most`` indices spread evenly over range(n)."""
    return list(range(n)) if n <= most else [i * (n - 1) // (most - 1) for i in range(most)]


def fingerprint(workload: Workload) -> str:
    """Hash of the workload's source and data: its file, those beside it that it imports, up to 512 items a split.

    Of a Hugging Face directory: its configuration, tokenizer, weights and data file in place of the workload's file.
    """
    from thrifty.workloads import huggingface

    digest = hashlib.sha256()
    if workload.source.startswith(huggingface.SCHEME):
        digest.update(huggingface.fingerprint(workload.source))
    else:
        for path in _sources(workload):
            digest.update(path.read_bytes())
    for split in ("train", "validation", "test"):
        dataset = getattr(workload, split)
        if dataset is None:
            continue
        n = length(dataset)
        digest.update(f"{split}{n}".encode())
        for i in _spread(n, 512):
            _update(digest, dataset[i])
    return digest.hexdigest()


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


def _update(digest: Any, item: Any) -> None:
    match item:
        case Tensor():
            digest.update(str((item.dtype, tuple(item.shape))).encode())
            digest.update(item.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes() if item.ndim
                          else repr(item.item()).encode())
        case np.ndarray():
            digest.update(str((item.dtype, item.shape)).encode() + np.ascontiguousarray(item).tobytes())
        case dict():
            for key in item:
                digest.update(str(key).encode())
                _update(digest, item[key])
        case list() | tuple():
            for part in item:
                _update(digest, part)
        case _:
            digest.update(repr(item).encode())
