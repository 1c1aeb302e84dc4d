"""Generation with a KV cache: one engine takes the prompt, another a token at a time. Needs no torch to run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from thrifty.artifacts import artifact
from thrifty.artifacts.artifact import ArtifactError
from thrifty.errors import ThriftyError

if TYPE_CHECKING:
    from thrifty.engines.engine import Engine

MANIFEST = "generator.json"
PARTS = ("prefill", "decode")
CACHES: Mapping[str, tuple[tuple[str, bool], ...]] = {"fp32": (("float32", False),), "int8": (("int8", False), ("float32", True))}
"""{what a cache holds: (dtype, whether it is one number for each token and head) of each array of keys, and of values}."""


class GenerationError(ThriftyError):
    """A prompt or a length that the engines were not made for."""


@final
@dataclass
class Generator:
    """Generates text with two engines, prefill and decode, and the KV cache between them.

    Args:
        prefill, decode: as `lower_generator` made them.
        prompt: tokens of ``prefill``.
        cache: shape of keys and of values, [layers, 1, heads, tokens, width].
        numbers: that they are held in, of `CACHES`.
        states: shapes of what state-space layers remember, float32.
    """

    prefill: Engine
    decode: Engine
    prompt: int
    cache: tuple[int, ...]
    numbers: str = "fp32"
    states: tuple[tuple[int, ...], ...] = ()

    @staticmethod
    def load(directory: Path | str, *, threads: int = 1, device: str = "cpu", trust_native_code: bool = False) -> Generator:
        """Open what `lower_generator` wrote; transformers need not be there.

        Raises:
            ArtifactError: it is damaged, or no such directory.
            EngineError: a runtime is missing, or native code is not trusted.
        """
        path = Path(directory) / MANIFEST
        if not path.is_file():
            raise ArtifactError(f"{directory} is not a generator: it has no {MANIFEST}")
        try:
            told: dict[str, Any] = json.loads(path.read_text())
            shape = tuple(int(told["cache"][name]) for name in ("layers", "heads", "tokens", "width"))
            prompt, numbers = int(told["prompt"]), str(told["cache"].get("numbers", "fp32"))
            states = tuple(tuple(int(n) for n in dims) for dims in told["cache"].get("states", ()))
            if numbers not in CACHES:
                raise ValueError(f"a cache of {numbers} is not supported")
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is damaged: {error!r}") from error
        prefill, decode = (artifact.open_verified(Path(directory) / part, threads=threads, device=device,
                                                  trust_native_code=trust_native_code) for part in PARTS)
        return Generator(prefill, decode, prompt, (shape[0], 1, *shape[1:]), numbers, states)

    @property
    def tokens(self) -> int:
        """Prompt and answer together, at most."""
        return self.cache[3]

    @property
    def cache_bytes(self) -> int:
        """That keys and values take, scales counted, and states."""
        return sum(x.nbytes for x in self._empty())

    def generate(self, prompt: Sequence[int], new: int, *, end: int | None = None,
                 choose: Callable[[np.ndarray], int] = lambda logits: int(logits.argmax())) -> list[int]:
        """The tokens that follow a prompt.

        Args:
            prompt: token ids, 1 or more.
            new: tokens to generate at most.
            end: token after which to stop; it is the last that is given.
            choose: logits [vocabulary] -> the next token; the likeliest by default.

        Raises:
            GenerationError: the prompt is empty, or it and the answer exceed what the engines were made for.
        """
        if not len(prompt) or new < 1 or len(prompt) + new > self.tokens:
            raise GenerationError(f"a prompt of {len(prompt)} tokens and {new} new ones were requested; together they must be "
                                  f"2 to {self.tokens}, at least one each: lower_generator(..., tokens=...) for more")
        answer: list[int] = []
        for logits in self._logits(list(prompt), answer):
            answer.append(choose(logits))
            if len(answer) == new or answer[-1] == end:
                break
        return answer

    def _logits(self, prompt: list[int], answer: list[int]) -> Iterator[np.ndarray]:
        """Logits of the next token, again and again, ``answer`` having grown by one each time."""
        first = prompt[: self.prompt]
        ids = np.array([first + [0] * (self.prompt - len(first))])
        logits, *cache = self._step(self.prefill, ids, 0, len(first) - 1, self._empty())
        done = len(first)
        while True:
            if done >= len(prompt):
                yield logits[0]
            token = prompt[done] if done < len(prompt) else answer[done - len(prompt)]
            logits, *cache = self._step(self.decode, np.array([[token]]), done, 0, cache)
            done += 1

    def _empty(self) -> list[np.ndarray]:
        return [*(np.zeros((*self.cache[:-1], 1) if one else self.cache, dtype) for dtype, one in 2 * CACHES[self.numbers]),
                *(np.zeros(dims, "float32") for dims in self.states)]

    @staticmethod
    def _step(engine: Engine, ids: np.ndarray, done: int, last: int, cache: Sequence[np.ndarray]) -> list[np.ndarray]:
        return engine.arrays(engine.run(engine.native([ids, np.array([done]), np.array([last]), *cache])))
