"""BERT-base's shape in fp32, random weights: 436 MB, for benchmarks of bytes and memory alone.

    python benchmarks/quantization_bytes.py benchmarks/bert_base.py:workload --store STORE
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parent))  # a worker imports this file by its path
from gpu_engines import bert, example

from thrifty import Accuracy, Workload


def model() -> nn.Module:
    torch.manual_seed(0)
    return bert()


few = TensorDataset(example("bert_base", 32)[0], torch.zeros(32, dtype=torch.int64))
workload = Workload(name="bert-base", model=model, train=None, validation=few, test=few, loss=None, quality=Accuracy(),
                    example=functools.partial(example, "bert_base"), reference="")
