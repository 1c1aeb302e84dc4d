"""A training's state that its ranks keep together: every rank writes its own part, any number of ranks reads it."""

from __future__ import annotations

import contextlib
import re
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._state_dict_utils import _copy_state_dict, _create_cpu_state_dict
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from thrifty.recipes.ranks import Ranks
from thrifty.training.distributed.sharding import sharded_modules
from thrifty.training.resume import FORMAT, Keeper, ResumeError
from thrifty.training.session import TrainingSession

_STEP = re.compile(r"step-(\d+)")
_PARTIAL = ".partial"


@final
class RanksKeeper(Keeper):
    """Keeps the state in a directory, by torch's distributed checkpoint; the last whole one stays.

    Tensors are copied at once and written while training goes on: what is kept is of the step at which it was asked for. A
    state appears whole or not at all: it is written beside and renamed when every rank has written its part. Tensors have
    names (``model/...``, ``optimizer/PARAMETER/...``), so that another number of ranks takes them up.

    Args:
        place: the directory; all ranks must see the same.
        ranks: that train together; the process group is there already.
        aside: whether it is written while training goes on.
    """

    def __init__(self, place: Path, ranks: Ranks, *, aside: bool = True) -> None:
        self._place, self._ranks, self._aside = place, ranks, aside
        self._group = dist.new_group(backend="gloo")
        self._writing: Future[None] | None = None
        self._copies: dict[str, Any] = {}
        self._pool = ThreadPoolExecutor(1)
        if ranks.index == 0:
            place.mkdir(parents=True, exist_ok=True)
            for left in place.glob(f"*{_PARTIAL}"):
                shutil.rmtree(left, ignore_errors=True)

    def due(self, due: bool) -> bool:
        """Whether all are to keep now: the first rank's clock decides, and what is still being written is not waited for."""
        busy = self._writing is not None and not self._writing.done()
        asked, waiting = self._ranks.sum(torch.tensor([float(due and self._ranks.index == 0), float(busy)])).tolist()
        return bool(asked) and not waiting

    def keep(self, session: TrainingSession, identity: str, told: dict[str, Any]) -> None:
        tensors, rest = parts(session)
        rest |= {"format": FORMAT, "identity": identity, "told": told, "ranks": self._ranks.count, "random": {
            "cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if session.device == "cuda" else None}}
        self._require_written()
        if self._copies.keys() != tensors.keys():  # made once, for pages that exist are written much faster; state may join later
            self._copies = _create_cpu_state_dict(tensors, pin_memory=session.device == "cuda")
        _copy_state_dict(tensors, self._copies)
        self._writing = self._pool.submit(self._write, f"step-{session.step_number:09d}", self._copies, _copied(rest))
        if not self._aside:
            self._require_written()

    def close(self) -> None:
        self._require_written()
        self._pool.shutdown()

    def _require_written(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _write(self, name: str, tensors: dict[str, Any], rest: dict[str, Any]) -> None:
        partial, whole = self._place / f"{name}{_PARTIAL}", self._place / name
        if self._ranks.index == 0:
            partial.mkdir(exist_ok=True)
        dist.barrier(self._group)
        torch.save(rest, partial / f"rest.{self._ranks.index}.pt")
        with _quiet():
            dcp.save(tensors, checkpoint_id=partial, process_group=self._group)
        dist.barrier(self._group)
        if self._ranks.index == 0:
            partial.replace(whole)
            for older in _states(self._place)[:-1]:
                shutil.rmtree(older, ignore_errors=True)

    # -- reading ------------------------------------------------------------------------------------------------

    def restore(self, session: TrainingSession, identity: str) -> dict[str, Any] | None:
        found = [str(path) for path in _states(self._place)]
        names = self._ranks.gather(found)[0]
        if not names:
            return None
        path = Path(names[-1])
        own = path / f"rest.{self._ranks.index}.pt"
        try:
            rest = torch.load(own if own.is_file() else path / "rest.0.pt", map_location="cpu", weights_only=True)
            kept = rest["identity"]
        except Exception as error:  # torch raises many kinds on a file that is none of its own
            raise ResumeError(f"{path} is not a training state that can be resumed ({type(error).__name__}): delete it to "
                              "start over") from error
        if rest.get("format") != FORMAT or kept != identity:
            raise ResumeError(f"{path} is the state of another training; delete it to start over, or train with the same model, "
                              f"methods, data and settings:\n  it is of {kept}\n  this one is {identity}")
        load(session, path, rest, self._group)
        if own.is_file() and rest["ranks"] == self._ranks.count:
            torch.set_rng_state(rest["random"]["cpu"])
            if session.device == "cuda" and rest["random"]["cuda"] is not None:
                torch.cuda.set_rng_state(rest["random"]["cuda"])
        return dict(rest["told"])


def _states(place: Path) -> list[Path]:
    return sorted(path for path in place.glob("step-*") if _STEP.fullmatch(path.name))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _copied(value: Any) -> Any:
    """The same plain values, tensors copied: training goes on while they are written."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


# -- names --------------------------------------------------------------------------------------------------------


def parts(session: TrainingSession) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A session's state: tensors by name, of which each rank may hold a part, and what each rank keeps of its own."""
    for module in sharded_modules(session.model):
        module.reshard()
    state = session.state_dict()
    model, optimizer = state.pop("model"), state.pop("optimizer")
    tensors = {f"model/{name}": x for name, x in model.items() if isinstance(x, Tensor)}
    values: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(names(session)):
        for key, value in optimizer["state"].get(index, {}).items():
            if _plain(value):
                tensors[f"optimizer/{name}/{key}"] = value
            else:
                values.setdefault(name, {})[key] = value
    others = {key: value for key, value in optimizer.items() if key not in ("state", "param_groups")}
    return tensors, {"session": state, "optimizer": {"groups": optimizer["param_groups"], "values": values, "others": others}}


def _plain(value: Any) -> bool:
    return type(value) is Tensor or (isinstance(value, DTensor) and type(value.to_local()) is Tensor)


def names(session: TrainingSession) -> list[str]:
    """The names of the optimizer's parameters, in its order."""
    known = {id(p): name for name, p in session.model.named_parameters()}
    return [known[id(p)] for group in session.optimizer.param_groups for p in group["params"]]


def load(session: TrainingSession, path: Path, rest: dict[str, Any], group: Any) -> None:
    """Take back what `parts` gave, as far as this rank has to do with it.

    Raises:
        ResumeError: it is another model's.
    """
    for module in sharded_modules(session.model):
        module.reshard()
    stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    model = session.model.state_dict()
    tensors: dict[str, Tensor] = {f"model/{name}": x for name, x in model.items() if isinstance(x, Tensor)}
    if missing := sorted(name for name in tensors if name not in stored):
        raise ResumeError(f"{path} is another model's state: it has no {missing[0].removeprefix('model/')}")
    parameters = [p for each in session.optimizer.param_groups for p in each["params"]]
    state: dict[int, dict[str, Any]] = {}
    for index, (name, p) in enumerate(zip(names(session), parameters, strict=True)):
        start = f"optimizer/{name}/"
        for key, facts in stored.items():
            if key.startswith(start) and "/" not in key[len(start):] and isinstance(facts, TensorStorageMetadata):
                alike = isinstance(p, DTensor) and facts.size == p.shape
                made = (torch.zeros_like(p, dtype=facts.properties.dtype) if alike else
                        torch.zeros(facts.size, dtype=facts.properties.dtype, device=p.device))
                tensors[key] = state.setdefault(index, {})[key[len(start):]] = made
        state.setdefault(index, {}).update(rest["optimizer"]["values"].get(name, {}))
    try:
        with _quiet():
            dcp.load(tensors, checkpoint_id=path, process_group=group)
    except (Exception, CheckpointException) as error:  # of all ranks at once, and no Exception
        raise ResumeError(f"{path} cannot be read ({type(error).__name__}): delete it to start over") from error
    kept = rest["optimizer"]["groups"]
    if len(kept) != len(session.optimizer.param_groups):
        raise ResumeError(f"{path} has {len(kept)} parameter groups, but this training has "
                          f"{len(session.optimizer.param_groups)}: delete it to start over")
    optimizer = {"state": {index: values for index, values in state.items() if values}, "param_groups": kept,
                 **rest["optimizer"]["others"]}
    session.load_state_dict({**rest["session"], "model": model, "optimizer": optimizer})
