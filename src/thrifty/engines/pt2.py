"""What a ``torch.export`` file may hold before torch opens it: numbers and calls of ATen, nothing that would be executed.

torch's own loader trusts its file. It unpickles weights that say that they are pickled, runs machine code that lies
beside the graph, evaluates the text of symbolic sizes and guards, and calls whatever function of torch a node names.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from thrifty.engines.engine import EngineError
from thrifty.errors import in_one_line

ENTRIES = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|version|\.data/\w+|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/(weights|constants)/(model_(weights|constants)_config\.json|(weight|tensor)_\d+))"
)
LARGEST_JSON = 256 * 2**20
TARGET = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|higher_order)\.\w+(\.\w+)?"
    r"|torch\.sym_(int|float|not|max|min|ite|sum|sqrt)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt|pow)"
)
REFUSED = re.compile(r"torch\.ops\.aten\.(from_file|save|load)\b.*")
"""Of ATen, what reads or writes files."""
FUNCTIONS = frozenset({
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv",
    "CeilDiv", "IntTrueDiv", "FloatTrueDiv", "ToFloat", "TruncToInt", "CeilToInt", "FloorToInt", "RoundToInt", "Abs", "Equality",
    "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "max", "min", "not_", "size", "stride",
    "storage_offset",
})
METHODS = frozenset({"size", "stride", "storage_offset", "shape", "device", "dtype", "ndim"})
_SYNTAX = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare,
    ast.Subscript, ast.Attribute, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)


def refuse_code(path: Path) -> None:
    """Look through a file, without torch, and refuse one that could run code.

    Raises:
        EngineError: it is damaged, or holds what a model has no need of.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            texts = [entry for entry in archive.infolist() if entry.filename.endswith(".json")]
            faults = [f"the entry {entry.filename!r}" for entry in archive.infolist() if not _permitted(entry)]
            if not faults:
                faults = [fault for entry in texts for fault in _faults(json.loads(archive.read(entry)))]
    except Exception as error:  # damaged archives raise half a dozen kinds, zlib's and struct's among them
        raise EngineError(f"{path} is not a torch.export program: {in_one_line(error)}; copy the artifact again") from error
    if faults:
        raise EngineError(f"{path} holds {faults[0][:200]}, which is not part of a model and could run code; it was not "
                          "opened: get it again from its author, or run its recipe here")


def _permitted(entry: zipfile.ZipInfo) -> bool:
    if entry.filename.endswith("data/sample_inputs/model.pt") and entry.file_size:
        return False  # a pickle: compile(export) leaves none
    return bool(ENTRIES.fullmatch(entry.filename)) and (not entry.filename.endswith(".json") or entry.file_size <= LARGEST_JSON)


def _faults(value: Any, key: str = "") -> Iterator[str]:
    """What is not permitted below a key, outermost first."""
    if isinstance(value, Mapping):
        if value.get("use_pickle"):
            yield "pickled weights"
        for name, part in value.items():
            if not _PLAIN(name):
                yield f"the name {name!r}"
            yield from _faults(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _faults(part, key)
    elif isinstance(value, str) and not _TEXTS.get(key, _PLAIN)(value):
        yield f"{key or 'text'} {value!r}"


@functools.lru_cache(4096)  # a graph repeats few of them often
def _expression(text: str) -> bool:
    """Sums, products and comparisons of sizes: no name is called but `FUNCTIONS`, nothing is reached through a name."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, _SYNTAX) and _harmless(node) for node in ast.walk(tree))


def _harmless(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return name in FUNCTIONS
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Attribute(attr=name):
            return name in METHODS
        case ast.Call():
            return False
        case ast.Name(id=name):
            return "__" not in name
        case ast.Constant(value=str(text)):
            return re.fullmatch(r"\w*", text) is not None and "__" not in text
    return True


_PLAIN: Callable[[str], bool] = lambda text: re.fullmatch(r"[\w.+\-:/ ]*", text) is not None
_TEXTS: Mapping[str, Callable[[str], bool]] = {
    "target": lambda text: TARGET.fullmatch(text) is not None and REFUSED.fullmatch(text) is None,
    "expr_str": _expression,
    "guards_code": _expression,
    # Trees of containers, which are JSON again; a class would be named with underscores.
    "in_spec": lambda text: re.fullmatch(r"[\w.\s\[\]{}\":,\\\-]*", text) is not None and "__" not in text,
    "out_spec": lambda text: re.fullmatch(r"[\w.\s\[\]{}\":,\\\-]*", text) is not None and "__" not in text,
    "custom": lambda text: True,  # notes of torch's own, read as JSON and never called
}
