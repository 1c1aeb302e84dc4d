"""Ranks train what one process does: the same losses and the same weights, whatever each of them holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.distributed import trainings
from tests.training.distributed.ranks import together
from thrifty.recipes.ranks import Alone, Ranks

METHODS = ("ddp", "zero1", "zero2", "zero3")
BOUNDS = {"sgd": 1e-6, "adamw": 1e-6, "sophia": 1e-5, "muon": 1e-5}
FEW, STEPS = 15, 50
SETTINGS: dict[str, dict[str, Any]] = {"sgd": {"accumulate": 3}, "sophia": {"accumulate": 2}}


def few(ranks: Ranks) -> dict[tuple[str, str], Any]:
    """SGD over micro-batches and AdamW by every method; Sophia and Muon where everything is sharded."""
    pairs = [(method, name) for method in METHODS for name in ("sgd", "adamw")]
    return all_of(ranks, [*pairs, ("zero3", "sophia"), ("zero3", "muon")], FEW)


def every(ranks: Ranks) -> dict[tuple[str, str], Any]:
    return all_of(ranks, [(method, name) for method in METHODS for name in BOUNDS], STEPS)


def all_of(ranks: Ranks, pairs: list[tuple[str, str]], steps: int) -> dict[tuple[str, str], Any]:
    return {(method, name): trainings.trained(ranks, method, name, steps=steps, **SETTINGS.get(name, {}))
            for method, name in pairs}


def compare(place: Path, count: int, name: str, steps: int) -> dict[tuple[str, str], float]:
    """Largest relative difference of a loss, by method and optimizer."""
    of_ranks = together(place, count, __name__, name).found(name)
    alone = {optimizer: trainings.trained(Alone(), "", optimizer, steps=steps, **SETTINGS.get(optimizer, {}))
             for optimizer in BOUNDS}
    largest = {}
    for key, first in of_ranks[0].items():
        for other in of_ranks[1:]:
            assert torch.equal(first["losses"], other[key]["losses"]), key
            assert all(torch.equal(x, other[key]["weights"][n]) for n, x in first["weights"].items()), key
        want = alone[key[1]]
        assert len(want["losses"]) == steps and want["losses"][-1] < 0.9 * want["losses"][0]
        largest[key] = float(((first["losses"] - want["losses"]).abs() / want["losses"]).max())
        assert first["tied"]
        started = dict(trainings.Tied().named_parameters(remove_duplicate=False))
        for n, x in first["weights"].items():
            torch.testing.assert_close(x, want["weights"][n], rtol=1e-4, atol=1e-5, msg=f"{key} {n}")
            if n.startswith(("frozen", "unreached")):
                assert torch.equal(x, started[n]), (key, n)
            else:  # every row of a vocabulary that no number of ranks divides, too
                moved = (x != started[n]).reshape(len(x), -1).any(1) if x.ndim else x != started[n]
                assert moved.all(), (key, n)
    return largest


def require(largest: dict[tuple[str, str], float]) -> None:
    print({f"{method} {name}": f"{x:.1e}" for (method, name), x in largest.items()})
    assert all(x <= BOUNDS[name] for (_, name), x in largest.items()), largest


def test_two_ranks_train_what_one_process_does(tmp_path: Path) -> None:
    require(compare(tmp_path, 2, "few", FEW))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_optimizer_trains_alike_by_every_method(tmp_path: Path, count: int) -> None:
    require(compare(tmp_path, count, "every", STEPS))
