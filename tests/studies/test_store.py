"""The store: exact, safe against being killed, and clear about what it refuses."""

import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thrifty.studies.database import FILE, StoreError
from thrifty.studies.ledger import Charge, Ledger
from thrifty.studies.serialization import dumps, loads, typed
from thrifty.studies.store import FORMAT, Store, Study, trial_id
from thrifty.studies.trial import Trial
from thrifty.workloads.quality import Scores

TARGET = {"device": "cpu", "threads": 1, "memory": None}
STUDY = Study("digits", "ab12" * 16, TARGET)


def trial(id: str = "t1", **fields) -> Trial:
    given = {"workload": "digits", "workload_hash": STUDY.workload_hash, "recipe": "train()", "seed": 0,
             "target": TARGET, "status": "done"}
    return Trial(id, **(given | fields))


# -- round trips --------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
mappings = st.dictionaries(st.text(), json_values, max_size=3)
numbers = st.floats(allow_nan=False)
texts = st.text(st.characters())  # surrogates too
st.register_type_strategy(Ledger, st.builds(Ledger, st.lists(st.builds(
    Charge, st.sampled_from(["teacher", "failure"]), texts, numbers, st.none() | numbers,
    st.none() | st.integers(), uncounted=st.lists(st.text()).map(tuple),
), max_size=3).map(tuple), st.none() | numbers))
st.register_type_strategy(float, numbers)
trials = st.builds(Trial, target=mappings, environment=mappings, raw=mappings, created=texts, recipe=texts)


@given(trials)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_trial_round_trips_exactly(one):
    assert loads(Trial, dumps(one)) == one


def test_a_union_takes_the_kind_that_fits():
    for value in (1.5, "never", None):
        assert typed(float | Literal["never"] | None, value) == value
    with pytest.raises(ValueError, match="color"):
        typed(Trial | None, {"color": 3})


@given(trials)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow,
                                                                  HealthCheck.function_scoped_fixture])
def test_every_trial_round_trips_through_the_file(tmp_path, one):
    shutil.rmtree(tmp_path / "study", ignore_errors=True)
    with Store.open(tmp_path / "study", "write", Study(one.workload, one.workload_hash, one.target)) as store:
        store.put_trial(one)
    with Store.open(tmp_path / "study") as store:
        assert store.trials() == (one,) == (store.trial(one.id),)


@given(st.lists(st.tuples(st.floats(), st.floats(), st.integers(-(2**63), 2**63 - 1)), max_size=20))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scores_come_back_bit_by_bit(tmp_path, rows):
    numerator, denominator, cluster = zip(*rows, strict=True) if rows else ((), (), ())
    scores = Scores(np.array(numerator, float), np.array(denominator, float), np.array(cluster, np.int64))
    with Store.open(tmp_path, "write", STUDY) as store:
        store.put_scores("t1", "validation", scores)
        back = store.scores("t1", "validation")
        assert store.scores("t1", "test") is None
    for name in ("numerator", "denominator", "cluster"):
        one, other = getattr(scores, name), getattr(back, name)
        assert (one.tobytes(), one.dtype) == (other.tobytes(), other.dtype)
        assert other.flags.writeable


@pytest.mark.parametrize("columns", [1, 3])
def test_scores_of_a_statistic_come_back_with_their_columns(tmp_path, columns):
    def statistic(numerator, denominator, counts):
        return (counts @ numerator).sum(1)

    values = np.random.default_rng(0).normal(size=(5, columns))
    scores = Scores(values, values + 1, np.arange(5), statistic)
    with Store.open(tmp_path, "write", STUDY) as store:
        store.put_scores("t1", "validation", scores)
        back = store.scores("t1", "validation", statistic)
        assert np.array_equal(back.numerator, values) and np.array_equal(back.denominator, values + 1)
        assert back.value == scores.value and back.statistic is statistic


def test_what_is_appended_comes_back_in_order(tmp_path):
    charges = [Charge("training", f"phase {i}", float(i), uncounted=("aten::sort",)) for i in range(3)]
    with Store.open(tmp_path, "write", STUDY) as store:
        store.charge("t1", charges[0])
        store.charge(None, charges[1])
        store.charge("t1", charges[2])
        store.put_round("t1", 1, {"a": [1.5, np.float64(2.5)]})
        store.put_round("t1", 0, {"a": [0.5]})
        store.put_round("t1", 0, {"a": [9.0]}, what="over_compiled")
        with pytest.raises(StoreError, match="already kept"):
            store.put_round("t1", 1, {})
        store.put_trial(trial("bad", status="failed", error="loss is nan at step 3"))
        store.put_failure(None, "prune(ratio=0.5)", "out of memory")
    with Store.open(tmp_path) as store:
        assert store.spent(price=2.0) == Ledger(tuple(charges), 2.0)
        assert store.spent("t1").charges == (charges[0], charges[2])
        assert store.rounds("t1") == {0: {"a": [0.5]}, 1: {"a": [1.5, 2.5]}}
        assert store.rounds("t2") == {}
        assert [(f.trial, f.reason) for f in store.failures()] == [
            ("bad", "loss is nan at step 3"), (None, "out of memory")]
        assert store.study == STUDY
        with pytest.raises(StoreError, match="opened read-only"):
            store.charge(None, charges[0])


