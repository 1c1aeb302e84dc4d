"""How much recall MiniLM loses in w8a8, on many queries: the 1,000 of the workload leave an interval of a point to each side.

    python benchmarks/quantization_queries.py --store STORE --queries 10000

Queries and documents as in the workload `minilm`, of the functions of the packages that are installed, in pools of 1,000
documents: as many to choose from as in the workload. Calibration takes the workload's validation inputs. Each engine embeds
all texts one by one, as it would answer; STORE keeps engines and embeddings, so that a killed run goes on.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peer_engines import floating, once, ours, schemes

from thrifty.artifacts import artifact
from thrifty.measure.environment import environment, now
from thrifty.measure.statistics import paired_drop
from thrifty.target import cores
from thrifty.workloads.embedded.functions import PAIRS, Function, clear, functions
from thrifty.workloads.embedded.minilm import tokenizer
from thrifty.workloads.embedded.retrieval import recalled
from thrifty.workloads.quality import Scores

EVERY = 500
"""Texts between two states that are kept."""


def drawn(most: int) -> list[Function]:
    """So many functions of installed packages, each sentence and code once, in the order of their files' hashes."""
    root = Path(sysconfig.get_paths()["purelib"])
    files = sorted((hashlib.sha256(str(path.relative_to(root)).encode()).digest(), path) for path in root.rglob("*.py")
                    if "tests" not in path.parts)
    found: list[Function] = []
    for _, path in files:
        found += functions(path.read_text(errors="replace"), str(path.relative_to(root)))
        if len(found) > 2 * most:
            break
    return clear(found)[:most // PAIRS * PAIRS]


def embeddings(answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], texts: list[tuple[torch.Tensor, torch.Tensor]],
               kept: Path, batch: int) -> torch.Tensor:
    """[texts, size], one batch after another; what is in the file is not done again."""
    rows = list(np.load(kept)) if kept.exists() else []
    while len(rows) < len(texts):
        part = texts[len(rows):len(rows) + batch]
        rows += list(answer(torch.stack([ids for ids, _ in part]), torch.stack([mask for _, mask in part])).numpy())
        if len(rows) % EVERY < batch or len(rows) == len(texts):
            np.save(kept, np.stack(rows))
    return torch.from_numpy(np.stack(rows)).double()


def scores(vectors: torch.Tensor, files: list[str]) -> Scores:
    """Recall@10 of every query among the documents of its pool; clustered by file."""
    documents, queries = vectors[0::2], vectors[1::2]
    numbers = torch.arange(PAIRS)
    hits = np.concatenate([recalled(queries[i:i + PAIRS], numbers, documents[i:i + PAIRS], numbers, 10)
                           for i in range(0, len(queries), PAIRS)])
    known = {file: i for i, file in enumerate(dict.fromkeys(files))}
    return Scores(hits, np.ones_like(hits), np.array([known[file] for file in files]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--schemes", nargs="+", default=["w8a8", "w8a8-static-bf16"], choices=list(schemes(False)))
    parser.add_argument("--compiler", default="openvino")
    given = parser.parse_args()
    torch.set_num_threads(cores())
    chosen = drawn(given.queries)
    encoded = tokenizer().encode_batch([text for f in chosen for text in (f.code, f.sentence)])
    texts = [(torch.tensor(e.ids), torch.tensor(e.attention_mask)) for e in encoded]
    identity = hashlib.sha256(json.dumps([(f.code, f.sentence) for f in chosen]).encode()).hexdigest()[:16]
    _, net, context = floating("minilm", given.store)
    files, vectors = [f.path for f in chosen], given.store / identity
    vectors.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        before = scores(embeddings(lambda ids, mask: net(ids, mask), texts, vectors / "fp32.npy", 32), files)
    print(f"{now()}, {environment()['cpu']}, torch {torch.__version__}; {len(chosen)} queries of {len(set(files))} files, sha256 "
          f"{identity}; {given.compiler}\n\n| scheme | recall@10 | points lost, 95% interval |\n| --- | --- | --- |\n"
          f"| fp32, eager | {before.value:.2%} | |", flush=True)
    for scheme in given.schemes:
        place = once(given.store / "minilm" / f"{scheme}-{given.compiler}",
                     functools.partial(ours, net, schemes(False)[scheme], given.compiler, context))
        engine = artifact.load(place, threads=1)
        kept = vectors / f"{scheme}-{given.compiler}.npy"
        after = scores(embeddings(engine, texts, kept, 1), files)  # type: ignore[arg-type]
        drop = paired_drop(before, after, higher_is_better=True)
        print(f"| {scheme} | {after.value:.2%} | {100 * drop.value:.2f} [{100 * drop.low:.2f}, {100 * drop.high:.2f}] |",
              flush=True)


if __name__ == "__main__":
    main()
