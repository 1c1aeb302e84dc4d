"""The cache: entries whole or absent, a quota, and nothing in use ever removed."""

import os
import signal
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.runs import cache


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THRIFTY_CACHE_QUOTA", raising=False)
    return tmp_path / "cache"


def put(key, size=100, kind="checkpoints", age=0.0):
    with cache.building(kind, key) as room:
        (room / "weights").write_bytes(bytes(size))
    path = cache.lookup(kind, key)
    if age:
        os.utime(path, (time.time() - age,) * 2)
    return path


def keys():
    return [entry.key for entry in cache.usage().entries]


def test_where_it_is(monkeypatch, tmp_path):
    assert cache.directory() == tmp_path / "cache"
    monkeypatch.delenv("THRIFTY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(cache.directory()) == "/x/thrifty"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/u")
    assert str(cache.directory()) == "/home/u/.cache/thrifty"


@pytest.mark.parametrize("text, size", [("500MB", 5 * 10**8), ("20 GB", 2 * 10**10), ("1e9", 10**9), ("0", 0),
                                        ("1.5k", 1500), ("7B", 7)])
def test_quotas(monkeypatch, text, size):
    monkeypatch.setenv("THRIFTY_CACHE_QUOTA", text)
    assert cache.quota() == size


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_a_quota_reads_or_is_refused(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THRIFTY_CACHE_QUOTA", text)
        try:
            assert cache.quota() >= 0
        except cache.CacheError as error:
            assert "THRIFTY_CACHE_QUOTA" in str(error)


def test_asking_makes_nothing(place):
    assert cache.usage().entries == () and cache.clean() == cache.Cleaned((), 0, ())
    assert not place.exists()


def test_an_entry_is_whole_or_absent(place):
    assert cache.lookup("engines", "ab") is None
    with pytest.raises(RuntimeError), cache.building("engines", "ab") as room:
        (room / "half").write_text("half")
        assert cache.lookup("engines", "ab") is None
        raise RuntimeError
    assert cache.lookup("engines", "ab") is None and cache.usage().bytes == 0
    path = put("ab", 7, "engines")
    assert (path / "weights").read_bytes() == bytes(7)
    assert [(e.kind, e.key, e.bytes) for e in cache.usage().entries] == [("engines", "ab", 7)]
    assert os.listdir(place / "engines") == ["ab"]


def test_the_first_of_two_builders_stays():
    with cache.building("engines", "ab") as mine:
        (mine / "x").write_text("late")
        with cache.building("engines", "ab") as other:
            (other / "x").write_text("early")
    assert (cache.lookup("engines", "ab") / "x").read_text() == "early"
    assert cache.usage().leftovers == 0


def test_the_least_recently_used_goes_first(monkeypatch):
    for i, key in enumerate("abcd"):
        put(key, age=100 - i)
    cache.lookup("checkpoints", "a")  # used now
    monkeypatch.setenv("THRIFTY_CACHE_QUOTA", "250")
    cleaned = cache.clean()
    assert [e.key for e in cleaned.removed] == ["b", "c"]
    assert cleaned.freed == 200
    assert keys() == ["d", "a"]
    put("e", age=0)
    assert keys() == ["a", "e"]  # building keeps the quota
    put("f", size=1000)
    assert keys() == ["f"]  # even over it, what was just built stays
    assert [e.key for e in cache.clean(everything=True).removed] == ["f"]


def test_what_is_used_stays(monkeypatch):
    put("a", age=100)
    put("b")
    monkeypatch.setenv("THRIFTY_CACHE_QUOTA", "0")
    with cache.using("checkpoints", "a") as path:
        cleaned = cache.clean(everything=True)
        assert [e.key for e in cleaned.removed] == ["b"] and [e.key for e in cleaned.in_use] == ["a"]
        assert (path / "weights").exists()
    with cache.using("checkpoints", "b") as path:
        assert path is None
    assert [e.key for e in cache.clean().removed] == ["a"]


def test_using_and_cleaning_at_once():
    stop, wrong = threading.Event(), []

    def cleaner():
        while not stop.is_set():
            cache.clean(everything=True)

    thread = threading.Thread(target=cleaner)
    thread.start()
    for i in range(100):
        put_key = f"k{i % 3}"
        with cache.building("checkpoints", put_key) as room:
            (room / "weights").write_bytes(bytes(10))
        with cache.using("checkpoints", put_key) as path:
            if path is not None and not (path / "weights").exists():
                wrong.append(i)
    stop.set()
    thread.join()
    assert not wrong


@pytest.mark.parametrize("everything", [True, False])
def test_what_a_session_used_or_built_stays(monkeypatch, everything):
    """Also between the processes of a run, where nobody holds it; what lay there before goes."""
    put("old", age=100), put("touched", age=50)
    monkeypatch.setenv("THRIFTY_CACHE_QUOTA", "1B")
    with cache.session():
        cache.lookup("checkpoints", "touched")
        put("new"), put("newer")
        with cache.session():
            cache.clean(everything)
        cache.clean(everything)
        assert set(keys()) == {"touched", "new", "newer"}, "the end of an inner session is not the outer's"
    cache.clean(everything)
    assert keys() == []


def test_a_session_of_another_process_counts_and_a_killed_one_does_not(place, monkeypatch):
    ready, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            with cache.session():
                put("its")
                os.write(writing, b"x")
                time.sleep(60)
        finally:
            os._exit(1)
    os.read(ready, 1)
    assert [entry.key for entry in cache.clean(everything=True).in_use] == ["its"]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (sign,) = (place / "sessions").iterdir()
    os.utime(sign, (1, 1))
    assert [entry.key for entry in cache.clean(everything=True).removed] == ["its"]
    assert not list((place / "sessions").iterdir())


def test_what_is_pinned_stays(monkeypatch):
    put("reference", age=1000), put("other")
    cache.pin("checkpoints", "reference"), cache.pin("checkpoints", "nowhere")
    assert [entry.key for entry in cache.clean(everything=True).removed] == ["other"]
    for lock in cache._pins.values():
        os.close(lock)
    cache._pins.clear()


def test_a_killed_build_is_cleaned_and_a_living_one_is_not(place):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with cache.building("checkpoints", "ab") as room:
            (room / "half").write_bytes(bytes(50))
            os.write(write, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(read, 1)
    assert cache.clean(everything=True).freed == 0
    assert cache.usage().leftovers == 50
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert cache.clean().freed == 50
    assert os.listdir(place / "checkpoints") == []


@pytest.mark.parametrize("key", ["", ".", "..", "../x", "a/b", ".building-x", "a\n", "a" * 200])
def test_keys_that_are_none(key):
    with pytest.raises(cache.CacheError, match="key"):
        cache.lookup("checkpoints", key)


def test_kinds_that_are_none():
    with pytest.raises(cache.CacheError, match="checkpoints, engines"), cache.building("other", "ab"):
        pass


def test_someone_elses_directory_is_left_alone(place):
    (place / "checkpoints" / "mine").mkdir(parents=True)
    assert cache.clean(everything=True).removed == () == cache.usage().entries
    with pytest.raises(cache.CacheError, match="set THRIFTY_CACHE"), cache.building("checkpoints", "ab"):
        pass
    assert (place / "checkpoints" / "mine").exists()


def test_a_link_is_not_followed(place, tmp_path):
    put("a")
    (tmp_path / "precious").mkdir()
    (place / "checkpoints" / "link").symlink_to(tmp_path / "precious")
    cache.clean(everything=True)
    assert (tmp_path / "precious").exists()


def test_a_place_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "file"))
    with pytest.raises(cache.CacheError, match="set THRIFTY_CACHE"), cache.building("checkpoints", "ab"):
        pass


def test_what_is_kept_outlives_a_failure_and_goes_when_all_is_well():
    with pytest.raises(KeyError), cache.keeping("trainings", "one") as room:
        (room / "state").write_text("half way")
        raise KeyError
    with cache.keeping("trainings", "one") as room:
        assert (room / "state").read_text() == "half way"
    assert not room.exists()


@pytest.mark.slow
def test_a_run_while_the_cache_is_cleaned_all_the_time(tmp_path, monkeypatch):
    """And with room for nothing: what the run needs is there while it needs it."""
    import thrifty
    from thrifty import testing

    monkeypatch.setenv("THRIFTY_CACHE_QUOTA", "1B")
    ended = threading.Event()

    def clean():
        while not ended.wait(0.02):
            cache.clean(everything=True)

    cleaner = threading.Thread(target=clean, daemon=True)
    cleaner.start()
    try:
        recipe = f"{testing.workload.reference} | prune(ratio=0.5) | train(distill, epochs=1) | compile(onnxruntime)"
        trial = thrifty.run("thrifty.testing:workload", recipe, study=tmp_path / "study", pairs=1)
        assert trial.status == "done", trial.error
    finally:
        ended.set()
        cleaner.join(10)
