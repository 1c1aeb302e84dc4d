"""How an exploration ended, in words and as JSON."""

import json

from thrifty.search.ending import Ending, Waiting


def test_all_of_it_is_said():
    skipped = tuple(Waiting(f"train(steps={n})", 50.0, "about 50 s, up to 60, and 20 s were left") for n in range(5))
    ending = Ending("budget", "the cheapest recipe takes about 20 s, and 9 s were left", 60.0, 52.3, skipped,
                    (Waiting("prune", 12.0),))
    assert ending.says.startswith("stopped after 52 of 60 s: the cheapest recipe takes about 20 s, and 9 s were left; skipped: ")
    assert "train(steps=2) (about 50 s" in ending.says and "and 2 more" in ending.says
    assert ending.says.endswith("next would come: prune (about 12 s)")


def test_what_there_is_not_is_not_said():
    assert Ending("nothing left", "every recipe of the space has run", 60, 10).says == (
        "stopped after 10 of 60 s: every recipe of the space has run")


def test_it_is_json():
    ending = Ending("budget", "why", 60.0, 52.0, (Waiting("a", 1.0, "b"),))
    values = json.loads(json.dumps(ending.to_json()))
    assert values["skipped"] == [{"recipe": "a", "seconds": 1.0, "reason": "b"}] and values["says"] == ending.says