def test_a_trial_is_replaced_in_its_place_with_its_scores(tmp_path):
    scores = Scores(np.ones(3), np.ones(3), np.arange(3))
    with Store.open(tmp_path, "write", STUDY) as store:
        store.put_trial(trial("t1"), {"validation": scores})
        store.put_trial(trial("t2"))
        store.put_trial(trial("t1", break_even_requests=5.0))
        assert [t.id for t in store.trials()] == ["t1", "t2"]
        assert store.trial("t1").break_even_requests == 5.0
        assert store.scores("t1", "validation").value == 1.0
        assert store.trial("t3") is None


@given(st.text(), st.text(), st.integers(), mappings)
@settings(max_examples=50)
def test_ids_are_stable_and_know_their_parts(hash, recipe, seed, target):
    id = trial_id(hash, recipe, seed, target)
    assert len(id) == 12 and int(id, 16) >= 0
    assert id == trial_id(hash, recipe, seed, dict(reversed(target.items())))
    assert id != trial_id(hash, recipe, seed + 1, target) and id != trial_id(hash, recipe + "x", seed, target)


# -- being killed, being two, being full --------------------------------------------------------------------------

WRITER = """
import sys
from thrifty.studies.ledger import Charge
from thrifty.studies.store import Store, Study
sys.path.insert(0, {tests!r})
from tests.studies.test_store import STUDY, trial
import numpy as np
from thrifty.workloads.quality import Scores
store = Store.open(sys.argv[1], "write", STUDY)
start = len(store.trials())
print("open", flush=True)
for i in range(start, 10**6):
    scores = Scores(np.full(2000, i, float), np.ones(2000), np.arange(2000))
    store.charge(str(i), Charge("training", "train()", 1.0))
    store.put_trial(trial(str(i)), {{"validation": scores}})
    print(i, flush=True)
"""


def test_kill_at_any_moment_loses_at_most_what_was_in_hand(tmp_path):
    moments = random.Random(0)
    tests = str(Path(__file__).resolve().parents[2])
    pids = [_kill_a_writer(tmp_path, moments.uniform(0.0, 0.12), tests) for _ in range(20)]
    assert len(set(pids)) == 20


def _kill_a_writer(path: Path, after: float, tests: str) -> int:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # the modules are loaded already: twenty interpreters would take a minute
        os.dup2(write, 1)
        sys.stdout = os.fdopen(1, "w")
        sys.argv = ["writer", str(path)]
        try:
            exec(WRITER.format(tests=tests), {})
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as said:
        assert said.readline() == "open\n"
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        done = [line for line in said if line.endswith("\n")]
    last = int(done[-1]) if done else -1
    with Store.open(path) as store:
        kept = [int(t.id) for t in store.trials()]
        assert kept == list(range(len(kept)))
        assert len(kept) >= last + 1
        assert len(store.spent().charges) >= len(kept)  # a trial is charged before it is put
        for i in kept[-2:]:
            assert store.scores(str(i), "validation").numerator.tolist() == [float(i)] * 2000
    return pid


def test_two_writers(tmp_path):
    with Store.open(tmp_path, "write", STUDY) as first:
        first.put_trial(trial())
        with pytest.raises(StoreError, match=f"written by process {os.getpid()}"):
            Store.open(tmp_path, "write", STUDY)
        with Store.open(tmp_path) as reader:
            assert reader.trials() == (trial(),)
            first.put_trial(trial("t2"))
            assert len(reader.trials()) == 2
    Store.open(tmp_path, "write").close()


def test_a_child_of_the_writer_does_not_hold_its_lock(tmp_path):
    store = Store.open(tmp_path, "write", STUDY)
    pid = os.fork()
    if pid == 0:
        time.sleep(20)
        os._exit(0)
    try:
        time.sleep(0.1)
        store.close()
        Store.open(tmp_path, "write").close()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_full_disk_keeps_what_was_there(tmp_path):
    with Store.open(tmp_path, "write", STUDY) as store:
        store.put_trial(trial())
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages + 3}")
        big = Scores(np.ones(50_000), np.ones(50_000), np.arange(50_000))
        with pytest.raises(StoreError, match=r"full.*intact.*free some space"):
            store.put_trial(trial("t2"), {"validation": big})
        assert store.trials() == (trial(),)
        store.put_trial(trial("t3"))
    with Store.open(tmp_path) as store:
        assert [t.id for t in store.trials()] == ["t1", "t3"]


