"""Mixed precision by autocast: products in 16 bits on weights of 32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from thrifty.compilers.inprocess import eagerly
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.hyperparameters import number
from thrifty.recipes.training_method import Stage, TrainingMethod
from thrifty.training.distributed.parallel import all_finite, scale
from thrifty.training.flops import formula

if TYPE_CHECKING:
    from thrifty.recipes.session import Session
    from thrifty.workloads.workload import Batch


@dataclass(frozen=True)
class Autocast(TrainingMethod):
    """Matrix multiplications and convolutions of the forward and backward passes in 16 bits, on weights of 32."""

    dtype: ClassVar[torch.dtype]
    least: ClassVar[float] = 0.5
    """Share of the forward pass's FLOPs that must be in few bits, else the method changed nothing."""
    stage: ClassVar[Stage] = "numerics"

    @property
    def counted(self) -> torch.dtype:
        """Precision of the operands whose FLOPs are claimed."""
        return self.dtype

    def prepare(self, session: Session) -> None:
        session.products = self.dtype

    def forward(self, session: Session, batch: Batch, proceed: Callable[[Batch], Any]) -> Any:
        with torch.autocast(session.device, dtype=self.dtype):
            if "share" in session.memory(self):
                return proceed(batch)
            with eagerly(), _Products(self.counted) as products:  # looked at once: what autocast missed
                outputs = proceed(batch)
            session.memory(self)["share"] = products.share
            return outputs

    def state_dict(self, session: Session) -> dict[str, Any]:
        return dict(session.memory(self))

    def load_state_dict(self, session: Session, state: dict[str, Any]) -> None:
        session.memory(self).update(state)

    def claims(self, session: Session) -> tuple[Claim, ...]:
        name = str(self.counted).removeprefix("torch.")
        return (Claim(f"share of forward FLOPs in {name}", 0.0, session.memory(self).get("share", 0.0), minimum=self.least),)


@final
@dataclass(frozen=True)
class Bf16(Autocast):
    """Matrix multiplications and convolutions of the forward and backward passes in bfloat16; weights, optimizer state,
    norms and the loss stay in float32. bfloat16 has float32's range, so nothing is scaled.

    Pays where the processor has bfloat16 instructions (AVX512-BF16, AMX, NVIDIA since Ampere), and costs time where
    it has none.

    >>> Bf16()
    Bf16()
    """

    dtype: ClassVar[torch.dtype] = torch.bfloat16
    name: ClassVar[str] = "bf16"
    card: ClassVar[Card] = Card(
        family="mixed-precision",
        benefit="training time",
        trade_off="8 bits of mantissa: small updates and long sums round",
        paper='"Mixed Precision Training", Micikevicius et al. 2017, arXiv:1710.03740; "A Study of BFLOAT16 for Deep '
              'Learning Training", Kalamkar et al. 2019, arXiv:1905.12322',
        requires=frozenset({"module", "float-weights"}),
        slot="precision",
    )


@final
@dataclass(frozen=True)
class Fp16(Autocast):
    """Matrix multiplications and convolutions of the forward and backward passes in float16, the loss scaled.

    float16 holds nothing below 6e-8, where many gradients are: the loss is multiplied by s before the backward pass and
    gradients are divided by s after it. Where one of them is not finite then, the step is skipped: weights, averages and
    the optimizer's state stay as they were, and s is halved. After ``patience`` steps without that, s is doubled.

    For GPUs; processors have no fast float16 arithmetic. bf16 needs no scale, and is as fast where there is both.

    Args:
        scale: s in the beginning.
        patience: steps between two doublings of s.

    >>> Fp16(patience=500)
    Fp16(scale=65536.0, patience=500)
    """

    scale: float = number(2.0**16, 0, open_low=True)
    patience: int = number(2000, 1)

    dtype: ClassVar[torch.dtype] = torch.float16
    name: ClassVar[str] = "fp16"
    card: ClassVar[Card] = Card(
        family="mixed-precision",
        benefit="training time",
        trade_off="a range from 6e-8 to 65504: the loss is scaled, and steps that overflow are skipped",
        paper='"Mixed Precision Training", Micikevicius et al. 2017, arXiv:1710.03740, section 3.2',
        requires=frozenset({"module", "float-weights"}),
        slot="precision",
        devices=frozenset({"cuda"}),
    )

    def prepare(self, session: Session) -> None:
        super().prepare(session)
        session.memory(self).update(unbroken=0, skipped=0)
        session.loss_scale = self.scale

    def backward(self, session: Session, loss: Tensor, proceed: Callable[[Tensor], None]) -> None:
        proceed(loss * session.loss_scale)

    def update(self, session: Session, proceed: Callable[[], None]) -> None:
        memory = session.memory(self)
        gradients = [p.grad for group in session.optimizer.param_groups for p in group["params"] if p.grad is not None]
        scale(gradients, 1 / session.loss_scale)
        if not all_finite(gradients, session.ranks):
            memory.update(unbroken=0, skipped=memory["skipped"] + 1)
            session.loss_scale /= 2
            return
        proceed()
        memory["unbroken"] += 1
        if memory["unbroken"] == self.patience:
            memory["unbroken"] = 0
            session.loss_scale *= 2

    def state_dict(self, session: Session) -> dict[str, Any]:
        return {**session.memory(self), "scale": session.loss_scale}

    def load_state_dict(self, session: Session, state: dict[str, Any]) -> None:
        session.loss_scale = state["scale"]
        session.memory(self).update({name: value for name, value in state.items() if name != "scale"})


class _Products(TorchDispatchMode):
    """FLOPs of the operators that have a formula, by the precision of their first floating-point input."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.low = self.all = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = formula(func._overloadpacket)
        if count is not None:
            flops = float(count(*args, **kwargs, out_val=out))
            first = next((x for x in args if isinstance(x, torch.Tensor) and x.is_floating_point()), None)
            self.all += flops
            self.low += flops if first is not None and first.dtype == self.dtype else 0.0
        return out

    @property
    def share(self) -> float:
        return self.low / self.all if self.all else 0.0
