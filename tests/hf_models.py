"""Tiny random models of transformers in directories, with tokenizers, image processors and data of their own."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thrifty.workloads.huggingface.models import quiet

GOOD, BAD = ("good", "fine", "great", "warm"), ("bad", "poor", "cold", "grim")
NEUTRAL = ("the", "a", "film", "book", "meal", "was", "is", "very", "and", "one", "two", "of", "in", "day", "night")


def sentence(seed: int, label: int | None = None, words: int = 6) -> str:
    """Words that say their label; without one, of both."""
    draw = random.Random(seed)
    pool = NEUTRAL if label is not None else NEUTRAL + GOOD + BAD
    said = [draw.choice(pool) for _ in range(words)]
    if label is not None:
        said[draw.randrange(words)] = draw.choice(GOOD if label else BAD)
    return f"{' '.join(said)} {seed}"


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def reviews(path: Path, n: int = 120) -> Path:
    return write_lines(path, ({"text": sentence(i, i % 2), "label": ("negative", "positive")[i % 2]} for i in range(n)))


def prose(path: Path, n: int = 60) -> Path:
    return write_lines(path, ({"text": sentence(i, words=4 + i % 20), "file": f"f{i // 2}"} for i in range(n)))


def pairs(path: Path, n: int = 80) -> Path:
    return write_lines(path, ({"query": sentence(i, words=3), "document": sentence(i, words=9)} for i in range(n)))


def pictures(path: Path, n: int = 60) -> Path:
    """Dark and bright PNG and JPEG images of several sizes below the data file."""
    from PIL import Image

    folder, draw, rows = path.parent / "images", np.random.default_rng(0), []
    folder.mkdir(exist_ok=True)
    for i in range(n):
        size = (20 + i % 5, 24 + i % 3, 3)
        array = (draw.integers(0, 100, size) + 150 * (i % 2)).astype(np.uint8)
        name = f"{i:03}.{('png', 'jpg')[i % 2 and i % 4 == 1]}"
        Image.fromarray(array).save(folder / name)
        rows.append({"image": f"images/{name}", "label": i % 2})
    return write_lines(path, rows)


# -- models -----------------------------------------------------------------------------------------------------


def word_pieces(path: Path) -> int:
    """A BERT-like tokenizer; returns its vocabulary's size."""
    import tokenizers as t

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *NEUTRAL, *GOOD, *BAD, *"0123456789", *(f"##{i}" for i in range(10))]
    tokenizer = t.Tokenizer(t.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = t.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = t.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "model_max_length": 64}))
    return len(words)


def byte_pairs(path: Path, start: str = "<|endoftext|>") -> int:
    """A GPT-2-like byte-level tokenizer; returns its vocabulary's size."""
    import tokenizers as t

    tokenizer = t.Tokenizer(t.models.BPE())
    tokenizer.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = t.decoders.ByteLevel()
    tokenizer.train_from_iterator([sentence(i) for i in range(50)], t.trainers.BpeTrainer(
        vocab_size=300, special_tokens=[start], initial_alphabet=sorted(t.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False))
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": start}))
    return int(tokenizer.get_vocab_size())


def save(model: Any, path: Path, **options: Any) -> Path:
    with quiet():
        model.save_pretrained(path, **options)
    return path


def bert(path: Path, kind: str = "BertForSequenceClassification", **config: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    with quiet() as transformers:
        torch.manual_seed(0)
        made = transformers.BertConfig(
            vocab_size=word_pieces(path), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=64,
            **{"initializer_range": 0.2, "id2label": {0: "negative", 1: "positive"},
               "label2id": {"negative": 0, "positive": 1}, **config})
        return save(getattr(transformers, kind)(made), path)


def llama(path: Path, kind: str = "LlamaForCausalLM", config: Mapping[str, Any] | None = None, **options: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    with quiet() as transformers:
        torch.manual_seed(0)
        made = transformers.LlamaConfig(
            vocab_size=byte_pairs(path, "<s>"), num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=64, bos_token_id=0, eos_token_id=0, initializer_range=0.2,
            **{"hidden_size": 32, "intermediate_size": 64, **(config or {})})
        return save(getattr(transformers, kind)(made), path, **options)


def gpt2(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    with quiet() as transformers:
        torch.manual_seed(0)
        made = transformers.GPT2Config(
            vocab_size=byte_pairs(path), n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
        return save(transformers.GPT2LMHeadModel(made), path)


def vit(path: Path, **processor: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    with quiet() as transformers:
        torch.manual_seed(0)
        made = transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8,
            initializer_range=0.2, id2label={0: "dark", 1: "bright"}, label2id={"dark": 0, "bright": 1})
        (path / "preprocessor_config.json").write_text(json.dumps({
            "do_resize": True, "size": {"height": 16, "width": 16}, "resample": 2, "do_rescale": True,
            "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3],
            "image_std": [0.5, 0.4, 0.3], **processor}))
        return save(transformers.ViTForImageClassification(made), path)


def mixtral(path: Path, **changes: Any) -> Path:
    """Two layers of four experts each, of which a token passes through two."""
    return _mixture(path, "Mixtral", {"num_hidden_layers": 2, "num_local_experts": 4, **changes})


def jamba(path: Path, **changes: Any) -> Path:
    """Four layers: Mamba, attention with experts, Mamba, Mamba with experts."""
    return _mixture(path, "Jamba", {
        "num_hidden_layers": 4, "num_experts": 4, "attn_layer_period": 4, "attn_layer_offset": 1, "mamba_d_state": 8,
        "mamba_dt_rank": 4, "pad_token_id": 0, **changes})


def _mixture(path: Path, name: str, config: Mapping[str, Any]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    with quiet() as transformers:
        torch.manual_seed(0)
        made = getattr(transformers, f"{name}Config")(**{
            "vocab_size": byte_pairs(path, "<s>"), "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32,
            "intermediate_size": 64, "num_experts_per_tok": 2, "max_position_embeddings": 64, "bos_token_id": 0,
            "eos_token_id": 0, "initializer_range": 0.2, **config})
        return save(getattr(transformers, f"{name}ForCausalLM")(made), path)
