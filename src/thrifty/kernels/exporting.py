"""Whether a program is being exported, which then must hold torch's own operations alone."""

from __future__ import annotations

import torch


def exporting() -> bool:
    """Whether `torch.export` traces.

    Unlike `torch.compiler.is_exporting`, which Dynamo of torch 2.11 takes for true under `torch.compile` as well.

    >>> exporting()
    False
    """
    return torch.compiler._is_exporting_flag