def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path):
    with Store.open(tmp_path, "write", STUDY) as store:
        store.put_trial(trial())
        size = (tmp_path / FILE).stat().st_size
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 8192, hard))
        try:
            big = Scores(np.ones(50_000), np.ones(50_000), np.arange(50_000))
            with pytest.raises(StoreError, match="full"):
                store.put_scores("t1", "validation", big)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, ignored)
    with Store.open(tmp_path, "write") as store:
        assert store.trials() == (trial(),)
        assert store.scores("t1", "validation") is None


# -- what it refuses ----------------------------------------------------------------------------------------------


def test_another_format(tmp_path):
    Store.open(tmp_path, "write", STUDY).close()
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute(f"PRAGMA user_version = {FORMAT + 1}")
    db.close()
    for mode in ("read", "write"):
        with pytest.raises(StoreError, match=rf"format {FORMAT + 1}.*reads format {FORMAT}.*nothing was changed"):
            Store.open(tmp_path, mode, STUDY)


def test_not_a_store(tmp_path):
    with pytest.raises(StoreError, match="no study in"):
        Store.open(tmp_path)
    with pytest.raises(StoreError, match="is a file"):
        Store.open(Path(__file__))
    (tmp_path / FILE).write_bytes(b"")
    with pytest.raises(StoreError, match="empty"):
        Store.open(tmp_path)
    (tmp_path / FILE).write_bytes(b"no database at all" * 100)
    for mode in ("read", "write"):
        with pytest.raises(StoreError, match="not a Thrifty study"):
            Store.open(tmp_path, mode, STUDY)
    assert (tmp_path / FILE).read_bytes().startswith(b"no database")
    (tmp_path / FILE).unlink()
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("CREATE TABLE recipes (cake TEXT)")
    db.close()
    for mode in ("read", "write"):
        with pytest.raises(StoreError, match="not a Thrifty study"):
            Store.open(tmp_path, mode, STUDY)


def test_another_study(tmp_path):
    with pytest.raises(StoreError, match="give its workload"):
        Store.open(tmp_path, "write")
    Store.open(tmp_path, "write", STUDY).close()
    with pytest.raises(StoreError, match=r"digits \(ab12ab12ab12\), but this is digits \(cd34cd34cd34\)"):
        Store.open(tmp_path, "write", Study("digits", "cd34" * 16, TARGET))
    with pytest.raises(StoreError, match=r"threads 1.*threads 2"):
        Store.open(tmp_path, "write", Study("digits", STUDY.workload_hash, TARGET | {"threads": 2}))
    with Store.open(tmp_path, "write", STUDY) as store, pytest.raises(StoreError, match="python-lm"):
        store.put_trial(trial(workload="python-lm"))


def test_damage(tmp_path):
    with Store.open(tmp_path, "write", STUDY) as store:
        for i in range(50):
            store.put_trial(trial(str(i), raw={"x": list(range(200))}))
    with (tmp_path / FILE).open("r+b") as file:
        file.seek(4096)
        file.write(random.Random(0).randbytes(40_000))
    with pytest.raises(StoreError, match="damaged"):
        Store.open(tmp_path, "write", STUDY)
    with pytest.raises(StoreError, match="damaged"):
        Store.open(tmp_path).trials()


def test_a_trial_written_by_something_else(tmp_path):
    with Store.open(tmp_path, "write", STUDY) as store:
        store.put_trial(trial())
        for text in ('{"id": 3}', "{", json.dumps({"id": "x", "color": "red"})):
            store._db.execute("UPDATE trials SET json = ?", (text,))
            with pytest.raises(StoreError, match="is damaged, or from a newer"):
                store.trials()


def test_what_has_no_json_form_is_named(tmp_path):
    with Store.open(tmp_path, "write", STUDY) as store:
        with pytest.raises(StoreError, match=r"value\.raw\.model is a object"):
            store.put_trial(trial(raw={"model": object()}))
        store.put_trial(trial(raw={"x": np.float32(0.5), "y": np.arange(2)}))
        assert store.trial("t1").raw == {"x": 0.5, "y": [0, 1]}


def test_a_study_that_cannot_be_written(tmp_path):
    Store.open(tmp_path / "study", "write", STUDY).close()
    command = [sys.executable, "-c", "import sys; from thrifty import Store; print(Store.open(sys.argv[1]).trials())",
               str(tmp_path / "study")]
    (tmp_path / "study" / FILE).chmod(0o444)
    (tmp_path / "study").chmod(0o555)
    try:
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "()\n"
    finally:
        (tmp_path / "study").chmod(0o755)
