"""A study as one HTML file that works offline: nothing is loaded, and nothing that the study says is ever executed."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from thrifty.errors import ThriftyError
from thrifty.measure.environment import VERSION
from thrifty.report.comparison import comparison
from thrifty.report.document import finite, study_json
from thrifty.studies.findings import Findings
from thrifty.studies.places import ARTIFACTS

SCRIPTS = ("island", "words", "figures", "study", "choose", "dom", "charts", "compare", "scatter", "parallel", "answer",
           "history", "table", "spent", "importance", "detail", "main")
"""The page's own script, in the order in which one part uses another."""

STYLES = ("base", "parts", "narrow")

PLOTLY = "plotly-basic.min.js"
"""plotly.js-basic-dist-min 4.1.1 of npm, as it is (MIT): a quarter of the whole library, with all that the page draws."""


class PageError(ThriftyError):
    """A page that cannot be written where or as it was asked for."""


def write_page(store_path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *,
               requests_per_day: float | None = None, compare: str | os.PathLike[str] | None = None) -> Path:
    """Write a study's page.

    Args:
        store_path: the study's directory.
        out: the file; ``report.html`` in the study's directory where None.
        requests_per_day: how many the model will serve, above 0: tells break-even in days. The page can change it.
        compare: the directory of another study, shown beside it.

    Returns:
        the file's path.

    Raises:
        ThriftyError: there is no study, or the file cannot be there.
    """
    if requests_per_day is not None and not (math.isfinite(requests_per_day) and requests_per_day > 0):
        raise PageError(f"requests per day must be a number above 0 but is {requests_per_day}")
    store_path = Path(store_path)
    path = store_path / "report.html" if out is None else Path(out)
    if path.is_dir():
        raise PageError(f"{path} is a directory; name a file, such as {path / 'report.html'}")
    if not path.parent.is_dir() and out is not None:
        raise PageError(f"there is no directory {path.parent}; create it, or choose another --out")
    found = Findings.read(store_path)
    home = store_path.resolve()
    other = None if compare is None else comparison(found, Findings.read(compare), Path(compare).resolve().name)
    text = page(relative(study_json(found), home), store=home.name, requests_per_day=requests_per_day, compared=other)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)  # a reader never sees half a page
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def relative(document: Mapping[str, Any], study: Path) -> dict[str, Any]:
    """A document whose paths are seen from the directory that holds the study: a page says nothing of whose machine it was.

    >>> found = {"source": "/home/me/work/rows.py:workload", "trials": [
    ...     {"id": "ab12", "artifact": {"path": "/home/me/study-rows/artifacts/ab12"}}]}
    >>> made = relative(found, Path("/home/me/study-rows"))
    >>> made["source"], made["trials"][0]["artifact"]["path"]
    ('work/rows.py:workload', 'study-rows/artifacts/ab12')
    """
    def own(trial: Mapping[str, Any]) -> dict[str, Any]:
        artifact = trial["artifact"]
        if not artifact or Path(artifact["path"]).parts[-2:-1] != (ARTIFACTS,):
            return dict(trial)
        return {**trial, "artifact": {**artifact, "path": f"{study.name}/{ARTIFACTS}/{Path(artifact['path']).name}"}}

    source = document["source"]
    if source and os.path.isabs(source):
        source = os.path.relpath(source, study.parent)
    elif source:
        source = source.replace(f"{study.parent}{os.sep}", "")  # of a Hugging Face directory, with its data
    return {**document, "source": source, "trials": [own(trial) for trial in document["trials"]]}


def page(document: Mapping[str, Any], *, store: str = "study", requests_per_day: float | None = None,
         compared: Mapping[str, Any] | None = None) -> str:
    """Render a study's JSON document as one HTML page.

    Args:
        document: as `study_json` makes it.
        store: the study's directory, as the page's commands are to name it.
        requests_per_day: see `write_page`.
        compared: another study, as `thrifty.report.comparison` makes it.
    """
    plotly, script = asset(PLOTLY), own_script()
    options = {"store": store, "requests_per_day": requests_per_day, "compared": compared}
    parts = {
        "policy": policy(plotly, script),
        "version": VERSION,
        "title": text(f"{document['workload'] or 'An empty study'}: Thrifty report"),
        "sentence": text(document["answer"]["sentence"]),
        "style": "".join(asset(f"{name}.css") for name in STYLES),
        "document": island({"study": document, "options": options}),
        "plotly": plotly,
        "script": script,
    }
    # In one pass: what stands in a part is never taken for a place.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], asset("page.html"))


def policy(*scripts: str) -> str:
    """The content security policy: these scripts alone run, and nothing is loaded from anywhere.

    Styles may stand inline because plotly writes its own; images are those that it makes.
    """
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in scripts)
    return (f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
            "base-uri 'none'; form-action 'none'")


def island(value: Any) -> str:
    """JSON in ASCII that can stand in a script element: nothing in it ends the element or begins another.

    >>> island({"recipe": "</script><b>"})
    '{"recipe": "\\\\u003c/script\\\\u003e\\\\u003cb\\\\u003e"}'
    """
    escaped = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
    return re.sub("[<>&]", lambda c: escaped[c[0]], json.dumps(finite(value), allow_nan=False))


def text(value: str) -> str:
    """A text as HTML, also one that UTF-8 has no bytes for."""
    return html.escape(value.encode("utf-8", "backslashreplace").decode())


def asset(name: str) -> str:
    return (resources.files("thrifty.report") / "assets" / name).read_text(encoding="utf-8")


def own_script() -> str:
    """One function that holds all: it leaves no name behind."""
    return '(() => {\n"use strict";\n' + "\n".join(asset(f"{name}.js") for name in SCRIPTS) + "})();\n"
