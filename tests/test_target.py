from __future__ import annotations

from typing import Any

import pytest
import torch

from thrifty.target import Machine, Target, TargetError, cores, training_machine


def test_one_thread_of_the_cpu_by_default() -> None:
    assert Target() == Target("cpu", 1, None)
    assert Target(threads=cores()).to_json() == {"device": "cpu", "threads": cores(), "memory": None}
    assert Target(**Target(memory=10**9).to_json()) == Target(memory=10**9)


@pytest.mark.parametrize(("values", "words"), [
    ({"device": "tpu"}, "device must be 'cpu' or 'cuda' but is 'tpu'"),
    ({"threads": 0}, "threads must be 1 to"),
    ({"threads": 10**6}, f"threads must be 1 to {cores()} on this machine but is 1000000"),
    ({"threads": "2"}, "threads must be 1 to"),
    ({"threads": 1.0}, "threads must be 1 to"),
    ({"memory": 0}, "memory must be a whole number of bytes above 0 but is 0"),
    ({"memory": -1}, "memory must be a whole number of bytes above 0 but is -1"),
])
def test_what_this_machine_has_not_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(TargetError) as caught:
        Target(**values)
    assert words in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA device on this machine")
def test_cuda_without_a_device_says_what_to_do() -> None:
    with pytest.raises(TargetError, match="torch sees no CUDA device; use --device cpu"):
        Target("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA device on this machine")
def test_training_on_cuda_without_a_device_says_what_to_do() -> None:
    with pytest.raises(TargetError, match="torch sees no CUDA device; use --training-device cpu"):
        training_machine(Target(), "cuda")


@pytest.mark.gpu
def test_cuda_with_a_device() -> None:
    assert Target("cuda").device == "cuda"
    assert training_machine(Target(), "cuda", 2) == Machine("cuda", 2)


def test_the_target_trains_unless_another_device_is_named() -> None:
    assert training_machine(Target(), threads=1) == Machine("cpu", 1, 1)
    with pytest.raises(TargetError, match="device must be 'cpu' or 'cuda' but is 'tpu'"):
        training_machine(Target(), "tpu")
