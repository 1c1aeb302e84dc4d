"""A module through TVM in this process, for what the tests of the parts look at."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import tvm
from torch import Tensor, nn
from tvm import relax

from thrifty.compilers.capture import capture
from thrifty.compilers.tvm.lowering import compiled, host


def through_tvm(net: nn.Module, *inputs: Tensor, shapes: Any = None, call: tuple[Tensor, ...] = (),
                registers: Any = None) -> list[Tensor]:
    """The outputs of a net that was compiled at ``inputs``, called on ``call`` or on them again."""
    target, own = host()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        executable, weights = compiled(capture(net.eval(), inputs, shapes or {}), target, registers or own)
    machine = relax.VirtualMachine(executable, tvm.cpu())
    given = [x.numpy() for x in call or inputs] + weights
    outputs = machine["main"](*(tvm.runtime.tensor(np.ascontiguousarray(x)) for x in given))
    return [torch.from_numpy(x.numpy()) for x in outputs]
