"""Recall of retrieval by embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch.utils.data import Dataset

from thrifty.workloads.quality import Predict, Quality, Scores, batches

DOCUMENT, QUERY = 0, 1


@final
@dataclass(frozen=True)
class Recall(Quality):
    """Share of queries whose own document is among the k most similar; numerator: hit, denominator: 1.

    Both sides go through ``predict``: the engine under test embeds documents and queries. Dataset items are
    (inputs, (side, pair, cluster)): side 0 for a document and 1 for a query, pair the number that both share.
    Similarity is the inner product; documents that tie with a query's own count against it, half of them each,
    so that a model which gives everything the same embedding finds nothing by luck of the order.
    """

    k: int = 10
    batch_size: int = 32
    name = "recall"
    higher_is_better = True

    def sample(self, dataset: Dataset[Any], most: int) -> Dataset[Any]:
        """The whole set: with fewer documents, every query is easier."""
        return dataset

    @property
    def embeds(self) -> bool:
        return True

    def __call__(self, predict: Predict, dataset: Dataset[Any]) -> Scores:
        embeddings, sides, numbers, clusters = [], [], [], []
        for inputs, (side, pair, cluster) in batches(dataset, self.batch_size):
            embeddings.append(torch.as_tensor(predict(inputs)).double())
            sides.append(torch.as_tensor(side))
            numbers.append(torch.as_tensor(pair))
            clusters.append(torch.as_tensor(cluster))
        vectors, side, pair = torch.cat(embeddings), torch.cat(sides), torch.cat(numbers)
        query, document = side == QUERY, side == DOCUMENT
        hits = recalled(vectors[query], pair[query], vectors[document], pair[document], self.k)
        return Scores(hits, np.ones_like(hits), torch.cat(clusters)[query].long().numpy())


def recalled(
    queries: torch.Tensor, wanted: torch.Tensor, documents: torch.Tensor, numbers: torch.Tensor, k: int
) -> np.ndarray:
    """[queries] float64 of 0 and 1: whether the wanted document ranks among the first k.

    Args:
        queries, documents: [n, size] and [m, size] embeddings.
        wanted, numbers: [n] and [m] integers; each wanted number is one document's.
        k: how many are looked at.

    >>> recalled(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), torch.tensor([0, 1]), k=1).tolist()
    [1.0, 1.0]
    """
    similarity = queries @ documents.T
    own = wanted[:, None] == numbers[None, :]
    if not bool((own.sum(1) == 1).all()):
        raise ValueError("each query needs exactly one document of its pair")
    threshold = similarity[own][:, None]
    above = (similarity > threshold).sum(1)
    tied = ((similarity == threshold) & ~own).sum(1)
    # NaN compares false with everything, which would rank a broken model first.
    finite = torch.isfinite(similarity).all(1)
    return ((above + (tied + 1) // 2 < k) & finite).double().numpy()
