"""ZeRO: shards the optimizer state, the gradients and the parameters across ranks."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from thrifty.errors import ThriftyError
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.hyperparameters import choice, number
from thrifty.training.distributed.memory import spare
from thrifty.training.distributed.parallel import Parallel, added, fill_unreached, local, trained
from thrifty.training.distributed.sharding import gathered_groups, ignored, put_together, shard, sharded_modules
from thrifty.training.distributed.tensor import Split, planned

if TYPE_CHECKING:
    from thrifty.recipes.session import Session
    from thrifty.workloads.workload import Batch

KEPT = 0.1
"""Share of the memory that is left over which gathered parameters may take before they are given back after their use."""


def zero_card(trade_off: str) -> Card:
    """The card of a stage: all but what it costs is the same for each."""
    return Card(
        family="distributed",
        benefit="training time",
        trade_off=trade_off,
        paper='"ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", Rajbhandari et al. 2019, '
              'arXiv:1910.02054; "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", Zhao et al. 2023, '
              "arXiv:2304.11277",
        requires=frozenset({"module", "float-weights"}),
        holds=frozenset({"sharded"}),
        slot="parallelism",
    )


@dataclass(frozen=True)
class Zero(Parallel):
    """Each rank holds its rows of every parameter and of the optimizer's state, by torch's `fully_shard`."""

    replicas: int = number(1, 1)
    offload: bool = False
    tensor: int = number(1, 1)

    @property
    def devices(self) -> frozenset[str]:
        """Where the device is the CPU, everything lies in the host's memory already."""
        return frozenset({"cuda"}) if self.offload else self.card.devices

    @property
    def holds(self) -> frozenset[str]:
        return self.card.holds | ({"split"} if self.tensor > 1 else set())

    @property
    def refuses(self) -> frozenset[str]:
        """What changes linear layers or compiles them cannot be followed by their split."""
        unsuited = {"adapters", "compiled-steps", "packed-rows", "rounded-steps"}
        return self.card.refuses | (unsuited if self.tensor > 1 else set())

    def parts(self, count: int) -> int:
        return max(1, count // self.tensor)

    def require_ranks(self, count: int) -> None:
        if count > 1 and count % (self.replicas * self.tensor):
            which = "replicas" if self.tensor == 1 else "tensor" if self.replicas == 1 else "replicas and tensor"
            raise ThriftyError(f"{self} does not divide {count} ranks: give {which} that do, a divisor of {count}")
        if 1 < self.replicas == self.parts(count):
            raise ThriftyError(f"{self} leaves everything on each of {count} ranks: use ddp")
        if self.offload and self.parts(count) == 1:
            raise ThriftyError(f"{self} moves what ranks shard, and one rank or team shards nothing: start more (--nproc), "
                               "or remove offload")

    def place(self, session: Session) -> None:
        """What is offloaded goes to the device block by block, when it is sharded."""
        if not (self.offload and session.ranks.processes > 1):
            super().place(session)
            return
        for p in ignored(session.model):
            p.data = p.data.to(session.device)

    def resharded(self, session: Session) -> bool:
        """Whether a block's parameters are given back between its forward and its backward pass."""
        return False

    def prepare(self, session: Session) -> None:
        plan = planned(session.model, self.tensor) if self.tensor > 1 else {}  # refused in a rehearsal of one process too
        teams, memory = session.ranks.count, session.memory(self)
        if session.ranks.processes == 1:
            return
        self.require_ranks(session.ranks.processes)
        sizes = {"replicate": self.replicas, "shard": teams // self.replicas, "tensor": self.tensor}
        sizes = {name: size for name, size in sizes.items() if size > 1}
        mesh = init_device_mesh(session.device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        before = sum(p.nbytes for p in session.model.parameters())
        if plan:
            memory["split"] = Split(session.model, mesh["tensor"], plan)
        gathered = None if session.products == torch.float32 else session.products
        if over := tuple(name for name in sizes if name != "tensor"):
            shard(session.model, mesh[over], reshard=self.resharded(session), gathered=gathered, offload=self.offload)
        parts = [local(p) for p in session.model.parameters()]
        after, there = (sum(part.nbytes for part in found) for found in (parts, [x for x in parts if x.is_cuda]))
        memory.update(share=after / before, on_device=there / after, reached=set())

    def parameter_groups(self, session: Session, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What lies on one mesh, on another or on none stands in groups apart: torch's optimizers take no mixture."""
        meshes = list(dict.fromkeys(map(_mesh, session.model.parameters())))
        split = [{**group, "params": [p for p in group["params"] if _mesh(p) == mesh]}
                 for group in groups for mesh in sorted(meshes, key=lambda mesh: mesh is None)]
        return [group for group in split if group["params"]]

    def forward(self, session: Session, batch: Batch, proceed: Callable[[Batch], Any]) -> Any:
        outputs = proceed(batch)
        memory = session.memory(self)
        if memory and "watched" not in memory and torch.is_grad_enabled():
            memory["watched"] = list(_watched(session.model, memory["reached"]))
        return outputs

    def gradients(self, session: Session) -> list[Tensor]:
        memory, parameters = session.memory(self), trained(session)
        if not memory:
            return super().gradients(session)
        if "split" in memory:
            memory["split"].add_partial()
        if plain := [p for p in parameters if not isinstance(p, DTensor)]:
            fill_unreached(plain, session.ranks, session.device)
            added([p.grad for p in plain if p.grad is not None], session.ranks)
        if memory.get("watched"):
            self._drop_unreached(session, [p for p in parameters if isinstance(p, DTensor)])
        return super().gradients(session)

    def _drop_unreached(self, session: Session, parameters: list[Tensor]) -> None:
        """A parameter that no rank reached has no gradient, as with one process; torch adds up zeros for it."""
        memory = session.memory(self)
        told = torch.tensor([float(id(p) in memory["reached"]) for p in parameters], device=session.device)
        reached = session.ranks.sum(told).tolist()
        memory["reached"].clear()
        for p, count in zip(parameters, reached, strict=True):
            if not count:
                p.grad = None
        if all(reached):  # the first step's passes reached everything: it is not looked at any more
            for handle in memory["watched"]:
                handle.remove()
            memory["watched"] = []

    def evaluate(self, session: Session, model: nn.Module) -> nn.Module:
        return model

    def finish(self, session: Session, model: nn.Module) -> nn.Module:
        memory = session.memory(self)
        if memory:
            put_together(model)
        if "split" in memory:
            memory["split"].undo()
        return model

    def claims(self, session: Session) -> tuple[Claim, ...]:
        memory = session.memory(self)
        if not memory:
            return ()
        held = Claim("share of the parameters' bytes that a rank holds", 1.0, memory["share"], minimum=0.1)
        moved = Claim("share of these bytes in the GPU's memory", 1.0, memory["on_device"], minimum=0.1)
        return (held, moved) if self.offload else (held,)


def _mesh(p: Tensor) -> Any:
    return p.device_mesh if isinstance(p, DTensor) else None


def _watched(model: nn.Module, reached: set[int]) -> Iterator[Any]:
    """Note the parameters that get a gradient: torch's gathered parameters stay the same objects from step to step."""
    for group in gathered_groups(model):
        for fsdp_param in group.fsdp_params:
            found = getattr(fsdp_param, "_unsharded_param", None)
            if found is not None and found.requires_grad:
                yield found.register_post_accumulate_grad_hook(
                    functools.partial(_note, reached, id(fsdp_param.sharded_param)))


def _note(reached: set[int], which: int, parameter: Tensor) -> None:
    reached.add(which)


@final
@dataclass(frozen=True)
class Zero1(Zero):
    """Each rank holds its rows of the optimizer's state and of the parameters it updates; whole gradients are kept until the
    step's last micro-batch, and added over ranks once.

    Args:
        replicas: groups of ranks that hold the same: state is sharded within each.
        offload: whether each rank's share of parameters, gradients and state stays in host memory, where the optimizer steps;
            the GPU gets parameters when it uses them.
        tensor: ranks that compute one part of the batch together, each with its share of the matrices that the plan names.

    >>> Zero1()
    Zero1(replicas=1, offload=False, tensor=1)
    """

    name: ClassVar[str] = "zero1"
    card: ClassVar[Card] = zero_card("every rank holds all parameters and gradients during a step; parameters are gathered "
                                     "once per step")

    def micro_batch(self, session: Session, last: bool) -> contextlib.AbstractContextManager[Any]:
        for module in sharded_modules(session.model)[:1]:  # the model itself: what is inside follows
            module.set_requires_gradient_sync(last)
            module.set_reshard_after_backward(last)
        return contextlib.nullcontext()


@final
@dataclass(frozen=True)
class Zero2(Zero):
    """Each rank holds its rows of the optimizer's state and of the gradients; parameters are gathered for a forward and backward
    pass.

    Args:
        replicas: groups of ranks that hold the same: state is sharded within each.
        offload: whether each rank's share of parameters, gradients and state stays in host memory, where the optimizer steps;
            the GPU gets parameters when it uses them.
        tensor: ranks that compute one part of the batch together, each with its share of the matrices that the plan names.

    >>> Zero2()
    Zero2(replicas=1, offload=False, tensor=1)
    """

    name: ClassVar[str] = "zero2"
    card: ClassVar[Card] = zero_card("every rank holds all parameters during a pass; gradients are sent in every "
                                     "micro-batch")


@final
@dataclass(frozen=True)
class Zero3(Zero):
    """Each rank holds its rows of the optimizer's state, the gradients and the parameters; a block's parameters are gathered
    when they are used.

    Args:
        reshard: whether they are given back between the forward and the backward pass: "always", "never" (faster, and takes
            the bytes of all parameters more), or "auto": never where they take less than a tenth of the memory that is left.
        replicas: groups of ranks that hold the same: everything is sharded within each.
        offload: whether each rank's share of parameters, gradients and state stays in host memory, where the optimizer steps;
            the GPU gets parameters when it uses them.
        tensor: ranks that compute one part of the batch together, each with its share of the matrices that the plan names.

    >>> Zero3(reshard="always")
    Zero3(replicas=1, offload=False, tensor=1, reshard='always')
    """

    reshard: str = choice("auto", "auto", "always", "never")

    name: ClassVar[str] = "zero3"
    card: ClassVar[Card] = zero_card("parameters are sent twice per micro-batch, gradients once")

    def resharded(self, session: Session) -> bool:
        if self.reshard != "auto" or self.offload:
            return self.reshard != "never"
        return sum(p.numel() for p in session.model.parameters()) * session.products.itemsize > KEPT * spare(session)
