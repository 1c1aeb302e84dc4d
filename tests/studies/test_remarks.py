"""Tags and notes on trials."""

import os
import time

import pytest

from tests.trials import HASH, TARGET, keep, trial
from thrifty.errors import ThriftyError
from thrifty.studies.clock import KILLED
from thrifty.studies.database import LOCK
from thrifty.studies.findings import Findings
from thrifty.studies.remarks import LONGEST, Remarks, remark
from thrifty.studies.store import Store, StoreError, Study


@pytest.fixture
def study(tmp_path):
    return keep(tmp_path / "study", [trial("ab12"), trial("ab34"), trial("cd56")])


def test_they_are_kept_and_taken_off(study):
    assert remark(study, "cd56", tags=["good", "fast", "good"]) == ("cd56", Remarks(("good", "fast")))
    assert remark(study, "c", note="as it should be\n\u202e") == ("cd56", Remarks(("good", "fast"), "as it should be\n\u202e"))
    assert remark(study, "cd56", tags=["new"], remove=["good"])[1].tags == ("fast", "new")
    remark(study, "ab12", tags=["other"])
    assert Findings.read(study).remarks == {"cd56": Remarks(("fast", "new"), "as it should be\n\u202e"),
                                            "ab12": Remarks(("other",))}
    remark(study, "ab12", remove=["other"])
    remark(study, "cd56", remove=["fast", "new"], note="")
    assert Findings.read(study).remarks == {}


def test_which_trial_is_meant(study):
    with pytest.raises(ThriftyError, match="no single trial 'ab'; 2 trials begin with it: ab12, ab34"):
        remark(study, "ab", tags=["x"])
    for wrong in ("zz", ""):
        with pytest.raises(ThriftyError, match="thrifty show lists them"):
            remark(study, wrong, tags=["x"])


@pytest.mark.parametrize("text", ["", "  ", "x" * (LONGEST + 1)])
def test_texts_that_say_nothing_or_too_much(study, text):
    with pytest.raises(ThriftyError, match=f"1 to {LONGEST} characters"):
        remark(study, "cd56", tags=[text])


def test_nothing_is_made_and_no_writer_disturbed(study, tmp_path):
    with pytest.raises(StoreError, match="there is no study"):
        remark(tmp_path / "none", "cd56", tags=["x"])
    assert not (tmp_path / "none").exists()
    with Store.open(study, "write"), pytest.raises(StoreError, match="is being written by process"):
        remark(study, "cd56", tags=["x"])


def test_what_a_killed_writer_had_in_hand_is_charged_first(study):
    """To tag takes the lock, whose time says how long that writer lived."""
    began = time.time() - 100
    with Store.open(study, "write", Study("digits", HASH, TARGET)) as store:
        store.note("session", {"began": began, "spent": store.spent().seconds})
    os.utime(study / LOCK, (began + 40, began + 40))
    remark(study, "cd56", tags=["x"])
    with Store.open(study) as store:
        (charge,) = [c for c in store.spent().charges if c.what == KILLED]
        assert charge.seconds == pytest.approx(40, abs=0.5) and store.noted("session") is None
