"""Functions of the standard library with their docstrings apart: a retrieval task that needs no labels."""

from __future__ import annotations

import ast
import collections
import functools
import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from thrifty.workloads.embedded.sources import bucket, library_files, read_library

PAIRS = 1000
SPLITS = {"validation": 0, "test": 1}


@final
@dataclass(frozen=True)
class Function:
    """A function of the standard library.

    Args:
        path: its file, relative to the library.
        code: its source from `def` to its end, the docstring cut out and dedented.
        sentence: its docstring's first sentence, on one line.
    """

    path: str
    code: str
    sentence: str


@functools.cache
def pairs(split: str) -> tuple[Function, ...]:
    """The 1,000 functions of a split ("validation", "test"): no file is in both, every sentence and code is unique.

    Which ones is decided by hashes of their content; a Python version changes a few.
    """
    found = [
        function
        for path in library_files()
        if path.split("/")[0] not in ("encodings", "pydoc_data") and bucket(path, 2) == SPLITS[split]
        for function in functions(read_library(path), path)
    ]
    return tuple(sorted(clear(found), key=lambda f: hashlib.sha256(f.code.encode()).digest())[:PAIRS])


def clear(found: Sequence[Function]) -> list[Function]:
    """Those that one query finds: of a sentence and a code that no other has, the sentence of 4 to 60 words."""
    sentences, codes = Counter(f.sentence for f in found), Counter(f.code for f in found)
    return [f for f in found
            if sentences[f.sentence] == 1 and codes[f.code] == 1 and 4 <= len(f.sentence.split()) <= 60]


def functions(source: str, path: str) -> Iterator[Function]:
    """The functions of a source text that have a docstring and do something.

    Args:
        source: of a module; a text that does not parse has none.
        path: noted in what is returned.

    >>> [f] = functions("def add(a, b):\\n    '''Sum of two. More.'''\\n    return a + b\\n", "x.py")
    >>> f.sentence, f.code
    ('Sum of two.', 'def add(a, b):\\n    return a + b\\n')
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old modules have invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    lines = source.splitlines(keepends=True)
    for node in _statements(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        documentation = ast.get_docstring(node)
        if documentation:
            text = node.body[0]
            kept = lines[node.lineno - 1 : text.lineno - 1] + lines[text.end_lineno : node.end_lineno]
            yield Function(path, _dedent(kept, node.col_offset), first_sentence(documentation))


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """As `ast.walk` has them, but for expressions, which are nine nodes of ten and hold no function."""
    todo: collections.deque[ast.AST] = collections.deque([tree])
    while todo:
        node = todo.popleft()
        todo.extend(child for child in ast.iter_child_nodes(node)
                    if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case))
        yield node


def first_sentence(documentation: str) -> str:
    """The first sentence of a docstring's first paragraph, white space made single.

    >>> first_sentence("Return e.g. the\\n  root. It may be None.\\n\\nMore")
    'Return e.g. the root.'
    """
    paragraph = " ".join(re.split(r"\n\s*\n", documentation.strip(), maxsplit=1)[0].split())
    found = re.match(r".+?[.!?](?=\s+[A-Z]|$)", paragraph)
    return found.group() if found else paragraph


def _dedent(lines: list[str], columns: int) -> str:
    return "".join(line[columns:] if not line[:columns].strip() else line for line in lines)
