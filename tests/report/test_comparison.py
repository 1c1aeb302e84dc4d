"""Two studies side by side."""

import json

import pytest
from tests.trials import failed, keep, ledger_of, trial

from thrifty.report.comparison import comparison, difference
from thrifty.report.page import write_page
from thrifty.studies.findings import Findings
from thrifty.studies.trial import Ratio


def test_recipes_that_both_have():
    mine = [trial("aaa", "train()", speed=3.0), trial("bbb", "prune(ratio=0.5)"), trial("ccc", "quantize(w8a8)", speed=9.0)]
    its = [trial("ddd", "train()", speed=2.0), trial("eee", "prune(ratio=0.5)", seed=1), failed("fff", "quantize(w8a8)", "nan")]
    found = comparison(Findings.of(mine), Findings.of(its, ledger_of(its)), "study-before")
    (row,) = found["rows"]  # one seed apart is another run, and a failed one has no figures
    assert (row["id"], row["other_id"], row["recipe"], row["speedup"]["says"]) == ("aaa", "ddd", "train()", "faster here")
    assert row["speedup"]["this"]["value"] == 3.0 and row["drop"]["other"]["value"] == 0.0
    assert found["answer"]["trial"] == "ddd" and found["trials"] == 3 and found["seconds"] == ledger_of(its).seconds
    assert [one["id"] for one in found["front"]] == ["ddd", "eee"] and found["doubts"] == [] and not found["apart"]
    json.dumps(found)


@pytest.mark.parametrize("one, two, says", [
    (Ratio(2, 1.9, 2.1), Ratio(1.5, 1.4, 1.6), "faster here"), (Ratio(1.5, 1.4, 1.6), Ratio(2, 1.9, 2.1), "slower here"),
    (Ratio(2, 1.5, 2.5), Ratio(1.7, 1.4, 2.0), "no significant difference"), (Ratio(9), Ratio(1, 0.9, 1.1), "no interval"),
    (None, Ratio(1, 0.9, 1.1), "no interval"),
])
def test_what_two_speeds_say(one, two, says):
    assert difference(one, two) == says


def test_what_makes_studies_incomparable():
    here = Findings.of([trial("aaa")])
    said = lambda **fields: comparison(here, Findings.of([trial("bbb", **fields)]), "other")
    assert said(workload_hash="cd34" * 16)["doubts"] == ["its workload's source or data differ"]
    assert said(workload="rows", workload_hash="cd34" * 16)["apart"] and not said(workload_hash="cd34" * 16)["apart"]
    assert said(environment={"cpu": "Another"})["doubts"] == ["it was measured on Another"]
    assert "device cuda" in said(target={"device": "cuda", "threads": 1})["doubts"][0]


def test_the_page_holds_both(tmp_path):
    mine, its = keep(tmp_path / "study", [trial("aaa")]), keep(tmp_path / "before", [trial("aaa", speed=1.5)])
    text = write_page(mine, compare=its).read_text()
    assert '"study": "before"' in text and '"says": "faster here"' in text and str(tmp_path) not in text
