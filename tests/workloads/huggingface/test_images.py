"""Pixels: as transformers' own processor gives them; files that are none, and files that lie elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from thrifty.errors import WorkloadError
from thrifty.workloads.huggingface import images
from thrifty.workloads.huggingface.directory import Directory
from thrifty.workloads.huggingface.models import quiet


def processor(path: Path, **given) -> images.Pixels:
    (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.5, "image_std": 0.25, **given}))
    return images.pixels_of(Directory(path, {}))


def picture(path: Path, height: int, width: int) -> Path:
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6), (height, width), mode="bicubic").clamp(0, 1)
    Image.fromarray((smooth[0].permute(1, 2, 0) * 255).byte().numpy()).save(path)
    return path


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize(("height", "width"), [(37, 53), (12, 9), (16, 16)])
def test_pixels_are_those_of_the_library(resample: int, height: int, width: int, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", height, width)
    given = {"size": {"height": 16, "width": 20}, "resample": resample, "image_mean": [0.5, 0.4, 0.3],
             "image_std": [0.2, 0.3, 0.4]}
    ours = processor(tmp_path, **given)(images.decoded(path, 3))
    with quiet():
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        theirs = ViTImageProcessorPil(**given)(Image.open(path), return_tensors="pt")["pixel_values"][0]
    assert ours.shape == theirs.shape == (3, 16, 20)
    assert float((ours - theirs).abs().max()) <= 1.01 / 255 / 0.2, "two libraries round bytes apart by one"


def test_the_shorter_edge_and_the_middle(tmp_path: Path) -> None:
    pixels = processor(tmp_path, size={"shortest_edge": 8}, do_center_crop=True, crop_size={"height": 8, "width": 8},
                       do_rescale=False, do_normalize=False)
    assert pixels(torch.zeros(3, 16, 40, dtype=torch.uint8)).shape == (3, 8, 8)
    assert pixels(torch.zeros(3, 50, 10, dtype=torch.uint8)).shape == (3, 8, 8)
    cut = processor(tmp_path, do_resize=False, do_center_crop=True, crop_size=2, do_rescale=False, do_normalize=False)
    ramp = torch.arange(36, dtype=torch.uint8).reshape(1, 6, 6).expand(3, 6, 6)
    assert cut(ramp)[0].tolist() == [[14, 15], [20, 21]]
    small = cut(torch.full((3, 1, 1), 7, dtype=torch.uint8))
    assert small.shape == (3, 2, 2) and float(small.sum()) == 21, "filled with black"


@pytest.mark.parametrize(("given", "words"), [
    ({"size": {"height": 8, "width": 8}, "resample": 1}, "resample 1 is not supported"),
    ({"size": {"shortest_edge": 8}}, "leaves images of different sizes"),
    ({"size": {"longest_edge": 8}}, "a size of"),
    ({"size": {"height": 8, "width": 8}, "image_std": [0.1, 0.0, 0.1]}, "image_std must be 3 numbers above 0"),
    ({"size": {"height": 8, "width": 8}, "image_mean": [0.1]}, "image_mean must be 3 numbers"),
])
def test_what_is_not_supported_is_refused(given, words: str, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=words):
        processor(tmp_path, **given)


def test_without_a_processor_s_config(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="has no preprocessor_config.json; save the image processor"):
        images.pixels_of(Directory(tmp_path, {}))


def test_an_image_lies_below_the_data_file(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", picture(tmp_path / "secret.png", 4, 4)
    home.mkdir()
    picture(home / "a.png", 4, 4)
    (home / "link.png").symlink_to(outside)
    (home / "folder").symlink_to(tmp_path)
    (home / "near.png").symlink_to(home / "a.png")
    assert images.image_path(home, "a.png") == home / "a.png"
    assert images.image_path(home, "near.png").is_file()
    for name in ("../secret.png", str(outside), "link.png", "folder/secret.png", "x/../../secret.png"):
        with pytest.raises(WorkloadError, match="is outside"):
            images.image_path(home, name)
    with pytest.raises(WorkloadError, match="there is no image 'b.png'"):
        images.image_path(home, "b.png")


def test_a_file_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(WorkloadError, match="not a readable PNG or JPEG image"):
        images.image_path(tmp_path, "a.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.gif")
    with pytest.raises(WorkloadError, match="not a readable PNG or JPEG image"):
        images.image_path(tmp_path, "a.gif")
    whole = picture(tmp_path / "b.png", 40, 40).read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WorkloadError, match="not a readable PNG or JPEG image"):
        images.decoded(tmp_path / "b.png", 3)


def test_an_image_that_claims_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGEST", 15)
    with pytest.raises(WorkloadError, match="4 x 4 pixels; at most 15"):
        images.image_path(tmp_path, picture(tmp_path / "a.png", 4, 4).name)
