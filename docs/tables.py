"""Writes the lists of methods in README.md and docs/index.md, from the registry and the heading of each method's page.

    python docs/tables.py            # rewrites them
    python docs/tables.py --check    # names those that are stale; the exit code is then 1
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path

from thrifty import ThriftyError
from thrifty.recipes.card import FAMILIES
from thrifty.recipes.registry import BUILT_IN, method_class

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- methods: begin -->", "<!-- methods: end -->"
WIDTH = 120


def summary(name: str, root: Path) -> str:
    """What a method's page says of it in its heading: ``# `name`: summary``.

    Raises:
        ThriftyError: there is no page, or its first line is no such heading.
    """
    page = root / "docs" / "methods" / f"{name}.md"
    if not page.is_file():
        raise ThriftyError(f"{name} is registered and has no page: write {page}")
    first = page.read_text().partition("\n")[0]
    found = re.fullmatch(rf"# `(?:{name}|compile\({name}\))`: (.+)", first)
    if found is None:
        raise ThriftyError(f"{page} begins with {first!r}: its heading is to be '# `{name}`: what it is, in a few words'")
    return found[1]


def readme_table(root: Path) -> str:
    """A row a method, in the registry's order."""
    rows = [f"| `{name}` | {method_class(name).card.family} | [{summary(name, root)}](docs/methods/{name}.md) |"
            for name in BUILT_IN]
    return "\n".join(["| method | family | card |", "| --- | --- | --- |", *rows])


def index_list(root: Path) -> str:
    """An item a family, in the families' order; indented, since the list is part of another."""
    items = []
    for family in FAMILIES:
        links = [f"[{name}](methods/{name}.md)" for name in BUILT_IN if method_class(name).card.family == family]
        if links:
            items.append(textwrap.fill(f"- {family}: {', '.join(links)}", WIDTH, initial_indent="  ", subsequent_indent="    ",
                                       break_long_words=False, break_on_hyphens=False))
    return "\n".join(items)


LISTS = {"README.md": readme_table, "docs/index.md": index_list}


def rewritten(path: str, root: Path) -> str:
    """A page's text with a fresh list between its markers.

    Raises:
        ThriftyError: the markers are not there, once each.
    """
    text = (root / path).read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ThriftyError(f"{path} needs one line {BEGIN} and one line {END}, which the list stands between")
    fresh = LISTS[path](root)
    return re.sub(rf"(?<={BEGIN}\n).*?(?=^ *{END})", lambda _: f"{fresh}\n", text, flags=re.MULTILINE | re.DOTALL)


def stale(root: Path = ROOT) -> dict[str, str]:
    """The pages whose list is not what the registry and the methods' pages say, each with the text that it should have."""
    fresh = {path: rewritten(path, root) for path in LISTS}
    return {path: text for path, text in fresh.items() if text != (root / path).read_text()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the lists of methods in README.md and docs/index.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a list is stale")
    check = parser.parse_args().check
    try:
        found = stale()
    except ThriftyError as error:
        print(error, file=sys.stderr)
        return 1
    for path, text in found.items():
        if check:
            print(f"{path} is stale: run python docs/tables.py")
        else:
            (ROOT / path).write_text(text)
            print(f"wrote {path}")
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
