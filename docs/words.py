"""The words of the house: what pages, docstrings, help texts and errors do not say, and what they say instead.

    python docs/words.py            # names each place; the exit code is then 1

Spelling is codespell's. What this looks for no linter from PyPI knows: a term where the field has another one, a sentence that
begins with a dangling "Of", a word that an American engineer would have to look up.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVERYWHERE = {
    r"(?:^|[.!?:|]\s+|\|\s+)Of (?!course\b)": 'no sentence begins with "Of"',
    r"\b(?:its|the|other|these|every|each|a|no|your) bars?\b(?! chart)": "constraint",
    r"\bspeed-ups?\b": "speedup",
    r"\bkeys and values (?:are )?kept\b": "KV cache",
    r"\bgo(?:es)? on bit for bit\b": "resume bit for bit",
    r"\blearnt\b": "learned",
    r"\bkin\b": "variants, relatives",
    r"\b(?:whilst|amongst|thereof|whereof|wherefore|manyfold|heeds?|dearer|dearest)\b": "a plain word",
    r"\bgo(?:es)? on (?:from|where)\b": "resume, continue",
    r", say(?=[,.;:)])": "for example",
    r"\bmended\b": "fixed, corrected",
    r"\bas it is is\b": "the unmodified model is",
    r"\b(?:is|are) no evidence\b": "proves nothing",
    r"\ba method of training\b": "a training method",
    r"\bmost of all\b": "especially",
    r"\b(?:share[sd]?|dealt) out\b": "shard, split, distribute",
    r"\b(?:samples|requests|tokens|examples|dollars|bits|bytes) an? (?:second|hour|step|request|token|weight|byte)\b": "per",
    r"\b(?:one|an?) (?:file|folder|row|line|page|card|scale) an? (?:backend|group|kind|row|token|tensor|trial|task)\b": "per",
    r"\bunlabeled\b": "unlabelled, as the workload's field is called",
}
MESSAGES = {
    r"(?<!there )\b(?:is|are) no (?!longer\b|more\b|better\b)": "is not a",
    r"\banew\b": "again, start over",
    r"\bleave (?!it to\b)[\w.=()]+ out\b": "remove, omit",
    r"\b(?:is|are) there already\b": "already exists",
    r"\bwants\b": "needs",
    r"\bmend\b": "fix",
}
PAGES_ALONE = {
    r"\b[Bb]ars?\b(?<!error bars)(?<!Error bars)": "constraint",
    r"\banew\b": "again",
    r"\babove all\b": "especially",
    r"\bof yours\b": "your own",
    r"\bsees? to\b(?! it)": "handle, ensure",
    r"\bwas told\b": "a plain verb: asked, given, set",
}


def pages() -> list[Path]:
    found = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *found])


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """The lines of a page that are no code."""
    inside = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside and not line.startswith("    "):
            yield number, re.sub(r"`[^`]*`|\]\([^)]*\)|\b(?:error|colored) bars\b", "`", line)


def said(module: Path) -> Iterator[tuple[int, str]]:
    """The docstrings of a module, by lines, and the help texts in it."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            text = node.body[0].value  # type: ignore[attr-defined]
            for number, line in enumerate(text.value.splitlines(), text.lineno):
                yield number, re.sub(r"`[^`]*`", "`", line.strip())
        elif isinstance(node, ast.keyword) and node.arg == "help" and isinstance(node.value, ast.Constant):
            yield node.value.lineno, str(node.value.value)


def raised(module: Path) -> Iterator[tuple[int, str]]:
    """What a module's errors say, "{}" in the place of a figure."""
    for node in ast.walk(ast.parse(module.read_text())):
        for argument in node.exc.args if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) else []:
            yield argument.lineno, "".join(
                part.value if isinstance(part, ast.Constant) else "{}" for part in _parts(argument)
                if not isinstance(part, ast.Constant) or isinstance(part.value, str))


def _parts(node: ast.expr) -> Iterator[ast.expr]:
    """Texts and placeholders of an expression, in order."""
    if isinstance(node, ast.Constant | ast.FormattedValue):
        yield node
    elif isinstance(node, ast.JoinedStr):
        yield from node.values
    elif isinstance(node, ast.BinOp):
        yield from (*_parts(node.left), *_parts(node.right))
    elif isinstance(node, ast.IfExp):
        yield from (*_parts(node.body), *_parts(node.orelse))


def complaints(lines: Iterator[tuple[int, str]], rules: dict[str, str]) -> Iterator[str]:
    """A complaint for each place where a rule is broken.

    >>> list(complaints(iter([(3, "It meets the bars. Of these, one.")]), EVERYWHERE))
    ['3: "Of ": no sentence begins with "Of"', '3: "the bars": constraint']
    """
    for number, line in lines:
        for rule, instead in rules.items():
            for found in re.finditer(rule, line):
                yield f'{number}: "{found[0].lstrip(". :|")}": {instead}'


def main() -> int:
    broken = [f"{path.relative_to(ROOT)}:{told}" for path in pages()
              for told in complaints(prose(path), EVERYWHERE | PAGES_ALONE)]
    broken += [f"{path.relative_to(ROOT)}:{told}" for path in sorted((ROOT / "src").rglob("*.py"))
               for told in [*complaints(said(path), EVERYWHERE), *complaints(raised(path), EVERYWHERE | MESSAGES)]]
    print("\n".join(broken), end="\n" if broken else "")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
