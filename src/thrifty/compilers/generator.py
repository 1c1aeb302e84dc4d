"""A causal language model lowered twice, for generation with a KV cache."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from torch import nn

from thrifty.architectures.accelerate import exportable
from thrifty.artifacts.generator import CACHES, MANIFEST, PARTS, GenerationError
from thrifty.compilers.lower import lower
from thrifty.recipes.compiler import Compiler
from thrifty.target import Target
from thrifty.workloads.huggingface.caching import CachedStep, CacheShape


def lower_generator(body: nn.Module, compiler: Compiler, directory: Path | str, *, prompt: int = 64, tokens: int = 256,
                    threads: int = 1, device: str = "cpu", cache: str = "fp32") -> None:
    """Lower a causal language model to two engines: one for the prompt, one for each token after it.

    Args:
        body: a model of transformers, for causal language modeling; quantized or pruned as it may be.
        compiler: takes both.
        directory: to be made; holds an artifact each in ``prefill`` and ``decode``, both with the weights.
        prompt: tokens that the first engine takes at once; shorter prompts are filled up, of longer ones the rest is
            taken token by token.
        tokens: prompt and answer together, at most.
        threads, device: threads and device for inference.
        cache: what keys and values are held in: ``fp32``, or ``int8`` with a scale for each token and head.

    Raises:
        GenerationError: ``prompt`` is not 2 to ``tokens``, or ``cache`` is neither.
        WorkloadError: the model keeps no such cache.
        LoweringError: the compiler cannot take the model, or what it made computes something else.
    """
    if not 2 <= prompt <= tokens:
        raise GenerationError(f"prompt must be 2 to tokens ({tokens}) but is {prompt}")
    if cache not in CACHES:
        raise GenerationError(f"cache must be {' or '.join(CACHES)} but is {cache!r}")
    shape = CacheShape.of(body, tokens, cache)
    step = CachedStep(body.eval(), shape)
    directory = Path(directory)
    with exportable(body):
        for part, n in zip(PARTS, (prompt, 1), strict=True):
            lower(step, compiler, directory / part, step.example(n), target=Target(device, threads),
                  description={"recipe": f"generation | {compiler}"})
    described = {"format": 1, "prompt": prompt, "cache": dataclasses.asdict(shape)}
    (directory / MANIFEST).write_text(json.dumps(described, indent=1))
