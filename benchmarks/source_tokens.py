"""Python source found on the machine, in tokens, without a library to make them."""

from __future__ import annotations

import hashlib
import re
import sysconfig
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

PIECES = re.compile(r" ?[^\W\d]+| ?\d{1,3}| ?[^\s\w]+|\s+")
"""What a token is: a run of letters, digits, punctuation or white space; a space goes with what follows."""


def source_text(most: int) -> list[str]:
    """Python files of the standard library and of what is installed, in an order by hash, up to so many bytes."""
    roots = {Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib")}
    files = {path for root in roots for path in root.rglob("*.py")}
    texts, total = [], 0
    named = sorted(("/".join(path.parts[-3:]), path) for path in files)  # one name may be that of several files
    for _, path in sorted(named, key=lambda found: hashlib.sha256(found[0].encode()).digest()):
        texts.append(path.read_bytes().decode("utf-8", errors="replace"))
        total += len(texts[-1])
        if total >= most:
            break
    return texts


def encoded(texts: Sequence[str], vocabulary: int) -> Tensor:
    """Tokens of a text: the most frequent pieces have a number each, others are spelt in bytes (the first 256)."""
    pieces = [PIECES.findall(text) for text in texts]
    counts = Counter(piece for row in pieces for piece in row)
    known = {piece: 256 + i for i, (piece, _) in enumerate(counts.most_common(vocabulary - 256))}
    ids = array("i")
    for row in pieces:
        for piece in row:
            number = known.get(piece)
            if number is None:
                ids.extend(piece.encode("utf-8", errors="replace"))
            else:
                ids.append(number)
    return torch.tensor(ids, dtype=torch.int64)
