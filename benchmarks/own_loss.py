"""The loss of a model that sums its losses itself."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty import Loss
from thrifty.workloads.workload import Batch


class OwnLoss(Loss):
    """The outputs are the sum of the losses of all targets."""

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return outputs, torch.tensor(float(batch[1].numel()), device=outputs.device)
