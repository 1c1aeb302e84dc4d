from __future__ import annotations

import datetime
import json

import torch

from thrifty.measure.environment import environment, now, runtime_versions


def test_it_says_what_a_reader_needs_and_nothing_of_whose_machine_it_is():
    found = environment()
    assert found["torch"] == torch.__version__ and found["cores"] >= 1 and found["cpu"]
    assert "/" not in json.dumps(found) and "host" not in json.dumps(found)


def test_versions_are_those_that_are_installed():
    assert {"torch", "numpy"} <= runtime_versions().keys()


def test_now_is_a_time_with_its_zone():
    assert datetime.datetime.fromisoformat(now()).tzinfo is not None
