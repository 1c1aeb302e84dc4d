"""The table: what it says of whole models, how it is corrected, and that a choice follows from it alone."""

from __future__ import annotations

import itertools
import json

import pytest

from thrifty.posttraining.nas.choosing import OutOfReach, choose, note, uniform
from thrifty.posttraining.nas.limits import read
from thrifty.posttraining.nas.table import BATCH, Row, Table, Whole


def rows(*each: tuple[str, float, float, float]) -> tuple[Row, ...]:
    """(name, milliseconds, bytes, error)."""
    return tuple(Row(name, 1e-3 * ms, size, 10.0, error, error / 10, batch=BATCH * 1e-3 * ms) for name, ms, size, error in each)


def table(blocks: int = 3) -> Table:
    """Blocks that can be half as fast for a small error, or gone for a large one; what surrounds them takes 1 ms."""
    each = rows(("as it is", 4, 100, 0.0), ("int8", 2, 25, 0.1), ("pruned", 1, 50, 0.4))
    own = Row("as it is", 1e-3 * (1 + 4 * blocks), 100.0 * blocks + 20, 10.0, batch=BATCH * 1e-3 * (1 + 4 * blocks))
    return Table({f"b{i}": each for i in range(blocks)}, own)


class Machine:
    """Measures whole models: sums of the blocks, each kind off by a factor, and more error where two blocks change."""

    def __init__(self, found: Table, factors: dict[str, float], interaction: float = 0.0) -> None:
        self.table, self.factors, self.interaction, self.asked = found, factors, interaction, []

    def __call__(self, names):
        self.asked.append(names)
        picked = [next(row for row in self.table.blocks[block] if row.name == name)
                  for block, name in zip(self.table.blocks, names, strict=True)]
        seconds = self.table.own.seconds
        for row in picked:
            seconds += (row.seconds - 4e-3) * self.factors.get(row.name, 1.0)
        error = sum(row.error for row in picked) * (1 + self.interaction * sum(row.error > 0 for row in picked))
        size = 20 + sum(row.bytes for row in picked)
        return Whole(names, Row("whole", seconds, size, 10.0, error, error / 10, batch=BATCH * seconds))


def test_what_the_table_says_of_a_whole_model_is_a_sum():
    found = table()
    assert found.predicted(("int8", "as it is", "pruned"), "latency") == pytest.approx(13e-3 - 2e-3 - 3e-3)
    assert found.predicted(("int8", "int8", "as it is"), "bytes") == 320 - 150
    assert Table.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_correction_makes_measured_models_come_out():
    found = table()
    machine = Machine(found, {"int8": 0.5, "pruned": 1.2})
    wholes = tuple(machine(names) for names in uniform(found))
    corrected = Table(found.blocks, found.own, wholes)
    for names in (("int8", "as it is", "as it is"), ("pruned", "int8", "as it is"), ("pruned", "pruned", "int8")):
        assert corrected.predicted(names, "latency", corrected=True) == pytest.approx(machine(names).row.seconds, rel=0.01)
    assert max(corrected.errors()) > 0.1  # the table alone stays what it was


@pytest.mark.parametrize("factors", [{}, {"int8": 0.6}, {"int8": 1.4, "pruned": 0.8}])
@pytest.mark.parametrize("text", ["latency<=60%", "latency<=8ms, bytes<=60%", "throughput>=150%", "memory<=200MB, latency<=7ms",
                                  "bytes<=50%"])
def test_the_best_of_all_models_within_the_limits_is_found(factors, text):
    found, limits = table(), read(text)
    machine = Machine(found, factors, interaction=0.1)
    chosen = choose(found, limits, "loss", 6, machine, uniform(found))
    options = [[row.name for row in each] for each in found.blocks.values()]
    every = [machine(tuple(names)).row for names in itertools.product(*options)]
    within = [row for row in every if all(limit.met(row.shown(limit.what), found.own.shown(limit.what)) for limit in limits)]
    assert chosen.whole.row in within
    assert chosen.whole.row.error == pytest.approx(min(row.error for row in within))


def test_the_frontier_falls_from_the_model_as_it_is_to_the_quickest():
    points = table().frontier()
    used, lost = [point.used for point in points], [point.loss for point in points]
    assert used == sorted(used, reverse=True) and lost == sorted(lost)
    assert points[0].names == ("as it is",) * 3 and points[-1].names == ("pruned",) * 3
    assert used[-1] == pytest.approx(4e-3)


def test_each_model_is_measured_once():
    machine = Machine(table(), {"int8": 0.7})
    choose(table(), read("latency<=60%"), "loss", 6, machine, uniform(table()))
    assert len(machine.asked) == len(set(machine.asked))


def test_a_choice_that_the_engine_refuses_whole_gives_way_to_another():
    machine = Machine(table(), {})
    limits = read("latency<=62%")
    best = choose(table(), limits, "loss", 6, machine).names
    chosen = choose(table(), limits, "loss", 6, lambda names: None if names == best else machine(names), uniform(table()))
    assert chosen.names != best and chosen.whole.row.seconds <= 0.62 * 13e-3


def test_the_least_latency_within_a_drop():
    chosen = choose(table(), read("drop<=6.1pt"), "latency", 6, Machine(table(), {}), uniform(table()))
    assert chosen.whole.row.drop == pytest.approx(0.06) and sorted(chosen.names) == ["int8", "int8", "pruned"]


def test_a_limit_out_of_reach_names_the_nearest():
    with pytest.raises(OutOfReach, match=r"nearest has latency 4 ms \(asked: 1 ms, as it is: 13 ms\): b0 pruned, b1 pruned"):
        choose(table(), read("latency<=1ms"), "loss", 4, Machine(table(), {}), uniform(table()))


def test_no_gain_anywhere_leaves_the_model_unchanged_and_says_so():
    slow = Table({"b": rows(("as it is", 1, 100, 0.0), ("int8", 2, 25, 0.1))}, Row("as it is", 2e-3, 120.0, 10.0))
    chosen = choose(slow, read("latency<=50%"), "loss", 4, Machine(slow, {}))
    assert chosen.names == ("as it is",) and "no measured gain" in note(chosen) and note(chosen).startswith("unchanged")
    alone = Table({"b": rows(("as it is", 1, 100, 0.0))}, slow.own, (), {"b": {"int8": "it has no float weight"}})
    none = choose(alone, read("latency<=50%"), "loss", 4, print)
    assert "no block has an alternative; b: int8: it has no float weight" in note(none)
    kept = choose(table(), read("latency<=100%"), "loss", 4, Machine(table(), {}))
    assert kept.unchanged and kept.names == ("as it is",) * 3


def test_a_predictor_that_errs_says_so():
    sound = choose(table(), read("latency<=60%"), "loss", 4, Machine(table(), {}), uniform(table()))
    assert "predicted with an error of 0.0%" in note(sound) and "errs by more" not in note(sound)
    off = choose(table(), read("latency<=75%"), "loss", 4, Machine(table(), {"int8": 0.5, "pruned": 0.5}), uniform(table()))
    assert "errs by more than 10% on this result" in note(off)


def test_a_limit_that_only_a_ruined_model_keeps_to_says_so():
    ruined = rows(("as it is", 4, 100, 0.0), ("int8", 2, 25, 0.1), ("pruned", 1, 50, 0.5))
    found = Table({f"b{i}": ruined for i in range(3)}, table().own)
    assert "hardly depend" in note(choose(found, read("latency<=35%"), "loss", 4, Machine(found, {}), uniform(found)))
    assert "hardly depend" not in note(choose(found, read("latency<=60%"), "loss", 4, Machine(found, {}), uniform(found)))
