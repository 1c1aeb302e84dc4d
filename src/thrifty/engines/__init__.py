"""Engines: one file per backend, loading and calling. Importing this package imports neither torch nor a runtime."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thrifty.engines.engine import Engine as Engine
from thrifty.engines.engine import EngineError as EngineError
from thrifty.engines.instructions import missing_instructions
from thrifty.errors import in_one_line
from thrifty.target import cores

RUNTIMES: Mapping[str, str] = {"export": "torch", "inductor": "torch", "onnxruntime": "onnxruntime",
                                "openvino": "openvino", "xla": "jax", "tvm": "tvm",
                                "executorch": "executorch", "compiled": "torch"}
"""Engine -> the package it imports. An artifact names an engine; it never names a module to import."""

NATIVE = ("inductor", "tvm")
"""Engines whose files are machine code, whatever a manifest says of them."""

PACKED = ("inductor",)
"""Engines whose files were packed for a number of threads: with another, weights are packed anew at each call. A net of `digits`
that was packed for one thread took 26.6 ms on two instead of 2.2."""


def threads_of(manifest: Mapping[str, Any], asked: int | None = None) -> int:
    """Threads that an artifact runs on: those asked for, or its own as far as this machine has them. Packed ones keep their own.

    >>> threads_of({"engine": "onnxruntime", "threads": 1}, 8), threads_of({"engine": "inductor", "threads": 1}, 8)
    (8, 1)
    """
    packed = manifest.get("engine") in PACKED and manifest.get("device", "cpu") == "cpu"
    return asked if asked and not packed else min(int(manifest.get("threads", 1)), cores())


def keeps_threads(manifest: Mapping[str, Any], asked: int | None) -> str:
    """In words, that an artifact does not run on the threads asked for; "" where it does.

    >>> keeps_threads({"engine": "inductor", "threads": 1}, 2)
    'not on 2: its weights were packed for this number of threads'
    >>> keeps_threads({"engine": "onnxruntime", "threads": 1}, 2)
    ''
    """
    kept = asked is not None and threads_of(manifest, asked) != asked
    return f"not on {asked}: its weights were packed for this number of threads" if kept else ""


def open_engine(directory: Path | str, manifest: Mapping[str, Any], *, threads: int = 1, device: str = "cpu",
                trust_native_code: bool = False) -> Engine:
    """Open an artifact's engine; only its own runtime is imported.

    Args:
        directory: of the artifact, already verified.
        manifest: its ``artifact.json``: engine, files, inputs, outputs, native, instruction_set.
        threads: of inference; see `threads_of`.
        device: "cpu" or "cuda".
        trust_native_code: needed where ``native`` is true, since loading runs the artifact's machine code.

    Raises:
        EngineError: the engine is unknown, its runtime is missing or the processor lacks instructions that it was
            compiled for, or it is native code and was not trusted.
    """
    name = manifest["engine"]
    if name not in RUNTIMES:
        raise EngineError(f"there is no engine {name!r}; this version of Thrifty opens {', '.join(RUNTIMES)}")
    # What the engine is decides, not only what the manifest says: a manifest could claim not to be native.
    if (manifest.get("native") or name in NATIVE) and not trust_native_code:
        raise EngineError(
            f"{directory} holds machine code, which can do anything that you can; if you made it or trust who did, "
            "pass trust_native_code=True (--trust-native-code)"
        )
    if lacking := missing_instructions(manifest.get("instruction_set", "")):
        raise EngineError(
            f"{directory} was compiled for {manifest['instruction_set']} and this processor lacks "
            f"{', '.join(lacking)}; run its recipe again on this machine, or use compile(onnxruntime), which is portable"
        )
    if importlib.util.find_spec(RUNTIMES[name]) is None:
        extra = "thrifty" if RUNTIMES[name] == "torch" else f"thrifty[{name}]"
        raise EngineError(f"{directory} needs {RUNTIMES[name]}, which is not installed: pip install '{extra}'")
    module = importlib.import_module(f"thrifty.engines.{name}")
    try:
        engine: Engine = module.open(Path(directory), manifest, threads_of(manifest, threads), device)
    except (EngineError, KeyboardInterrupt):
        raise
    except BaseException as error:  # each runtime raises its own kinds, some below no Exception; a manifest may lack a file
        raise EngineError(f"{RUNTIMES[name]} cannot open {directory}: {in_one_line(error)}; copy the artifact again, or run its "
                          "recipe here") from error
    return engine
