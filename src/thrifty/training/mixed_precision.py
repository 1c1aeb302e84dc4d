"""Mixed precision: bfloat16 arithmetic on float32 weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from thrifty.method import Card, Claim, Layer, TrainingMethod

if TYPE_CHECKING:
    from thrifty.training.loop import Fit
    from thrifty.workload import Batch


@final
@dataclass(frozen=True)
class Bf16(TrainingMethod):
    """Matrix products and convolutions of the forward and backward passes in bfloat16; weights, optimizer state,
    norms and the loss stay in float32. bfloat16 has float32's range, so nothing is scaled.

    Pays where the processor has bfloat16 instructions (AVX512-BF16, AMX, NVIDIA since Ampere), and costs time where
    it has none.

    >>> Bf16()
    Bf16()
    """

    name: ClassVar[str] = "bf16"
    layer: ClassVar[Layer] = "numerics"
    card: ClassVar[Card] = Card(
        family="mixed-precision",
        benefit="training time",
        trade_off="8 bits of mantissa: small updates and long sums round",
        paper='"Mixed Precision Training", Micikevicius et al. 2017, arXiv:1710.03740; "A Study of BFLOAT16 for Deep '
              'Learning Training", Kalamkar et al. 2019, arXiv:1905.12322',
        requires=frozenset({"module", "float-weights"}),
        slot="precision",
    )

    def forward(self, fit: Fit, batch: Batch, proceed: Callable[[Batch], Any]) -> Any:
        with torch.autocast(fit.device, dtype=torch.bfloat16):
            if "share" in fit.memory(self):
                return proceed(batch)
            with _Products() as products:  # the first pass is looked at: what autocast missed is not bf16
                outputs = proceed(batch)
            fit.memory(self)["share"] = products.share
            return outputs

    def claims(self, fit: Fit) -> tuple[Claim, ...]:
        share = fit.memory(self).get("share", 0.0)
        return (Claim("share of forward FLOPs in bfloat16", 0.0, share, minimum=0.5),)


class _Products(TorchDispatchMode):
    """FLOPs of the operators that have a formula, by the precision of their first floating-point input."""

    def __init__(self) -> None:
        super().__init__()
        self.bf16 = self.all = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            flops = float(formula(*args, **kwargs, out_val=out))
            first = next((x for x in args if isinstance(x, torch.Tensor) and x.is_floating_point()), None)
            self.all += flops
            self.bf16 += flops if first is not None and first.dtype == torch.bfloat16 else 0.0
        return out

    @property
    def share(self) -> float:
        return self.bf16 / self.all if self.all else 0.0
