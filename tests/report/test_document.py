"""The one document that --json and the page share."""

import json
import math
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tests.trials import MACHINE, TARGET, failed, keep, ledger_of, many, trial

from thrifty.report.document import environments, finite, study_json
from thrifty.studies.findings import Findings
from thrifty.studies.ledger import Charge, Ledger
from thrifty.studies.store import Failure

ROOT = Path(__file__).resolve().parents[2]


def test_every_part_of_a_study():
    trials = [trial("aaa", speed=3.0), trial("bbb", speed=2.0, drop=0.05), failed("ccc", "prune(ratio=0.9)", "nan")]
    spent = Ledger((Charge("training", "train()", 60.0, 1e12), Charge("timing", "x", 20.0)), price=3.6)
    found = study_json(Findings.of(trials, spent, [Failure("ccc", "prune(ratio=0.9)", "nan", "now")]))
    assert json.loads(json.dumps(found)) == json.loads(json.dumps({
        "answer": {"sentence": "3.00x faster at no measurable loss; its payback was not measured.", "trial": "aaa",
                   "bars": {"max_drop": "0.01", "max_bytes": None, "max_latency": None, "minimize": "latency"}},
        "history": [], "importance": None,
        "workload": "digits", "source": None, "doubt": None, "target": TARGET,
        "environments": {next(iter(found["environments"])): {"values": MACHINE, "trials": ["aaa", "bbb", "ccc"]}},
        "trials": [each.to_json() | {"tags": [], "note": ""} for each in trials],
        "frontier": ["aaa"], "objectives": ["quality", "training", "inference"],
        "standings": [{"id": "aaa", "status": "front", "by": None}, {"id": "bbb", "status": "dominated", "by": "aaa"}],
        "not_ranked": [{"id": "ccc", "reason": "failed: nan"}],
        "recommended": None, "nearest": None, "bars": None, "keep": None, "ended": None,
        "as_it_is": {"bytes": None, "seconds": None},
        "failures": [{"trial": "ccc", "recipe": "prune(ratio=0.9)", "reason": "nan", "at": "now"}],
        "spent": {"seconds": 80.0, "flops": 1e12, "joules": None, "dollars": 0.08, "charges": spent.to_json()},
    }))


def test_what_a_search_chose():
    bars = {"max_drop": "0.5", "max_bytes": None, "max_latency": None, "minimize": "latency"}
    found = study_json(Findings.of([trial("aaa")], asked=bars))
    assert (found["recommended"], found["nearest"], found["bars"]) == ("aaa", "aaa", bars)
    slow = study_json(Findings.of([trial("aaa", speed=0.5)], asked=bars))
    assert (slow["recommended"], slow["nearest"]) == (None, "aaa") and "0.50x" in slow["keep"]
    missed = study_json(Findings.of([trial("aaa")], asked={"max_bytes": 1}))
    assert (missed["recommended"], missed["nearest"]) == (None, "aaa")


def test_an_empty_study():
    found = study_json(Findings.of([]))
    assert found["workload"] is None and found["target"] is None
    assert found["trials"] == found["frontier"] == found["standings"] == [] and found["environments"] == {}


def test_machines_are_told_apart():
    other = {**MACHINE, "cpu": "Another"}
    found = environments([trial("a"), trial("b", environment=other), trial("c"), trial("d", environment={})])
    assert [(e["values"], e["trials"]) for e in found.values()] == [(MACHINE, ["a", "c"]), (other, ["b"]), ({}, ["d"])]
    assert found == environments([trial("a", environment=dict(reversed(MACHINE.items()))), trial("b", environment=other),
                                  trial("c"), trial("d", environment={})])


def test_the_front_and_the_standings_agree():
    trials = many(60)
    found = study_json(Findings.of(trials, ledger_of(trials)))
    standings = found["standings"]
    assert found["frontier"] == [s["id"] for s in standings if s["status"] == "front"] != []
    assert {s["id"] for s in standings} | {x["id"] for x in found["not_ranked"]} == {t["id"] for t in found["trials"]}


values = st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
    st.text(), inner), max_leaves=20)


@given(values)
def test_json_has_only_finite_numbers(value):
    assert json.loads(json.dumps(finite(value), allow_nan=False)) == finite(value)


@given(st.floats())
def test_finite_numbers_stay(value):
    assert finite((value,)) == [value if math.isfinite(value) else None]


def test_every_field_is_documented():
    page = (ROOT / "docs" / "reference" / "json.md").read_text()
    section = page[page.index("## `thrifty explore`, `thrifty sweep`, `thrifty show`"):page.index("## `thrifty report`")]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == list(study_json(Findings.of([])))


def test_thrifty_show_prints_it(tmp_path, monkeypatch, capsys):
    from thrifty.cli.studies import show

    monkeypatch.chdir(tmp_path)
    trials = [trial("aaa", speed=3.0), trial("bbb", speed=2.0, drop=0.05)]
    show(keep(Path("study"), trials), as_json=True)
    spent = Ledger(tuple(charge for each in trials for charge in each.ledger.charges))
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(study_json(Findings.of(trials, spent))))
