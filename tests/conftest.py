"""What every test gets: one thread, fixed seeds, a cache of its own, and a reason where a GPU test is skipped."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; worker processes inherit it


def pytest_configure(config: pytest.Config) -> None:
    from hypothesis import HealthCheck, settings

    # Wall-clock deadlines fail on a busy machine for no fault of the code; the examples are the same at every run.
    settings.register_profile("thrifty", deadline=None, derandomize=True, print_blob=True,
                              suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
    settings.load_profile("thrifty")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="torch sees no CUDA device on this machine")
    for item in items:
        if item.get_closest_marker("gpu"):  # keywords hold names of folders too
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    _list_operators_once()
    _settled()


def _list_operators_once() -> None:
    """Each `run_decompositions` asks torch 28 times, once a namespace, to list all composite operators: a tenth of a second."""
    import torch
    from torch._export import utils

    plain, listed = utils._materialize_cpp_cia_ops, set[int]()

    def list_operators() -> None:
        if (namespaces := len(torch.ops._dir)) not in listed:
            plain()
            listed.update((namespaces, len(torch.ops._dir)))

    utils._materialize_cpp_cia_ops = list_operators


@pytest.hookimpl(trylast=True)  # what the file's fixtures made is gone by then
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is not None and nextitem.path != item.path:
        _settled()


def _settled() -> None:
    """What is imported and cached stays: each metered phase collects garbage, and need not look through all of it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Checkpoints go to a folder of this session: nothing that an earlier one left can make a test pass."""
    before = os.environ.get("THRIFTY_CACHE")
    os.environ["THRIFTY_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["THRIFTY_CACHE"]
    else:
        os.environ["THRIFTY_CACHE"] = before


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Have the processor's instructions be those given, until the test ends."""
    from thrifty.engines import instructions

    def has(given: str) -> None:
        monkeypatch.setenv(instructions.PRETENDED, given)
        instructions.instructions.cache_clear()

    yield has
    monkeypatch.undo()
    instructions.instructions.cache_clear()


@pytest.fixture
def vnni(pretend: Callable[[str], None]) -> None:
    """As on a processor whose integer products do not saturate: eight bits are eight bits."""
    pretend("avx2 fma avx_vnni")


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
