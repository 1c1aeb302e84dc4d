"""The page as text: one offline file in which nothing that the study says is markup."""

import base64
import hashlib
import html.parser
import json
import re
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trials import failed, keep, ledger_of, many, trial

from thrifty.cli import studies
from thrifty.errors import ThriftyError
from thrifty.report import page as pages
from thrifty.report.document import finite, study_json
from thrifty.report.page import PageError, island, page, relative, write_page
from thrifty.studies.findings import Findings
from thrifty.studies.store import Failure, Store
from thrifty.studies.trial import ArtifactFigure

HOSTILE = "</script><script>window.pwned=1</script><!--<script>{{plotly}}&\u2028\ud800"


class Outline(html.parser.HTMLParser):
    """Elements with their attributes, and the texts of scripts and the title."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.texts.append("")
        self.inside = True

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data

    def all(self, tag):
        return [(attributes, text) for (name, attributes), text in zip(self.elements, self.texts, strict=True) if name == tag]


def document(trials, failures=()):
    return study_json(Findings.of(trials, ledger_of(trials), failures))


@pytest.fixture(scope="module")
def outline():
    return Outline(page(document(many(20))))


def test_one_file_with_plotly_once(outline):
    data, plotly, own = outline.all("script")
    assert data[0] == {"type": "application/json", "id": "document"}
    assert plotly[0] == own[0] == {} and plotly[1] == pages.asset(pages.PLOTLY) and own[1] == pages.own_script()


def test_plotly_is_the_part_that_npm_has():
    """What is vendored is as it was published: a change to it would run on readers' machines."""
    text = pages.asset(pages.PLOTLY)
    assert hashlib.sha256(text.encode()).hexdigest() == "99784e3abfb07b142a15e521a439e6d9addceadb3f79553fd24c72774f0649ba"
    assert "plotly.js (basic - minified) v4.1.1" in text[:100] and "MIT license" in text[:300]


def test_ten_trials_take_less_than_a_megabyte_and_a_half():
    assert len(page(document(many(10))).encode()) < 1_500_000


def test_the_answer_comes_first_and_needs_no_script(outline):
    trials = many(20)
    (heading,) = outline.all("h1")
    assert heading[1] == study_json(Findings.of(trials))["answer"]["sentence"] and "x faster at" in heading[1]
    tags = [attributes.get("id") for _, attributes in outline.elements]
    assert tags.index("sentence") < tags.index("answer") < tags.index("table") < tags.index("failures") < tags.index("machine")


def test_paths_are_those_of_the_directory_that_holds_the_study(tmp_path):
    place = tmp_path / "a" / "study"
    store = keep(place, [trial("aaa", artifact=ArtifactFigure(str(place / "artifacts" / "aaa"), 9, True)), failed("b", "", "x")])
    with Store.open(store, "write") as opened:
        opened.note("source", f"{tmp_path}/code/rows.py:workload")
    text = write_page(store).read_text()
    study = json.loads(Outline(text).all("script")[0][1])["study"]
    assert study["trials"][0]["artifact"]["path"] == "study/artifacts/aaa" and study["source"] == "../code/rows.py:workload"
    assert str(tmp_path) not in text


def test_nothing_is_loaded(outline):
    loading = ("src", "srcset", "href", "action", "data", "poster", "background", "style", "formaction")
    found = [(tag, name, value) for tag, attributes in outline.elements for name, value in attributes.items()
             if name in loading or name.startswith("on")]
    assert found == [("link", "href", "data:,"), ("a", "href", "#main")]
    own = pages.own_script() + outline.all("style")[0][1] + pages.asset("page.html")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import|fetch\(|XMLHttpRequest|WebSocket|sendBeacon", own)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", own)


def test_the_policy_lets_these_scripts_run_and_no_other(outline):
    (policy,) = [a["content"] for a, _ in outline.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for _, text in outline.all("script")[1:]]
    assert rules == {"default-src": "'none'", "script-src": " ".join(f"'sha256-{x}'" for x in hashes),
                     "style-src": "'unsafe-inline'", "img-src": "data: blob:", "base-uri": "'none'", "form-action": "'none'"}
    first = [tag for tag, _ in outline.elements].index("script")
    assert first > [tag for tag, _ in outline.elements].index("meta")


