"""Builds the site into ``site/``: the same Markdown, an index of it, and the reference of the Python API from its docstrings.

    python docs/build.py

The pages are copied beside one another as they lie in the tree, so that every link that works in the tree works on the site.
Whatever the builder warns of (a link or a heading that is not there, a docstring that names no argument) ends the build.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
STAGE, SITE = ROOT / "build" / "site", ROOT / "site"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "docs", "benchmarks", "examples")
KEPT = {".md", ".svg", ".png", ".js", ".yaml", ".sbatch", ".py", ""}
"""Kinds of files that pages are made of, or link to."""


def staged() -> Path:
    """A fresh folder of the pages and of what they link to."""
    shutil.rmtree(STAGE, ignore_errors=True)
    pages = STAGE / "pages"
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PAGES],
                            cwd=ROOT, capture_output=True, check=False).stdout.decode().split("\0")
    everything = [path for name in PAGES for path in (ROOT / name, *(ROOT / name).rglob("*"))]  # where there is no git
    found = [ROOT / name for name in listed if name] or everything
    for path in found:
        if path.is_file() and path.suffix in KEPT:
            copy = pages / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".md":
                copy.write_text(for_the_site(path.read_text()))
            else:
                shutil.copy(path, copy)
    api = pages / "docs" / "reference" / "python.md"
    api.write_text(with_docstrings(api.read_text()))
    return pages


def for_the_site(text: str) -> str:
    """Blocks that are a file say so in a title; GitHub ignores what stands there."""
    return re.sub(r"^```(\w+) file=(\S+)$", r'```\1 title="\2"', text, flags=re.MULTILINE)


def with_docstrings(text: str) -> str:
    """Below each list of names, each name's signature and docstring."""
    lines: list[str] = []
    names: list[str] = []
    for line in [*text.splitlines(), "## "]:
        if line.startswith("## "):
            lines += [f"\n::: thrifty.{name}\n" for name in names]
            names = []
        elif found := re.match(r"\| `(\w+)` \|", line):
            names.append(found[1])
            line = line.replace(f"`{found[1]}`", f"[`{found[1]}`][thrifty.{found[1]}]", 1)
        lines.append(line)
    return "\n".join(lines[:-1]) + "\n"


def title(page: Path) -> str:
    """A page's heading, without marks."""
    return page.read_text().partition("\n")[0].removeprefix("# ").replace("`", "")


def listing(folder: Path, root: Path) -> list[Any]:
    """The pages of a folder by their headings."""
    entries = [{title(page): str(page.relative_to(root))} for page in folder.glob("*.md")]
    return sorted(entries, key=lambda entry: next(iter(entry)).lower())


def navigation(pages: Path) -> list[Any]:
    """Nobody lists pages: a page in a folder is in the navigation, under its heading."""
    docs = pages / "docs"
    nav: list[Any] = [{"Thrifty": "README.md"}, {"Tutorial": "docs/tutorial.md"}]
    folders = {"How-to guides": "how-to", "Concepts": "concepts", "Reference": "reference", "Methods": "methods"}
    for name, folder in folders.items():
        nav.append({name: listing(docs / folder, pages)})
    nav.append({"Benchmarks": listing(pages / "benchmarks", pages)})
    examples = [{title(page): str(page.relative_to(pages))} for page in sorted((pages / "examples").rglob("*.md"))]
    nav.append({"Project": [{"All pages": "docs/index.md"}, {"Contributing": "CONTRIBUTING.md"}, {"Changelog": "CHANGELOG.md"},
                            *examples]})
    return nav


def configuration(pages: Path) -> dict[str, Any]:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    config |= {"docs_dir": pages.name, "site_dir": "site", "nav": navigation(pages)}
    (api,) = [plugin["mkdocstrings"] for plugin in config["plugins"] if "mkdocstrings" in plugin]
    python = api["handlers"]["python"]
    python["paths"] = [str(ROOT / "src")]
    python["options"]["extensions"] = [str(ROOT / name) for name in python["options"]["extensions"]]
    return dict(config)


def main() -> int:
    pages = staged()
    file = STAGE / "mkdocs.yml"
    file.write_text(yaml.safe_dump(configuration(pages), sort_keys=False))
    done = subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", str(file)],
                          cwd=STAGE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    print(said, end="")
    warned = [line for line in said.splitlines() if line.startswith(("griffe:", "mkdocstrings", "Warning"))]
    if warned:
        print(f"{len(warned)} warnings: no site was written", file=sys.stderr)
    if not done.returncode and not warned:
        shutil.rmtree(SITE, ignore_errors=True)
        shutil.move(STAGE / "site", SITE)
        print(f"the site is in {SITE.name}/: open {SITE.name}/index.html")
    return done.returncode or int(bool(warned))


if __name__ == "__main__":
    sys.exit(main())
