"""Models by the name that they have on the Hugging Face hub, where its cache on this machine holds them; nothing is fetched."""

from __future__ import annotations

import re
from pathlib import Path

from thrifty.errors import MissingExtra, WorkloadError
from thrifty.workloads.huggingface.directory import CONFIG
from thrifty.workloads.huggingface.models import EXTRA

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SNAPSHOTS, MODELS, SLASH = "snapshots", "models--", "--"
"""The cache holds "org/name" as models--org--name/snapshots/COMMIT."""


def is_name(text: str) -> bool:
    """Whether a text has the shape of a model's name on the hub, and is no file's.

    >>> is_name("google-bert/bert-base-uncased"), is_name("./google-bert"), is_name("examples/rows.py")
    (True, False, False)
    """
    return NAME.fullmatch(text) is not None and not text.endswith(".py")


def snapshot(name: str) -> Path:
    """The directory of a model in the cache, as it was fetched last.

    Args:
        name: "org/name".

    Raises:
        MissingExtra: huggingface_hub is not installed.
        WorkloadError: the cache does not hold it.
    """
    try:
        from huggingface_hub import constants, try_to_load_from_cache
    except ImportError as error:
        raise MissingExtra("huggingface_hub", EXTRA) from error
    try:
        found = try_to_load_from_cache(name, CONFIG)
    except ValueError as error:  # a name that the hub cannot have
        raise WorkloadError(f"there is no directory {name}, and it is not a Hub name either: {error}") from error
    if not isinstance(found, str):
        raise WorkloadError(f"there is no directory {name}, and the Hugging Face cache ({constants.HF_HUB_CACHE}) holds no model "
                            f"of that name. Thrifty downloads nothing: run `hf download {name}`, or give a local directory")
    return Path(found).parent


def name_of(directory: Path) -> str:
    """A model's name: the last part of the one on the hub, or its directory's own.

    >>> name_of(Path("/hub/models--org--tiny-bert/snapshots/0123")), name_of(Path("/models/tiny-bert"))
    ('tiny-bert', 'tiny-bert')
    """
    model = directory.parent.parent.name
    if directory.parent.name == SNAPSHOTS and model.startswith(MODELS):
        return model.rpartition(SLASH)[2]
    return directory.name
