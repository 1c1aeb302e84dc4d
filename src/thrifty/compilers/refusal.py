"""What to tell of a model that a backend cannot take: the operator that it lacks, and which backend to try next."""

from __future__ import annotations

import re

import torch
from torch import nn

from thrifty.compilers.capture import LoweringError

LACKING = re.compile(
    r"No (?:ONNX function|conversion rule) found for (?:operations: |<OpOverload\(op=')([\w., ]+)"
    r"|^\s*([a-z]\w*\.[a-z_]\w*\.\w+)\s*$", re.MULTILINE,
)
"""How ONNX's exporter, OpenVINO's frontend and, a line of its own, torchax name an operator that they lack."""
AT = re.compile(r"target=torch\.ops\.([\w.]+)")
NOISE = ("Check ", "FrontEnd API", "Model wasn't", "Summary", "--", "While executing", "Error when", "Failed to")


def refuse_projections(model: nn.Module, backend: str, *others: str) -> None:
    """Raise where a recurrent layer has projections, for a backend whose operator has none.

    Raises:
        LoweringError: names the layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase) and module.proj_size:
            raise LoweringError(f"{backend} cannot express this model: {name!r} is a recurrent layer with proj_size="
                                f"{module.proj_size}; try {' or '.join(f'compile({x})' for x in others)}")


def refuse_bfloat16_lstm(model: nn.Module, backend: str, *others: str) -> None:
    """Raise where an LSTM is in bfloat16 and oneDNN has no such kernel for this processor, for a backend that calls it unasked.

    Raises:
        LoweringError: names the layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.LSTM) and module.weight_hh_l0.dtype == torch.bfloat16 and not onednn_has_bfloat16():
            raise LoweringError(f"{backend} cannot run this model here: oneDNN has no LSTM in bfloat16 on this processor "
                                f"({name!r}); leave it in fp32, or try {' or '.join(f'compile({x})' for x in others)}")


def onednn_has_bfloat16() -> bool:
    """Whether oneDNN computes in bfloat16 on this processor (AVX512 and newer)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cannot_express(backend: str, error: BaseException, *others: str) -> LoweringError:
    """The error to raise where a backend's own conversion raised one.

    Args:
        backend: its name, as users know it.
        error: what it raised; what that was raised from is read too.
        others: compilers to try next.

    >>> print(cannot_express("OpenVINO", ValueError("No conversion rule found for operations: aten.histc.default"), "xla"))
    OpenVINO cannot express this model: it has no aten.histc.default; try compile(xla)
    """
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    text = "\n".join(str(link) or type(link).__name__ for link in reversed(chain))  # the innermost says what it is
    if lacking := LACKING.search(text):
        says = f"it has no {(lacking[1] or lacking[2]).strip(' .,')}"
    else:
        lines = (line.strip() for line in text.splitlines())
        says = next((line for line in lines if line and not line.startswith(NOISE)), type(error).__name__)[:300]
        if at := AT.search(text):
            says += f" (at {at[1]})"
    return LoweringError(f"{backend} cannot express this model: {says}; try {' or '.join(f'compile({x})' for x in others)}")
