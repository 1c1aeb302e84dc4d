"""`python-lm`'s text for other backbones: Mamba-2, and three parts of it to one of attention, of as many parameters.

Data, windows and quality are `python_lm`'s, and so is the reference: 600 steps of AdamW at 2e-3, which was chosen for the
transformer. What mixes tokens in a layer differs, and feed-forward layers are as wide as the count of 8.7 million lets them be.
"""

from __future__ import annotations

import dataclasses

from thrifty.architectures.backbone import Backbone
from thrifty.architectures.blocks import Sizes
from thrifty.workloads.embedded import python_lm
from thrifty.workloads.embedded.python_text import VOCABULARY


def transformer() -> Backbone:
    """Four layers of attention.

    >>> round(sum(p.numel() for p in transformer().parameters()) / 1e6, 2)
    8.65
    """
    return Backbone(VOCABULARY, " ".join(4 * ["attention mlp"]), Sizes(384, heads=6, hidden=1536))


def mamba2() -> Backbone:
    """Four layers of Mamba-2.

    >>> round(sum(p.numel() for p in mamba2().parameters()) / 1e6, 2)
    8.66
    """
    return Backbone(VOCABULARY, " ".join(4 * ["mamba2 mlp"]), Sizes(384, state=64, head=64, hidden=1076))


def hybrid() -> Backbone:
    """Three layers of Mamba-2 and, third, one of attention.

    >>> round(sum(p.numel() for p in hybrid().parameters()) / 1e6, 2)
    8.66
    """
    mixers = ["mamba2", "mamba2", "attention", "mamba2"]
    return Backbone(VOCABULARY, " ".join(f"{mixer} mlp" for mixer in mixers), Sizes(384, heads=6, state=64, head=64, hidden=1191))


mamba2_workload = dataclasses.replace(python_lm.workload, name="python-lm-mamba2", model=mamba2)
hybrid_workload = dataclasses.replace(python_lm.workload, name="python-lm-hybrid", model=hybrid)
