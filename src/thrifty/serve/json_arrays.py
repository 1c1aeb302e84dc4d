"""The arrays of a JSON body, read piece by piece, so that no body takes more memory than the arrays that are allowed.

A parser of JSON makes an object of every number and list before anybody can ask how many there are: of 15 MB, a gigabyte. Here
names, nesting and counts are compared with what the artifact takes as they come, and numbers are parsed by the thousand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np

from thrifty.errors import ThriftyError

Spec = Mapping[str, Any]
PIECE = 2**15
"""Bytes of text that are parsed at once; no number has as many."""
_SPACE = re.compile(rb"[ \t\n\r]*")
_TEXT = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\.){0,1000}"')
_PERMITTED: Mapping[str, frozenset[type]] = {
    "b": frozenset({bool}), "i": frozenset({int}), "u": frozenset({int}), "f": frozenset({int, float}),
    "c": frozenset({int, float}),
}


class NoJson(ThriftyError):
    """Bytes that are no JSON, or are not ``{"inputs": ...}``."""


class Unfit(ThriftyError):
    """Arrays that are not those that the artifact takes."""


def read(body: bytes | bytearray, specs: Sequence[Spec], limit: int) -> list[np.ndarray]:
    """The arrays of ``{"inputs": [ARRAY, ...]}`` or ``{"inputs": {"NAME": ARRAY, ...}}``, in the order of the specs.

    Args:
        body: as it came.
        specs: name, dtype and shape of each, -1 where a size varies, and ``varies``, the ranges within which.
        limit: bytes that all arrays together may take.

    Raises:
        NoJson: it is something else.
        Unfit: names, nesting, counts or kinds are others.

    >>> read(b'{"inputs": [[[1, 2.5]]]}', [{"name": "x", "dtype": "float32", "shape": [-1, 2]}], 100)
    [array([[1. , 2.5]], dtype=float32)]
    """
    return _Reader(body, limit).document(specs)


@final
class _Reader:
    def __init__(self, body: bytes | bytearray, limit: int) -> None:
        self.body, self.left, self.at = body, limit, 0

    # -- what is around the arrays --------------------------------------------------------------------------------

    def document(self, specs: Sequence[Spec]) -> list[np.ndarray]:
        self.take(b"{", 'the body must be JSON of the form {"inputs": [ARRAY, ...]} or {"inputs": {"NAME": ARRAY, ...}}')
        if (name := self.text()) != "inputs":
            raise NoJson(f'the body must be an object whose only key is "inputs", but has {name[:100]!r}')
        self.take(b":")
        begin = self.peek()
        if begin not in (b"[", b"{"):
            raise NoJson('"inputs" must be a list of arrays, or an object of arrays by name')
        self.at += 1
        found = self.listed(specs) if begin == b"[" else self.named(specs)
        self.take(b"}", 'nothing may follow "inputs"')
        if self.peek():
            raise NoJson("the body is not JSON: something follows its end")
        return found

    def listed(self, specs: Sequence[Spec]) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for _ in self.parts(b"]"):
            if len(found) == len(specs):
                raise Unfit(f"inputs must be a list of {len(specs)} arrays but has {len(found) + 1} elements or more")
            found.append(self.array(specs[len(found)]))
        if len(found) != len(specs):
            raise Unfit(f"inputs must be a list of {len(specs)} arrays but has {len(found)} elements")
        return found

    def named(self, specs: Sequence[Spec]) -> list[np.ndarray]:
        known = {spec["name"]: spec for spec in specs}
        found: dict[str, np.ndarray] = {}
        wanted = f"the inputs are {', '.join(known)}"
        for _ in self.parts(b"}"):
            name = self.text()
            if name not in known or name in found:
                raise Unfit(f"{wanted}, {'each once' if name in found else 'but the body has ' + repr(name[:100])}")
            self.take(b":")
            found[name] = self.array(known[name])
        if len(found) != len(known):
            raise Unfit(f"{wanted}, but the body has {', '.join(found) or 'none'}")
        return [found[name] for name in known]

    # -- arrays ---------------------------------------------------------------------------------------------------

    def array(self, spec: Spec) -> np.ndarray:
        return _Array(self, spec).read()

    # -- tokens ---------------------------------------------------------------------------------------------------

    def peek(self) -> bytes:
        """The next byte that is no white space; none at the end."""
        self.at = _SPACE.match(self.body, self.at).end()  # type: ignore[union-attr]  # it matches nothing too
        return bytes(self.body[self.at:self.at + 1])

    def take(self, wanted: bytes, says: str = "") -> None:
        if self.peek() != wanted:
            raise NoJson(says or f"the body is not JSON: {wanted.decode()!r} is missing at byte {self.at}")
        self.at += 1

    def text(self) -> str:
        self.peek()
        match = _TEXT.match(self.body, self.at)
        if match is None:
            raise NoJson(f"the body is not JSON: at byte {self.at} a name in quotes is expected, of at most 1000 characters")
        self.at = match.end()
        return str(_loads(match[0]))

    def parts(self, end: bytes) -> Iterator[None]:
        """Once for each part up to the bracket ``end``; whoever asks reads the part."""
        if self.peek() == end:
            self.at += 1
            return
        while True:
            yield
            if self.peek() == end:
                self.at += 1
                return
            self.take(b",")


@final
class _Array:
    """One array: its sizes are those of the spec, or of what came first."""

    def __init__(self, reader: _Reader, spec: Spec) -> None:
        self.reader, self.spec = reader, spec
        self.dtype = np.dtype(spec["dtype"])
        self.sizes: list[int | None] = [None if n == -1 else n for n in spec["shape"]]
        self.highest = {d: high for d, _, _, high in spec.get("varies", ())}
        self.done: list[np.ndarray] = []
        self.waiting: list[Any] = []

    def read(self) -> np.ndarray:
        if self.sizes:
            self.level(0)
        else:
            self.scalar()
        self.flush()
        whole = np.concatenate(self.done) if len(self.done) > 1 else self.done[0]
        return whole.reshape([size or 0 for size in self.sizes])

    def level(self, depth: int) -> None:
        """The list that begins here, of the dimension ``depth``."""
        if (begin := self.reader.peek()) != b"[":
            if begin in (b"", b",", b"]", b":", b"}"):
                raise NoJson(f"the body is not JSON: a list is missing at byte {self.reader.at}")
            raise self.unfit(f"a list of dimension {depth} should begin at byte {self.reader.at}")
        self.reader.at += 1
        if depth == len(self.sizes) - 1:
            n = self.numbers(depth)
        else:
            n = 0
            for _ in self.reader.parts(b"]"):
                self.fits(depth, n + 1)
                self.level(depth + 1)
                n += 1
        if self.sizes[depth] is None and n:
            self.sizes[depth] = n
        if not n or self.sizes[depth] != n:
            raise self.unfit(f"a list of dimension {depth} has {n} elements")

    def fits(self, depth: int, n: int) -> None:
        """Refuse what is too long before its end is read."""
        most = self.sizes[depth]
        if n > self.highest.get(depth, n) or (most is not None and n > most):
            raise self.unfit(f"a list of dimension {depth} has {n} elements or more")

    def numbers(self, depth: int) -> int:
        """The numbers up to the end of the innermost list; how many they are."""
        body, n = self.reader.body, 0
        end = body.find(b"]", self.reader.at)
        if end < 0:
            raise NoJson("the body is not JSON: it ends within a list")
        while True:
            at = self.reader.at
            stop = end if end - at <= PIECE else body.find(b",", at + PIECE // 2, end)
            stop = end if stop < 0 else stop
            if stop - at > PIECE:
                raise self.unfit(f"the number at byte {at} has over {PIECE // 2} characters")
            values = self.parsed(body[at:stop])
            if not values and (n or stop < end):
                raise NoJson(f"the body is not JSON: a number is missing at byte {at}")
            n += len(values)
            self.fits(depth, n)
            self.keep(values)
            self.reader.at = stop + 1  # behind the comma, or the list's end
            if stop == end:
                return n

    def scalar(self) -> None:
        match = re.compile(rb"[^,\]}]{0,400}").match(self.reader.body, self.reader.at)
        assert match is not None  # it matches nothing too
        values = self.parsed(match[0])
        if len(values) != 1:
            raise self.unfit("there is no number")
        self.keep(values)
        self.reader.at = match.end()

    def parsed(self, text: bytes | bytearray) -> list[Any]:
        if b"[" in text:
            raise self.unfit("lists are nested too deeply")
        values: list[Any] = _loads(b"[" + text + b"]")
        if strange := set(map(type, values)) - _PERMITTED[self.dtype.kind]:
            kinds = ", ".join(sorted(kind.__name__ for kind in strange))
            raise Unfit(f"{self.spec['name']} must hold {self.dtype} but holds {kinds}")
        return values

    def keep(self, values: list[Any]) -> None:
        self.reader.left -= len(values) * self.dtype.itemsize
        if self.reader.left < 0:
            raise Unfit(f"{self.spec['name']} has more values than allowed")
        self.waiting += values
        if len(self.waiting) > PIECE:
            self.flush()

    def flush(self) -> None:
        try:
            with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
                self.done.append(np.array(self.waiting, self.dtype))
        except (ValueError, OverflowError) as error:
            raise Unfit(f"{self.spec['name']} is not an array of {self.dtype}: {str(error)[:200]}") from error
        self.waiting = []

    def unfit(self, says: str) -> Unfit:
        varies = " (-1: any)" if -1 in self.spec["shape"] else ""
        return Unfit(f"input {self.spec['name']} must be {self.dtype} of shape {self.spec['shape']}{varies}, and {says}")


def _loads(text: bytes | bytearray) -> Any:
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise NoJson(f"the body is not JSON: {str(error)[:200]}") from error
