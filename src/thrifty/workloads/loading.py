"""Finding a workload by its name or place."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from thrifty.errors import ThriftyError, WorkloadError, in_one_line
from thrifty.workloads.blame import described, part, users_code
from thrifty.workloads.fingerprint import seeded
from thrifty.workloads.nested_inputs import flattened
from thrifty.workloads.workload import Workload


def load_workload(place: str, *, task: str | None = None, data: str | Path | None = None, train: str | Path | None = None,
                  reference: str | None = None) -> Workload:
    """Load a workload by its name, file, module or Hugging Face directory.

    Args:
        place: an embedded workload's name ("digits"), a file ("my.py", "my.py:workload"), a module
            ("package.module:workload"), a Hugging Face directory ("./my-model", "hf:/my-model?data=..."), or the name on the
            hub ("org/name") of one that this machine's cache holds. What follows goes with a directory alone.
        task: what its model is for; None for what its architecture is for.
        data: its examples, JSON Lines; None for data.jsonl in it.
        train: examples to train with, JSON Lines; None for those of ``data``.
        reference: the recipe by which it is trained today; None for a fine-tuning where ``train`` is given, else for none.

    Returns:
        the workload, its ``source`` set to an absolute place that a fresh process can load.

    Raises:
        WorkloadError: it is not there, raises while it loads, or is not a Workload.

    >>> load_workload("digits").name
    'digits'
    """
    from thrifty.workloads import huggingface
    from thrifty.workloads.embedded import EMBEDDED

    try:
        text = huggingface.reference(place, task, data, train, reference)
        is_directory = text not in EMBEDDED and huggingface.is_reference(text)
    except (OSError, ValueError) as error:  # a name too long, say
        raise WorkloadError(f"{place[:200]!r} cannot be read: {in_one_line(error)[:100]}") from error
    if is_directory:
        return huggingface.load(text)
    module_or_file, _, attribute = _place(text, EMBEDDED)
    module = _module(module_or_file, text)
    with part(f"looking up {attribute!r} in {module_or_file}"):
        defined = hasattr(module, attribute)
    if not defined:
        raise WorkloadError(
            f"{module_or_file} defines no {attribute!r}; end it with `{attribute} = thrifty.Workload(name=..., ...)`"
        )
    workload = getattr(module, attribute)
    if not isinstance(workload, Workload):
        raise WorkloadError(f"{attribute} of {module_or_file} must be a thrifty.Workload but is {type(workload).__name__}")
    return flattened(dataclasses.replace(workload, source=f"{module_or_file}:{attribute}"))


def _place(reference: str, embedded: Mapping[str, Any]) -> tuple[str, str, str]:
    if reference in embedded:
        reference = embedded[reference].place
    place, colon, attribute = reference.rpartition(":")
    if not colon:
        place, attribute = reference, "workload"
    if place.endswith(".py"):
        try:
            path = Path(place).expanduser().resolve()
            there = path.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, a circle of links
            raise WorkloadError(f"{place[:200]} cannot be read: {in_one_line(error)}") from error
        if not there:
            shown = str(path) if str(path).isprintable() else repr(str(path))
            raise WorkloadError(f"there is no file {shown}; give a file that defines `workload`, or one of: "
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
            with users_code():
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
            with seeded(0), users_code():  # what the file draws is the same in every process
                spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        return module
    except (ThriftyError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise WorkloadError(f"loading {reference} raised {described(error)}{_needed(error)}") from error


def _needed(error: BaseException) -> str:
    """What a Workload takes, where the error says that an argument is missing or that there is none of this name."""
    if not (isinstance(error, TypeError) and "Workload." in str(error)):
        return ""
    fields = {spec.name: spec for spec in dataclasses.fields(Workload)}
    if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
        near = [name for name in fields if name.startswith(unknown[1])] or difflib.get_close_matches(unknown[1], fields, n=1)
        return f" (did you mean {near[0]!r}?)" if near else f" (a Workload takes: {', '.join(fields)})"
    if "required" not in str(error):
        return ""
    return " (a Workload needs: " + ", ".join(name for name, spec in fields.items()
                                              if spec.default is spec.default_factory is dataclasses.MISSING) + ")"
