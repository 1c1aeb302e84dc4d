"""States that ranks keep together: whole or not there, of the step they were asked for, taken up by any number of ranks."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from tests.training.distributed import trainings
from tests.training.distributed.ranks import together
from thrifty import AdamW, CrossEntropy, Ema, ThriftyError, Train, fit
from thrifty.recipes.ranks import Alone, Ranks
from thrifty.recipes.registry import method_class
from thrifty.training.distributed import kept
from thrifty.training.distributed.kept import RanksKeeper
from thrifty.training.ranks import Group
from thrifty.training.resume import ResumeError
from thrifty.training.session import TrainingSession

STEPS = 12
PAIRS = (("zero3", "sophia"), ("zero1", "muon"), ("ddp", "adamw"))


class Killed(BaseException):
    """What ends the process."""


def gone_on(ranks: Ranks, die_at: int | None = None) -> dict[str, list[tuple[int, float]]]:
    """Trainings that keep their state at every step, from what an earlier process left; killed after a step."""
    found = {}
    for parallel, optimizer in PAIRS:
        place = Path(os.environ["KEPT_HERE"]) / parallel
        methods = [trainings.OPTIMIZERS[optimizer], method_class(parallel)()]
        scored: list[int] = []

        def score(model: object, scored: list[int] = scored) -> float:
            scored.append(1)
            if len(scored) == die_at:
                raise Killed
            return 0.0

        try:
            with trainings.certain():
                done = fit(trainings.Tied(), methods, trainings.text(), CrossEntropy(), batch_size=13, ranks=ranks, seed=5,
                           settings=Train(steps=STEPS, schedule="constant", evaluations=STEPS), keep=place, keep_seconds=0.0,
                           evaluate=score)
            found[parallel] = list(done.history)
        except Killed:
            deadline = time.monotonic() + 30  # what is being written goes on being written, and older states go after it
            while (len(names := sorted(path.name for path in place.iterdir())) != 1 or names[0].endswith(".partial")) and (
                    time.monotonic() < deadline):
                time.sleep(0.05)
            found[parallel] = names  # type: ignore[assignment]
    return found


def begun(ranks: Ranks) -> Any:
    return gone_on(ranks, die_at=5)


def again(ranks: Ranks) -> Any:
    return gone_on(ranks, die_at=3)


def follow(place: Path, monkeypatch: pytest.MonkeyPatch, *stages: tuple[int, str]) -> dict[str, Any]:
    """Stages in processes of their own; the last one's histories."""
    monkeypatch.setenv("KEPT_HERE", str(place / "states"))
    for number, (count, name) in enumerate(stages):
        (place / str(number)).mkdir()
        found = together(place / str(number), count, __name__, name).found(name)[0]
        if name != "gone_on":
            assert all(len(names) == 1 and names[0].startswith("step-0") for names in found.values()), found  # one whole state
    return found  # type: ignore[no-any-return]


def compare(histories: dict[str, Any]) -> None:
    for parallel, optimizer in PAIRS:
        want = trainings.trained(Alone(), "", optimizer, steps=STEPS, clip=1.0)
        steps, losses = zip(*histories[parallel], strict=True)
        assert steps == tuple(range(1, STEPS + 1))
        torch.testing.assert_close(torch.tensor(losses, dtype=torch.float64), want["losses"], rtol=1e-5, atol=0)


@pytest.mark.slow
def test_a_training_goes_on_with_another_number_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(follow(tmp_path, monkeypatch, (2, "begun"), (3, "gone_on")))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_ranks_two_and_four_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(follow(tmp_path, monkeypatch, (4, "begun"), (2, "again"), (4, "gone_on")))


# -- one rank, in this process --------------------------------------------------------------------------------------


def session_of(model: torch.nn.Module, *more: Any) -> TrainingSession:
    return TrainingSession(model, [AdamW(), *more], CrossEntropy(), steps=9)


def stepped(session: TrainingSession, steps: int) -> None:
    for _ in range(steps):
        session.step(((torch.arange(14).view(2, 7),), torch.arange(14).view(2, 7)))


