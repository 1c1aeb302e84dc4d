"""Images from files to normalized pixels, as the directory's preprocessor_config.json says; by torch alone."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from thrifty.errors import MissingExtra, WorkloadError
from thrifty.workloads.huggingface.directory import IMAGES, Directory
from thrifty.workloads.huggingface.models import EXTRA

RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, and torch's names for what gives the same, bytes rounded apart by one."""
LARGEST = 100 * 10**6
"""Pixels; a file of a few kilobytes can claim billions."""


@final
@dataclass(frozen=True)
class Pixels:
    """How an image becomes a tensor: resized, cut to its middle, scaled, normalized; fields as the library names them.

    Args:
        size: (height, width) that images are resized to; (edge,) for the shorter edge alone; () for not at all.
        crop: (height, width) of the middle that is kept; () for all.
        resample: of `RESAMPLE`.
        scale: factor of the bytes.
        mean, std: of each channel, after scaling.
    """

    size: tuple[int, ...]
    crop: tuple[int, ...]
    resample: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Tensor) -> Tensor:
        """[channels, height, width] uint8 -> the same in float32, of the served size."""
        if self.size:
            height, width = self._resized(*image.shape[1:])
            image = F.interpolate(image[None], (height, width), mode=self.resample, antialias=True)[0]
        if self.crop:
            high, wide = self.crop
            top, left = (image.shape[1] - high) // 2, (image.shape[2] - wide) // 2
            image = F.pad(image, (max(0, -left), max(0, wide - image.shape[2] + left),
                                  max(0, -top), max(0, high - image.shape[1] + top)))
            image = image[:, max(0, top):, max(0, left):][:, :high, :wide]
        mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (self.mean, self.std))
        return (image.float() * self.scale - mean) / std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if len(self.size) == 2:
            return self.size[0], self.size[1]
        (edge,) = self.size
        return (edge, edge * width // height) if height <= width else (edge * height // width, edge)


def pixels_of(directory: Directory) -> Pixels:
    """Read a directory's preprocessor_config.json.

    Raises:
        WorkloadError: it is missing, or asks for what is not supported.
    """
    path = directory.needs(IMAGES, "save the image processor that the model was trained with: "
                           "processor.save_pretrained(...)")
    given = directory.json(IMAGES)
    channels = int(directory.config.get("num_channels", 3))
    if channels not in (1, 3):
        raise WorkloadError(f"{directory.path} takes images of {channels} channels; 1 and 3 are supported")
    resample = given.get("resample", 2)
    if given.get("do_resize", True) and resample not in RESAMPLE:
        raise WorkloadError(f"{path}: resample {resample} is not supported; use "
                            + ", ".join(f"{number} ({name})" for number, name in RESAMPLE.items()))
    size = _size(path, given.get("size", {})) if given.get("do_resize", True) else ()
    crop = _size(path, given.get("crop_size", {})) if given.get("do_center_crop", False) else ()
    if len(size) != 2 and len(crop) != 2:
        raise WorkloadError(f"{path} leaves images of different sizes, but all requests must have one size: give size a height "
                            "and a width, or a crop_size")
    normalized = given.get("do_normalize", True)
    return Pixels(
        size, crop * 2 if len(crop) == 1 else crop, RESAMPLE.get(resample, "bilinear"),
        float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 1.0,
        *(_channels(path, name, given.get(name, default) if normalized else default, channels)
          for name, default in (("image_mean", 0.0), ("image_std", 1.0))),
    )


def _size(path: Path, given: Any) -> tuple[int, ...]:
    match given:
        case int():
            return (given, given)
        case {"height": int(height), "width": int(width)}:
            return (height, width)
        case {"shortest_edge": int(edge)} if "longest_edge" not in given:
            return (edge,)
    raise WorkloadError(f"{path}: a size of {given!r} is not supported; give a height and a width, or a shortest_edge")


def _channels(path: Path, name: str, given: Any, channels: int) -> tuple[float, ...]:
    values = tuple(float(x) for x in given) if isinstance(given, list) else (float(given),) * channels
    if len(values) != channels or (name == "image_std" and min(values) <= 0):
        raise WorkloadError(f"{path}: {name} must be {channels} numbers{' above 0' if name == 'image_std' else ''} "
                            f"but is {given!r}")
    return values


def image_path(folder: Path, name: str) -> Path:
    """Where an image is, below the data file's folder.

    Raises:
        WorkloadError: it is elsewhere (absolute, by "..", by a link), not there, or no PNG or JPEG image.
    """
    path, home = folder / name, folder.resolve()
    if Path(name).is_absolute() or ".." in Path(name).parts or not path.resolve().is_relative_to(home):
        raise WorkloadError(f"the image {name!r} is outside {folder}; images must be beside or below the data file")
    if not path.is_file():
        raise WorkloadError(f"there is no image {name!r} in {folder}")
    with _opened(path) as image:  # reads no more than the header
        if image.width * image.height > LARGEST:
            raise WorkloadError(f"the image {name!r} has {image.width} x {image.height} pixels; at most {LARGEST:,} are read")
    return path


def decoded(path: Path, channels: int) -> Tensor:
    """[channels, height, width] uint8: gray for one channel, RGB for three.

    Raises:
        WorkloadError: the file is damaged.
    """
    with _opened(path) as image:
        array = np.array(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(array).reshape(*array.shape[:2], channels).permute(2, 0, 1).contiguous()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", EXTRA) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have a bound of our own
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise WorkloadError(f"{path} is not a readable PNG or JPEG image: {error}") from error


@final
class Images(Dataset[tuple[Tensor, int]]):
    """Images as (pixels [channels, height, width] float32, label), decoded each time they are asked for.

    Args:
        paths: of the files.
        labels: one each.
        pixels: how they become tensors.
    """

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], pixels: Pixels) -> None:
        self.paths, self.labels, self.pixels = paths, labels, pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels(decoded(self.paths[index], len(self.pixels.mean))), self.labels[index]
