"""Writes a small BERT with random weights, and texts to train and evaluate it: which package of Python's standard library does
a docstring belong to? Run it, and then: thrifty explore ./docs-bert --train train.jsonl --data judged.jsonl ..."""

import ast
import hashlib
import json
import sysconfig
from pathlib import Path

import tokenizers
import torch
import transformers

PACKAGES = ("asyncio", "email", "logging", "multiprocessing", "tkinter", "unittest", "xml")
LIBRARY = Path(sysconfig.get_paths()["stdlib"])


def summaries(package: str) -> list[str]:
    """First paragraphs of the docstrings of its modules, classes and functions; each once, and none of fewer than three words."""
    found = set()
    for path in sorted((LIBRARY / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(errors="replace"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(" ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split()))
    return sorted(text for text in found if len(text.split()) >= 3)


def is_judged(text: str) -> bool:
    """A third of the texts, by what they say: the others train."""
    return hashlib.sha256(text.encode()).digest()[0] % 3 == 0


def write(file: str, rows: list[dict[str, str]]) -> None:
    """One JSON object a line."""
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))


rows = [{"text": text, "label": package} for package in PACKAGES for text in summaries(package)]
train, judged = ([row for row in rows if is_judged(row["text"]) == told] for told in (False, True))
write("train.jsonl", train)
write("judged.jsonl", judged)

# A tokenizer of whole words and the parts that words are made of, learnt from the texts that train.
special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
tokenizer.train_from_iterator([row["text"] for row in train], tokenizers.trainers.WordPieceTrainer(
    vocab_size=3000, special_tokens=special, show_progress=False))
tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])

# The model, from its config alone. What you fine-tune is a directory like this one, with weights that somebody trained.
torch.manual_seed(0)
config = transformers.BertConfig(
    vocab_size=tokenizer.get_vocab_size(), hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512,
    max_position_embeddings=32, pad_token_id=0, id2label=dict(enumerate(PACKAGES)),
    label2id={package: number for number, package in enumerate(PACKAGES)})
transformers.BertForSequenceClassification(config).save_pretrained("docs-bert")
transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
    model_max_length=32).save_pretrained("docs-bert")
print(f"docs-bert: {len(train)} texts train, {len(judged)} judge")
