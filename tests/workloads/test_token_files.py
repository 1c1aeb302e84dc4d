"""Token files: windows that cover them, read from disk alone."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from thrifty import TokenFiles, write_tokens
from thrifty.errors import WorkloadError


def test_windows_predict_each_token_once_and_cross_no_file(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    texts = [draw.integers(0, 65_536, n) for n in (41, 3, 8, 100)]
    for i, text in enumerate(texts):
        assert write_tokens(tmp_path / f"{i}.npy", np.array_split(text, 3)) == len(text)
        assert np.array_equal(np.load(tmp_path / f"{i}.npy", mmap_mode="r"), text)
    windows = TokenFiles([tmp_path / f"{i}.npy" for i in range(4)], 8)
    assert len(windows) == 5 + 0 + 0 + 12
    found = [windows[i] for i in range(len(windows))]
    assert all(torch.equal(ids[1:], after[:-1]) and ids.dtype == torch.int64 for ids, after in found)
    assert torch.cat([after for _, after in found[:5]]).tolist() == texts[0][1:41].tolist()
    assert torch.cat([after for _, after in found[5:]]).tolist() == texts[3][1:97].tolist()
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_a_data_set_goes_to_other_processes_and_reads_numpys_own_files(tmp_path: Path) -> None:
    np.save(tmp_path / "text.npy", np.arange(20, dtype=np.int32))
    windows = TokenFiles(tmp_path / "text.npy", 4)
    first = windows[0]
    again = pickle.loads(pickle.dumps(windows))
    assert torch.equal(again[0][1], first[1]) and len(pickle.dumps(windows)) < 2000


def resident() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what a process holds")
def test_a_file_larger_than_memory_takes_none(tmp_path: Path) -> None:
    count = 2**42 // 2
    path = tmp_path / "text.npy"
    write_tokens(path, [[1, 2]])
    header = path.read_bytes()[:128].replace(b"(2,)", f"({count},)".encode())
    with path.open("wb") as file:
        file.write(header[:127].rstrip().ljust(127)[:127] + b"\n")
        try:
            file.truncate(128 + 2 * count)  # 4 TB of zeros, of which the disk holds none
        except OSError:
            pytest.skip("the file system has no files of this size")
    windows = TokenFiles(path, 2048)
    before = resident()
    for i in torch.randint(len(windows), (2000,), generator=torch.Generator().manual_seed(0)).tolist():
        assert windows[i][0].shape == (2048,)
    assert resident() - before < 32 * 2**20
    path.unlink()


def test_what_is_no_token_file_says_why(tmp_path: Path) -> None:
    def refused(why: str, *, paths: object = tmp_path / "text.npy", length: int = 4) -> None:
        with pytest.raises(WorkloadError, match=why):
            TokenFiles(paths, length)  # type: ignore[arg-type]

    refused("text.npy cannot be read: No such file")
    (tmp_path / "text.npy").write_text("words")
    refused("is not a .npy file")
    np.save(tmp_path / "text.npy", np.zeros((2, 3), np.int64))
    refused(r"holds int64 of shape \(2, 3\)")
    np.save(tmp_path / "text.npy", np.zeros(3))
    refused("holds float64")
    write_tokens(tmp_path / "text.npy", [range(4)])
    refused("has no window of 4 tokens")
    refused("no file has no window", paths=[])
    refused("length=0", length=0)
    with (tmp_path / "text.npy").open("r+b") as file:
        file.truncate(130)
    refused("is shorter than the 4 tokens that its header says")
    with pytest.raises(WorkloadError, match="uint16 does not hold the token id 70000"):
        write_tokens(tmp_path / "other.npy", [[1], [70_000]])
    with pytest.raises(WorkloadError, match="uint16 does not hold the token id -1"):
        write_tokens(tmp_path / "other.npy", [[-1]])
    with pytest.raises(WorkloadError, match="a piece has float64"):
        write_tokens(tmp_path / "other.npy", [[0.5]])
    assert [path.name for path in tmp_path.iterdir()] == ["text.npy"]
