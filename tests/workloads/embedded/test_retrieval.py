"""Recall against a naive reference, and where engines are broken or undecided."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from thrifty.workloads.embedded.retrieval import Recall, recalled


class Pairs(Dataset):
    """Inputs are the embeddings themselves."""

    def __init__(self, documents, queries):
        self.items = [
            ((vector,), (side, pair, pair // 3))
            for pair, both in enumerate(zip(documents, queries, strict=True))
            for side, vector in enumerate(both)
        ]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def identity(inputs):
    return inputs[0]


def naive(documents, queries, k):
    hits = []
    for i, query in enumerate(queries):
        order = sorted(range(len(documents)), key=lambda j: -float(query @ documents[j]))
        hits.append(float(i in order[:k]))
    return hits


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("seed", range(5))
def test_equals_a_naive_reference(k, seed):
    generator = torch.Generator().manual_seed(seed)
    documents = torch.randn(37, 8, generator=generator, dtype=torch.float64)
    queries = documents + torch.randn(37, 8, generator=generator, dtype=torch.float64)
    scores = Recall(k=k, batch_size=5)(identity, Pairs(documents, queries))
    assert scores.numerator.tolist() == naive(documents, queries, k)
    assert scores.denominator.tolist() == [1.0] * 37
    assert scores.cluster.tolist() == [i // 3 for i in range(37)]


def test_one_embedding_for_everything_finds_nothing():
    same = torch.ones(100, 4)
    assert Recall(k=10)(identity, Pairs(same, same)).value == 0


def test_nan_finds_nothing():
    documents = torch.eye(12)
    queries = documents.clone()
    queries[3] = float("nan")
    hits = Recall(k=1)(identity, Pairs(documents, queries)).numerator
    assert np.flatnonzero(hits == 0).tolist() == [3]
    documents = torch.full((12, 12), float("nan"))
    assert Recall(k=1)(identity, Pairs(documents, torch.eye(12))).value == 0


def test_a_query_without_its_document_is_refused():
    with pytest.raises(ValueError, match="exactly one document"):
        recalled(torch.eye(2), torch.tensor([0, 5]), torch.eye(2), torch.tensor([0, 1]), 1)