def test_what_is_kept_is_of_the_step_at_which_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(trainings.Tied(), Ema())
    stepped(session, 3)
    want = {name: x.clone() for name, x in session.model.state_dict().items()}
    average = session.state_dict()["methods"]["ema"]
    average = {name: x.clone() for name, x in average.items()}
    written: list[float] = []

    def late(*args: Any, **kwargs: Any) -> None:
        time.sleep(1.0)
        written.append(time.perf_counter())
        save(*args, **kwargs)

    save = dcp.save
    with Group(dist.HashStore(), 0, 1) as ranks:
        keeper = RanksKeeper(tmp_path / "state", ranks)
        monkeypatch.setattr(kept.dcp, "save", late)
        keeper.keep(session, "mine", {"history": [1]})
        stepped(session, 3)
        moved = time.perf_counter()
        assert not keeper.due(True)  # it is still being written
        keeper.close()
        assert written and written[0] > moved
        assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["step-000000003"]
        fresh = session_of(trainings.Tied(), Ema())
        assert RanksKeeper(tmp_path / "state", ranks).restore(fresh, "mine") == {"history": [1]}
    assert fresh.step_number == 3
    for name, x in fresh.model.state_dict().items():
        assert torch.equal(x, want[name]) and (name.startswith(("unreached", "frozen")) or
                                               not torch.equal(x, session.model.state_dict()[name])), name
    for name, x in fresh.state_dict()["methods"]["ema"].items():
        assert torch.equal(x, average[name]), name


class Later(torch.nn.Module):
    """One of whose layers is reached from its third call on."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.late, self.calls = torch.nn.Embedding(14, 14), torch.nn.Linear(14, 14), 0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x: torch.Tensor = self.tokens(ids)
        return self.late(x) if self.calls > 2 else x  # type: ignore[no-any-return]


def test_state_that_joins_later_is_kept_too(tmp_path: Path) -> None:
    session = session_of(Later())
    with Group(dist.HashStore(), 0, 1) as ranks:
        keeper = RanksKeeper(tmp_path / "state", ranks)
        for _ in range(2):
            stepped(session, 2)
            keeper.keep(session, "mine", {})
        keeper.close()
        fresh = session_of(Later())
        RanksKeeper(tmp_path / "state", ranks).restore(fresh, "mine")
    want, got = (one.optimizer.state_dict()["state"] for one in (session, fresh))
    assert len(want) == len(got) == 3
    assert all(torch.equal(want[i]["exp_avg"], got[i]["exp_avg"]) for i in want)


def test_states_of_others_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    session = session_of(trainings.Tied())
    stepped(session, 1)
    with Group(dist.HashStore(), 0, 1) as ranks:
        keeper = RanksKeeper(tmp_path / "state", ranks, aside=False)
        assert keeper.restore(session, "mine") is None
        keeper.keep(session, "mine", {})
        with pytest.raises(ResumeError, match="is the state of another training"):
            keeper.restore(session, "yours")
        with pytest.raises(ResumeError, match="another model's state: it has no 0.bias"):
            keeper.restore(session_of(torch.nn.Sequential(torch.nn.Linear(3, 3))), "mine")
        state = tmp_path / "state" / "step-000000001"
        for file in state.glob("*.distcp"):
            file.write_bytes(file.read_bytes()[:50])
        with pytest.raises(ResumeError, match="cannot be read"):
            keeper.restore(session, "mine")
        (state / "rest.0.pt").write_bytes(b"nothing")
        with pytest.raises(ThriftyError, match="not a training state that can be resumed"):
            keeper.restore(session, "mine")


def test_a_state_that_was_half_written_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "state" / "step-000000007.partial").mkdir(parents=True)
    with Group(dist.HashStore(), 0, 1) as ranks:
        keeper = RanksKeeper(tmp_path / "state", ranks)
        assert keeper.restore(session_of(trainings.Tied()), "mine") is None
    assert not list((tmp_path / "state").iterdir())
