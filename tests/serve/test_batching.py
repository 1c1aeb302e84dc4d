"""Requests gathered, run and shared out: each gets its own rows, whoever comes with it."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.errors import ThriftyError
from thrifty.serve.batching import (
    Batcher,
    Closed,
    Died,
    QueueFull,
    Request,
    Stuck,
    enough,
    join,
    largest,
    pays,
    split,
    take,
)


def request(rows=1, width=3, value=0.0, dtype="float32"):
    return Request([np.full((rows, width), value, dtype)])


def same(one, other):
    return all(a.shape == b.shape and np.allclose(a, b) for a, b in zip(one, other, strict=True))


def doubled(inputs):
    return [2 * x for x in inputs]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 2)), min_size=1, max_size=12), st.integers(1, 8))
def test_the_queue_is_emptied_in_batches_that_fit(sizes, most):
    queue = deque(request(rows, width, i) for i, (rows, width) in enumerate(sizes))
    wanted, seen = list(queue), []
    while queue:
        head = queue[0]
        batch = take(queue, most)
        assert batch[0] is head, "the first to come is in the next batch"
        assert len(batch) == 1 or sum(x.rows for x in batch) <= most
        assert len({x.kind for x in batch}) == 1
        seen += batch
        parts = split(doubled(join(batch)), batch)
        assert all(same(part, doubled(x.inputs)) for part, x in zip(parts, batch, strict=True))
    assert len(seen) == len(wanted) and {id(x) for x in seen} == {id(x) for x in wanted}
    for kind in {x.kind for x in wanted}:  # those of a kind that are as large keep their order
        for rows in range(1, 7):
            assert [x for x in seen if x.kind == kind and x.rows == rows] == [
                x for x in wanted if x.kind == kind and x.rows == rows]


def test_a_full_batch_is_taken_without_a_look_at_the_rest():
    """Else a server that has fallen behind gets slower the longer its queue is."""
    unread = Request([None])  # whoever asks for its rows or its kind fails
    for most, rows in ((1, 1), (4, 4), (4, 7)):
        queue = deque([request(rows), unread])
        assert len(take(queue, most)) == 1 and list(queue) == [unread]
        assert enough([request(rows), unread], most)


def test_rows_that_do_not_add_up_are_an_error():
    with pytest.raises(ThriftyError, match="cannot be split among 2 rows"):
        split([np.zeros((3, 1))], [request(), request()])
    with pytest.raises(ThriftyError):
        split([np.zeros(())], [request(), request()])


def test_the_largest_batch_is_found():
    def until(limit):
        def run(inputs):
            if len(inputs[0]) > limit:
                raise ValueError("too many")
            return doubled(inputs)
        return run

    inputs = [np.array([[1.0, 2.0, 3.0]])]
    assert largest(doubled, inputs, 8, same) == 8
    assert largest(until(5), inputs, 16, same) == 4
    assert largest(until(1), inputs, 16, same) == 1
    assert largest(doubled, inputs, 1, same) == 1
    assert largest(doubled, [np.ones((3, 2))], 8, same) == 8, "an example of several rows"
    assert largest(lambda x: [x[0] - x[0].mean(0)], inputs, 8, same) == 1, "rows that take from their neighbors"
    assert largest(lambda x: [x[0].sum(0, keepdims=True) + 0 * x[0]], inputs, 8, same) == 1, "rows that mix"
    assert largest(lambda x: [x[0].sum()], inputs, 8, same) == 1, "an output without rows"


def test_batches_pay_where_a_call_costs_more_than_its_rows():
    def by_call(inputs):
        time.sleep(0.004)
        return doubled(inputs)

    def by_row(inputs):
        time.sleep(0.004 * len(inputs[0]))
        return doubled(inputs)

    assert pays(by_call, [np.zeros((1, 3))], 8) and not pays(by_row, [np.zeros((1, 3))], 8)


@pytest.fixture
def batches():
    return []


def batcher(batches, run=doubled, most=4, wait=0.0, queue=100):
    return Batcher(lambda: nullcontext((run, most)), wait=wait, queue=queue, heard=lambda rows, seconds: batches.append(rows))


def test_each_gets_its_own_answer(batches):
    made = batcher(batches, wait=0.002)
    answers = [made.submit([np.full((1 + i % 2, 3), float(i))]) for i in range(50)]
    for i, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.result(10)[0], np.full((1 + i % 2, 3), 2.0 * i))
    made.close()
    assert sum(batches) == 75 and max(batches) <= 4 and len(batches) < 50


def test_it_waits_for_others_no_longer_than_it_may(batches):
    made = batcher(batches, most=4, wait=30.0)
    answers = [made.submit([np.zeros((1, 3))]) for _ in range(4)]  # full: nobody waits 30 s
    for answer in answers:
        answer.result(10)
    assert batches == [4]
    made.wait = 0.01
    made.submit([np.zeros((1, 3))]).result(10)
    assert batches == [4, 1]
    made.close()


class Gate:
    """An engine that runs when it is let."""

    def __init__(self):
        self.open, self.entered = threading.Event(), threading.Event()

    def __call__(self, inputs):
        self.entered.set()
        assert self.open.wait(10)
        return doubled(inputs)


def test_a_full_queue_refuses_and_a_closing_one_drains(batches):
    gate = Gate()
    made = batcher(batches, gate, most=1, queue=2)
    first = made.submit([np.zeros((1, 3))])
    assert gate.entered.wait(10)
    waiting = [made.submit([np.zeros((1, 3))]) for _ in range(2)]
    assert made.waiting == 2
    with pytest.raises(QueueFull, match="2 requests are already waiting"):
        made.submit([np.zeros((1, 3))])
    ending = threading.Thread(target=made.close)
    ending.start()
    gate.open.set()
    ending.join(10)
    assert not made.alive and first.done() and all(x.done() for x in waiting) and batches == [1, 1, 1]
    with pytest.raises(Closed):
        made.submit([np.zeros((1, 3))])


def test_who_went_away_is_not_run(batches):
    gate = Gate()
    made = batcher(batches, gate, most=1)
    first = made.submit([np.zeros((1, 3))])
    assert gate.entered.wait(10)
    gone, stays = made.submit([np.zeros((1, 3))]), made.submit([np.ones((1, 3))])
    assert gone.cancel()
    gate.open.set()
    stays.result(10), first.result(10)
    made.close()
    assert batches == [1, 1]


def test_one_request_does_not_fail_its_neighbours(batches):
    def picky(inputs):
        if (inputs[0] < 0).any():
            raise ValueError("negative")
        return doubled(inputs)

    made = batcher(batches, picky, most=4, wait=0.05)
    answers = [made.submit([np.full((1, 3), value)]) for value in (1.0, -1.0, 2.0)]
    assert answers[0].result(10)[0][0, 0] == 2.0 and answers[2].result(10)[0][0, 0] == 4.0
    with pytest.raises(ValueError, match="negative"):
        answers[1].result(10)
    assert made.submit([np.zeros((1, 3))]).result(10)[0].shape == (1, 3), "the thread goes on"
    made.close()


def test_an_engine_that_does_not_start_is_told():
    def start():
        raise ThriftyError("no engine")

    with pytest.raises(ThriftyError, match="no engine"):
        Batcher(start, wait=0.0, queue=1)


def test_the_engine_is_closed_by_the_thread_that_opened_it():
    told = []

    @contextmanager
    def start():
        told.append(threading.current_thread().name)
        yield doubled, 1
        told.append(threading.current_thread().name)

    made = Batcher(start, wait=0.0, queue=1)
    assert told == ["engine"]
    made.close()
    assert told == ["engine", "engine"]


def test_the_engine_is_touched_by_one_thread(batches):
    names = set()

    def run(inputs):
        names.add(threading.current_thread().name)
        time.sleep(0.001)
        return doubled(inputs)

    made = batcher(batches, run)
    clients = [threading.Thread(target=lambda: made.submit([np.zeros((1, 3))]).result(10)) for _ in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(10)
    made.close()
    assert names == {"engine"} and sum(batches) == 8


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), MemoryError()])
def test_an_engine_whose_thread_dies_fails_its_requests(batches, error, caplog):
    """Whoever waits is told, whoever comes later too; nobody waits for ever."""
    gate = Gate()

    def dies(inputs):
        gate(inputs)
        raise error

    made = batcher(batches, dies if not isinstance(error, MemoryError) else gate, most=1)
    if isinstance(error, MemoryError):  # of whoever hears, outside of the engine's own call
        def heard(rows, seconds):
            raise error
        made.heard = heard
    first = made.submit([np.zeros((1, 3))])
    assert gate.entered.wait(10)
    waiting = [made.submit([np.zeros((1, 3))]) for _ in range(3)]
    gate.open.set()
    for answer in (first, *waiting):
        with pytest.raises(Died):
            answer.result(10)
    assert made.close(10) and not made.alive
    with pytest.raises(Died):
        made.submit([np.zeros((1, 3))])
    assert [record.getMessage().count("\n") for record in caplog.records] == [0]


def test_a_batch_that_does_not_end(batches):
    gate = Gate()
    made = Batcher(lambda: nullcontext((gate, 1)), wait=0.0, queue=9, patience=0.05)
    assert not made.overdue and not made.running
    first = made.submit([np.zeros((1, 3))])
    assert gate.entered.wait(10)
    waiting = made.submit([np.zeros((1, 3))])
    time.sleep(0.1)
    assert made.overdue and made.running
    with pytest.raises(Stuck, match="within 0.05 s"):
        made.submit([np.zeros((1, 3))])
    assert not made.close(0.05), "it still runs"
    made.abandon()
    for answer in (first, waiting):
        with pytest.raises(Closed):
            answer.result(1)
    gate.open.set()
    assert made.close(10), "what was given up harms nobody when it ends"
