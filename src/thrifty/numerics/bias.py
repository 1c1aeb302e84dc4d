"""Bias correction: rounding that shifts the mean of a channel is made up for in its bias."""

from __future__ import annotations

from torch import Tensor


def corrected(bias: Tensor, exact: Tensor, rounded: Tensor) -> Tensor:
    """The bias with which each channel's mean is what it was: b + E[W x] - E[W_q x_q].

    Paper: "Data-free quantization through weight equalization and bias correction", Nagel et al. 2019,
    arXiv:1906.04721, section 4.2, in its empirical form (appendix D).

    Args:
        bias: [channels].
        exact: [channels] means of the float layer's outputs, over examples and places.
        rounded: [channels] those of the integer layer with ``bias``, reading what the integer layers before it give.

    Returns:
        [channels].
    """
    return bias + (exact - rounded)