def test_it_can_be_used_without_a_mouse_or_eyes(outline):
    tags = [tag for tag, _ in outline.elements]
    assert {"header", "main", "aside", "footer", "noscript"} <= set(tags) and tags.count("main") == tags.count("h1") == 1
    ids = [a["id"] for _, a in outline.elements if "id" in a]
    assert len(ids) == len(set(ids))
    named = {"detail-title"}  # made with what it names
    for _, attributes in outline.elements:
        for reference in ("aria-labelledby", "aria-describedby", "for"):
            assert set(attributes.get(reference, "").split()) <= set(ids) | named
    assert dict(outline.elements)["html"]["lang"] == "en"
    assert [a for _, a in outline.elements if a.get("aria-live") == "polite"]


def test_the_study_in_the_page_is_the_stores(tmp_path):
    trials = [*many(30), failed("zzz", HOSTILE, HOSTILE), trial("yyy", environment={"cpu": HOSTILE})]
    store = keep(tmp_path / "study", trials)
    path = write_page(store, tmp_path / "page.html", requests_per_day=1e5)
    (data, *_), title = Outline(path.read_text()).all("script"), Outline(path.read_text()).all("title")
    with Store.open(store) as opened:
        kept, spent, failures = opened.trials(), opened.spent(), opened.failures()
    found = json.loads(data[1])
    assert found["study"] == json.loads(json.dumps(finite(relative(study_json(Findings.of(kept, spent, failures)), store))))
    assert found["options"] == {"store": "study", "requests_per_day": 1e5, "compared": None}
    assert str(tmp_path) not in path.read_text()
    assert title[0][1] == "digits: Thrifty report"


def test_hostile_texts_stay_texts():
    trials = [trial("aaa", HOSTILE, workload=HOSTILE), failed("bbb", HOSTILE, HOSTILE, workload=HOSTILE)]
    made = page(document(trials, [Failure("bbb", HOSTILE, HOSTILE, "now")]), store=HOSTILE)
    made.encode()
    outline = Outline(made)
    assert len(outline.all("script")) == 3 and len(outline.all("title")) == 1
    assert not any("window.pwned" in text for _, text in outline.all("script")[1:])
    assert json.loads(outline.all("script")[0][1])["study"]["trials"][0]["recipe"] == HOSTILE


@given(st.recursive(st.text(st.characters()), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10))
@settings(max_examples=200)
def test_an_island_ends_nowhere(value):
    made = island(value)
    assert json.loads(made) == value and made.isascii() and not set("<>&") & set(made)


def test_scripts_can_stand_in_a_page():
    for script in (pages.asset(pages.PLOTLY), pages.own_script()):
        assert "</script" not in script.lower()
        assert "<!--" not in script or "<script" not in script.lower()


def test_every_asset_ships_and_is_used():
    names = {each.name for each in (resources.files("thrifty.report") / "assets").iterdir()}
    assert names == {"page.html", *(f"{name}.js" for name in pages.SCRIPTS), *(f"{name}.css" for name in pages.STYLES),
                     pages.PLOTLY}
    places = set(re.findall(r"\{\{(\w+)\}\}", pages.asset("page.html")))
    assert places == {"policy", "version", "title", "sentence", "style", "document", "plotly", "script"}


# -- writing it -----------------------------------------------------------------------------------------------------


def test_an_empty_study():
    assert "An empty study" in page(study_json(Findings.of([])))


def test_it_goes_into_the_study_by_default(tmp_path, capsys):
    store = keep(tmp_path / "study", [trial("aaa")])
    studies.report(store, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"page": str(store / "report.html")}
    studies.report(store, tmp_path / "other.html")
    assert capsys.readouterr().out == f"{tmp_path / 'other.html'}\n"
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]
    assert (tmp_path / "other.html").stat().st_mode & 0o444


@pytest.mark.parametrize("perday", [0, -1, float("nan"), float("inf")])
def test_requests_a_day_are_a_number_above_0(tmp_path, perday):
    with pytest.raises(PageError, match="above 0 but is"):
        write_page(tmp_path / "nothing", requests_per_day=perday)


def test_where_it_cannot_be(tmp_path):
    store = keep(tmp_path / "study", [trial("aaa")])
    with pytest.raises(PageError, match="is a directory; name a file"):
        write_page(store, tmp_path)
    with pytest.raises(PageError, match="there is no directory"):
        write_page(store, tmp_path / "none" / "page.html")
    with pytest.raises(ThriftyError, match="no study"):
        write_page(tmp_path / "none")
