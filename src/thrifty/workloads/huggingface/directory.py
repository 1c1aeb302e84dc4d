"""A model's directory as Hugging Face lays it out: checked before anything in it is used, and hashed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from thrifty.errors import ThriftyError, WorkloadError

CONFIG, TOKENIZER, IMAGES = "config.json", "tokenizer.json", "preprocessor_config.json"
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
POOLING, MODULES = "1_Pooling/config.json", "modules.json"

DESCRIPTIONS = (CONFIG, TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", IMAGES, POOLING, MODULES)
"""What decides the outputs beside the weights; hashed whole."""
BESIDE = (*DESCRIPTIONS[1:], "generation_config.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model",
          "added_tokens.json", "config_sentence_transformers.json", "sentence_bert_config.json")
"""What a saved directory takes over as it is."""

LARGEST_HEADER = 100 * 2**20
SAMPLE = 4096

TO_SAFETENSORS = (
    "python -c \"import torch, safetensors.torch as s; s.save_file({{k: v.clone().contiguous() for k, v in "
    "torch.load('{path}', weights_only=True).items()}}, '{out}', {{'format': 'pt'}})\""
)


@final
@dataclass(frozen=True)
class Directory:
    """A directory that was checked: its place, its config.json as it stands."""

    path: Path
    config: dict[str, Any]

    @property
    def architecture(self) -> str:
        """The class that config.json names first; "" where it names none."""
        named = self.config.get("architectures") or [""]
        return str(named[0])

    def json(self, name: str) -> Any:
        """A JSON file of the directory; an empty dictionary where it is not there.

        Raises:
            WorkloadError: it is damaged.
        """
        path = self.path / name
        try:
            return json.loads(path.read_bytes()) if path.is_file() else {}
        except ValueError as error:
            raise WorkloadError(f"{path} is damaged: {error}") from error

    def needs(self, name: str, way: str) -> Path:
        """The path of a file that the task needs.

        Raises:
            WorkloadError: it is not there; says the way out.
        """
        path = self.path / name
        if not path.is_file():
            raise WorkloadError(f"{self.path} has no {name}; {way}")
        return path


def open_directory(path: Path) -> Directory:
    """Check a directory: a config that runs no code of its own, weights in safetensors.

    Raises:
        WorkloadError: it is no such directory; config.json is damaged or wants its own code to run; the weights are
            missing or pickled.
    """
    if not path.is_dir():
        raise WorkloadError(f"there is no directory {path}")
    if not (path / CONFIG).is_file():
        raise WorkloadError(f"{path} is not a Hugging Face directory: it has no {CONFIG}")
    found = Directory(path, {})
    config = found.json(CONFIG)
    if not isinstance(config, dict):
        raise WorkloadError(f"{path / CONFIG} is damaged: it is not a JSON object")
    if "auto_map" in config:
        raise WorkloadError(
            f"{path / CONFIG} has an auto_map: its model is Python code inside the directory, which would run with your "
            "permissions. Thrifty never trusts remote code; use a model that transformers has, or write a workload's file "
            "that imports code which you have read"
        )
    weights(path)
    return Directory(path, config)


def weights(path: Path) -> list[Path]:
    """The safetensors files of a directory, sorted.

    Raises:
        WorkloadError: there are none, a shard is missing or lies elsewhere, or the weights are pickled.
    """
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / SHARDS).is_file():
        index = Directory(path, {}).json(SHARDS)
        names = sorted(set(index.get("weight_map", {}).values())) if isinstance(index, dict) else []
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise WorkloadError(f"{path / SHARDS} names the shard {name!r}, which is not a file in this directory")
            if not (path / name).is_file():
                raise WorkloadError(f"{path / SHARDS} names the shard {name}, which is missing; copy the directory again")
        if names:
            return [path / name for name in names]
    pickled = sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")])
    if pickled:
        command = TO_SAFETENSORS.format(path=pickled[0], out=path / WEIGHTS)
        raise WorkloadError(
            f"{path} has its weights only in {pickled[0].name}, a pickle, which can run any code when it is opened; "
            f"Thrifty reads safetensors. Convert it once, safely: {command}"
        )
    raise WorkloadError(f"{path} has no weights: neither {WEIGHTS} nor {SHARDS}")


@contextlib.contextmanager
def written(directory: Path, error: type[ThriftyError]) -> Iterator[Path]:
    """A directory to write in, which takes its name once all is written, and is gone where that fails.

    Raises:
        ThriftyError: ``error``, where the directory is there and not empty.
    """
    path = directory.expanduser().absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise error(f"{path} exists and is not empty; choose a new directory")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        if path.exists():
            path.rmdir()
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def digest(path: Path) -> bytes:
    """sha256 of what decides the outputs: the descriptions whole; of the weights the headers, and 4 KB of each tensor.

    Training moves every tensor, so that reading all gigabytes would say no more.
    """
    whole = hashlib.sha256()
    for name in DESCRIPTIONS:
        if (path / name).is_file():
            whole.update(name.encode() + hashlib.sha256((path / name).read_bytes()).digest())
    for file in weights(path):
        for part in _sampled(file):
            whole.update(hashlib.sha256(part).digest())
    return whole.digest()


def _sampled(path: Path) -> Iterator[bytes]:
    """The header of a safetensors file and the middle bytes of each of its tensors."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= LARGEST_HEADER:
            raise WorkloadError(f"{path} is not a safetensors file: its header would have {size} bytes; copy it again")
        header = file.read(size)
        try:
            entries = json.loads(header)
            places = sorted(entry["data_offsets"] for name, entry in entries.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WorkloadError(f"{path} is not a safetensors file: its header is damaged ({error}); copy it again") from error
        yield header + str(path.stat().st_size).encode()
        for begin, end in places:
            file.seek(8 + size + max(begin, (begin + end - SAMPLE) // 2))
            yield file.read(min(SAMPLE, end - begin))
