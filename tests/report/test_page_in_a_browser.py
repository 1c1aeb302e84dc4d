"""The page as its readers use it: in Chromium, from disk, by mouse and by keys."""

import csv
import json
import math
import random
import shlex

import pytest
from tests.trials import BASELINE_SECONDS, MACHINE, ledger_of, many, trial

from thrifty.report.document import study_json
from thrifty.report.words import scaled, seconds, times
from thrifty.studies.constraints import best
from thrifty.studies.findings import Findings
from thrifty.studies.frontier import frontier
from thrifty.studies.trial import Drop, Effect, QualityFigure

pytestmark = pytest.mark.timeout(120)


# -- what it says ---------------------------------------------------------------------------------------------------


def test_figures_are_the_studys(quiet):
    trials = many(40)
    quiet.open(trials)
    headings = [text.strip() for text in quiet.texts("#table thead th")]
    rows = quiet.js("return Object.fromEntries([...document.querySelectorAll('#table tbody tr')].map((r) => "
                    "[r.dataset.id, [...r.children].map((c) => c.textContent)]))")
    standings = {s.trial.id: s for s in frontier(trials).standings}
    names = {id: cells[0] for id, cells in rows.items()}
    assert set(rows) == {t.id for t in trials} and headings[:3] == ["trial", "speedup", "drop"] and headings[-1] == "recipe"
    for each in trials:
        if each.status == "failed":
            assert rows[each.id] == [names[each.id], f"failed: {each.recipe}{each.error}"]
            continue
        said = dict(zip(headings, rows[each.id], strict=True))
        speedup = each.inference.speedup
        ends = f" [{times(speedup.low)}×, {times(speedup.high)}×]" if speedup.low else ""
        assert said["speedup"] == f"{times(speedup.value)}×{ends}"
        assert said["training"] == seconds(each.training.seconds) and said["size"] == scaled(each.artifact.bytes, "B")
        assert said["drop"].startswith(f"{100 * each.quality.drop.value:.2f} pt [{100 * each.quality.drop.low:.2f} pt, ")
        standing = standings[each.id]
        wanted = {"front": "on the front", "tied": f"tied with {names.get(standing.by)}",
                  "dominated": f"dominated by {names.get(standing.by)}"}[standing.status]
        assert said["standing"] == wanted + (", screened" if speedup.low is None else "")


def test_marks_tell_standing_by_shape_and_screening_by_hollowness(quiet):
    trials = many(60)
    quiet.open(trials)
    shapes = {"front": "circle", "tied": "diamond", "dominated": "square"}
    wanted = {s.trial.id: shapes[s.status] + ("-open" if s.trial.inference.speedup.low is None else "")
              for s in frontier(trials).standings}
    assert {id: symbol for id, (_, _, symbol) in quiet.points().items()} == wanted
    assert len(set(wanted.values())) >= 5


def test_axes_can_be_picked(quiet):
    trials = [t for t in [*many(30), trial("eee", break_even_requests="never")] if t.status == "done"]
    quiet.open(trials)
    read = {
        "latency": lambda t: t.inference.latency_p50, "bytes": lambda t: t.artifact.bytes, "quality": lambda t: t.quality.value,
        "drop": lambda t: 100 * t.quality.drop.value, "training": lambda t: t.training.seconds,
        "throughput": lambda t: t.inference.throughput_per_second, "memory": lambda t: t.inference.peak_memory_bytes,
    }
    for x, y in (("latency", "drop"), ("bytes", "quality"), ("training", "throughput"), ("memory", "latency")):
        quiet.set("x", x)
        quiet.set("y", y)
        assert {id: (px, py) for id, (px, py, _) in quiet.points().items()} == {
            t.id: (pytest.approx(read[x](t)), pytest.approx(read[y](t))) for t in trials}
    quiet.set("x", "even")
    assert set(quiet.points()) == {t.id for t in trials if isinstance(t.break_even_requests, float)}
    never = sum(t.break_even_requests == "never" for t in trials)
    assert f"{never} never break even" in quiet.one("#scatter-text").text and never
    quiet.set("x", "latency")
    for on, kind in ((False, "linear"), (True, "log")):
        quiet.set("log-x", on)
        assert quiet.js("return document.getElementById('scatter')._fullLayout.xaxis.type") == kind
    quiet.set("x", "drop")
    assert not quiet.one("#log-x").is_enabled()
    quiet.set("x", "compiled")
    assert quiet.points() == {}


def test_the_reference_is_a_crosshair(quiet):
    quiet.open(many(20))
    where = "return document.getElementById('scatter').layout.shapes.map((s) => [s.x0, s.x1, s.y0, s.y1])"
    assert quiet.js(where) == [[1, 1, 0, 1], [0, 1, 0, 0]]
    quiet.set("x", "latency")
    quiet.set("y", "bytes")
    assert quiet.js(where) == [[BASELINE_SECONDS, BASELINE_SECONDS, 0, 1]]


def test_intervals_are_the_ratios(quiet):
    quiet.open([trial("aaa", speed=2.0, width=0.1), trial("bbb", speed=3.0, width=0, drop=0.02)])
    bars = dict(quiet.js("return document.getElementById('scatter').data.filter((t) => t.customdata).flatMap((t) => "
                         "t.customdata.map((id, i) => [id, [t.error_x.arrayminus[i], t.error_x.array[i]]]))"))
    assert bars == {"aaa": [pytest.approx(0.2), pytest.approx(0.2)], "bbb": [None, None]}
    quiet.set("x", "latency")
    (low, high), p50 = quiet.js("const t = document.getElementById('scatter').data.find((t) => t.customdata && "
                                "t.customdata[0] === 'aaa'); return [[t.error_x.arrayminus[0], t.error_x.array[0]], t.x[0]]")
    assert p50 + high == pytest.approx(BASELINE_SECONDS / 1.8) and p50 - low == pytest.approx(BASELINE_SECONDS / 2.2)


def test_machines_that_differ_are_not_comparable(quiet):
    other = {**MACHINE, "cpu": "Another CPU"}
    quiet.open([trial("aaa", speed=2.0), trial("bbb", speed=3.0, environment=other)])
    banner = quiet.one("#warning").text
    assert "Not comparable" in banner and "differ in cpu" in banner and "Another CPU" in banner
    assert "2.13.0" in quiet.one("#machine").text
    assert quiet.one("#answer").get_attribute("data-best") == "bbb" and "may not be comparable" in quiet.one("#answer").text
    quiet.set("environment", quiet.js("return document.getElementById('environment').options[1].value"))
    assert set(quiet.points()) == {"aaa"} == set(quiet.listed())
    assert quiet.one("#answer").get_attribute("data-best") == "aaa" and "comparable" not in quiet.one("#answer").text


# -- the best under bars ----------------------------------------------------------------------------------------------


def upper(figure, each):
    speedup = each.inference.speedup
    return {"drop": each.quality.drop.high, "bytes": each.artifact.bytes, "training": each.training.seconds,
            "latency": each.inference.latency_p50 * speedup.value / (speedup.low or speedup.value)}[figure]


def by_hand(trials, limits, minimise):
    """The choice from its definition: the id of the best, and of the nearest."""
    done = [t for t in trials if t.status == "done"]
    read = {"inference": lambda t: 1 / (t.inference.speedup.low or t.inference.speedup.value),
            "bytes": lambda t: t.artifact.bytes, "training": lambda t: t.training.seconds,
            "drop": lambda t: t.quality.drop.high}[minimise]
    speed = minimise == "inference" or "latency" in limits

    def excess(each):
        over = []
        for key, limit in limits.items():
            ends = [upper(key, t) for t in done]
            beyond = upper(key, each) - limit
            over.append(0 if beyond <= 1e-9 else beyond / ((max(ends) - min(ends)) or 1))
        return max(over, default=0)

    def rank(each):
        return (speed and each.inference.speedup.low is None, read(each))

    def beats(each):
        speed = each.inference.speedup
        if minimise == "inference":
            return speed.low is not None and speed.low > 1
        return (speed.high or speed.value) >= 1

    meeting = sorted((t for t in done if excess(t) == 0), key=rank)
    if better := [t for t in meeting if beats(t)]:
        alike = [t for t in better if minimise == "inference" and 1 / t.inference.speedup.value <= read(better[0])] or better[:1]
        chosen = min(alike, key=lambda t: t.quality.drop.high)
        return chosen.id, chosen.id
    if meeting:
        return "", meeting[0].id
    least = min(map(excess, done))
    return "", min((t for t in done if excess(t) == least), key=rank).id


def answer(browser):
    return tuple(browser.one("#answer").get_attribute(f"data-{what}") for what in ("best", "nearest"))


def test_sliders_name_the_right_trial(quiet):
    trials, chance = many(80), random.Random(1)
    quiet.open(trials)
    assert answer(quiet)[0] == best(trials, "1pt").trial.id
    done, seen = [t for t in trials if t.status == "done"], set()
    for _ in range(16):
        limits = {}
        for key in ("drop", "latency", "bytes", "training"):
            stops = sorted({upper(key, t) for t in done})
            at = min(len(stops), int(chance.random() ** 0.5 * (len(stops) + 1)))
            assert quiet.one(f"#bar-{key}").get_attribute("max") == str(len(stops))
            quiet.set(f"bar-{key}", at, "input")
            if at < len(stops):
                limits[key] = stops[at]
        minimise = chance.choice(("inference", "bytes", "training", "drop"))
        quiet.set("minimise", minimise)
        assert answer(quiet) == by_hand(trials, limits, minimise), (limits, minimise)
        seen.add(answer(quiet)[0])
    assert len(seen) >= 5 and "" in seen


def test_nothing_meets_the_bars(quiet):
    trials = many(60)
    quiet.open(trials)
    quiet.set("type-drop", -50)
    nothing = by_hand(trials, {"drop": -0.5}, "inference")
    assert answer(quiet) == nothing and nothing[0] == ""
    assert "No trial meets this" in quiet.one("#answer").text and "Nearest" in quiet.one("#answer").text
    quiet.set("type-drop", "")
    assert answer(quiet)[0] == by_hand(trials, {}, "inference")[0]


def test_screened_comes_after_measured(quiet):
    quiet.open([trial("aaa", speed=2.0), trial("bbb", speed=9.0, width=0)])
    assert answer(quiet)[0] == "aaa" == best([trial("aaa", speed=2.0), trial("bbb", speed=9.0, width=0)], "1pt").trial.id
    quiet.open([trial("bbb", speed=9.0, width=0)])
    assert answer(quiet) == ("", "bbb") and "has no interval" in quiet.one("#answer").text
    assert "Keep the model as it is: no trial that meets this is significantly faster" in quiet.one("#answer").text


def test_the_model_as_it_is_is_kept_where_nothing_beats_it(quiet):
    slow = trial("aaa", speed=0.28)
    quiet.open([slow], keep=best([slow], "1pt").keep, bars={"max_drop": "0.01", "minimize": "latency"}, nearest="aaa")
    assert answer(quiet) == ("", "aaa") and quiet.one("#answer").text.startswith("Keep the model as it is:")
    assert "says to keep the model as it is; nearest is" in quiet.one("#answer").text
    quiet.open([trial("aaa", speed=3.0)], ended={"says": "stopped after 58 of 60 s: no recipe fits into 2.0 s"})
    assert "The exploration stopped after 58 of 60 s: no recipe fits into 2.0 s." in quiet.one("#spent").text
    quiet.open([trial("aaa", speed=3.0)], doubt="the reference guesses")
    assert quiet.one("#answer").text.startswith("Keep the model as it is: the reference guesses.")


def test_what_a_search_was_asked(quiet):
    bars = {"max_drop": "0.5pt", "max_latency": 0.012, "max_bytes": None, "minimize": "bytes"}
    trials = [trial("aaa", bytes=500, drop=0.001), trial("bbb", bytes=400, drop=0.004), trial("ccc", bytes=900, speed=1.5)]
    quiet.open(trials, recommended="aaa", nearest="aaa", bars=bars)
    assert quiet.one("#type-drop").get_attribute("value") == "0.5" and quiet.one("#type-latency").get_attribute("value") == "12"
    assert quiet.one("#minimise").get_attribute("value") == "bytes" and answer(quiet)[0] == "aaa"
    assert "max drop 0.5pt" in quiet.one("#answer").text and "recommended" in quiet.one("#answer").text


# -- using it ---------------------------------------------------------------------------------------------------------


def test_a_selection_shows_everywhere(quiet):
    trials = [t for t in many(40) if t.status == "done"]
    quiet.open(trials)
    quiet.drag("scatter", (0.02, 0.98), (0.6, 0.3))
    quiet.until(lambda: 0 < len(quiet.listed()) < len(trials))
    selected = set(quiet.listed())
    inside = quiet.js("return document.getElementById('scatter').data.filter((t) => t.customdata).flatMap((t) => "
                      "t.selectedpoints.map((i) => t.customdata[i]))")
    assert set(inside) == selected
    bright = quiet.js("return document.getElementById('parallel').data.filter((t) => t.customdata && t.hoverinfo === 'text')"
                      ".flatMap((t) => t.customdata)")
    assert set(bright) == selected
    assert f"{len(selected)} selected of {len(trials)}" in quiet.one("#table caption").text
    quiet.set("filter", "inductor", "input")
    assert set(quiet.listed()) == {t.id for t in trials if "inductor" in t.recipe}
    quiet.one("#clear").click()
    assert len(quiet.listed()) == len(trials) and not quiet.one("#clear").is_enabled()
    quiet.drag("parallel", (0.0, 0.6), (0.12, 0.99))  # the low drops, on the first axis
    quiet.until(lambda: 0 < len(quiet.listed()) < len(trials))
    drops = {t.id: t.quality.drop.value for t in trials}
    kept = set(quiet.listed())
    assert max(drops[id] for id in kept) < min(drops[id] for id in drops if id not in kept)


def test_by_keyboard_alone(quiet):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    trials = many(20)
    quiet.open(trials)
    press = lambda *keys: ActionChains(quiet.driver).send_keys(*keys).perform()
    focus = lambda: quiet.js("const e = document.activeElement; return e.id || e.className || e.tagName")
    reached = []
    for _ in range(80):
        press(Keys.TAB)
        reached.append(focus())
        assert quiet.js("return getComputedStyle(document.activeElement).outlineStyle") != "none"
        if "pick" in reached[-1]:
            break
    assert reached[0] == "skip" and "pick" in reached[-1]
    assert {"theme", "bar-drop", "type-drop", "minimise", "x", "log-x", "y", "intervals", "filter", "per-day", "csv",
            "json"} <= set(reached)
    order, first = quiet.listed(), quiet.chosen()
    press(Keys.HOME, Keys.DOWN, Keys.DOWN, Keys.ENTER)
    assert quiet.chosen() == order[2] != first and quiet.one("#detail-title").text == "Trial #3"
    assert quiet.one("#said").get_attribute("textContent").startswith("Trial #3: ")
    press(Keys.END, Keys.SPACE)
    assert quiet.chosen() == order[-1] and "pick" in focus()
    assert quiet.js("return document.querySelectorAll('.pick[tabindex=\"0\"]').length") == 1


def test_a_heading_sorts_and_what_is_missing_comes_last(quiet):
    trials = many(30)
    quiet.open(trials)
    press = lambda name: quiet.js("[...document.querySelectorAll('#table thead button')].find((b) => "
                                  "b.textContent === arguments[0]).click()", name)
    size = {t.id: t.artifact.bytes for t in trials if t.artifact}
    for down in (False, True):
        press("size")
        order = [size.get(id, math.nan) for id in quiet.listed()]
        known = [value for value in order if value == value]
        assert known == sorted(size.values(), reverse=down) and order[:len(known)] == known
        assert quiet.js("return document.querySelector('#table th[aria-sort$=cending]').getAttribute('aria-sort')") == (
            "descending" if down else "ascending")


def test_the_chosen_trial(quiet):
    first = trial("aaa", "train(adamw, epochs=2) | prune(ratio=0.5) | compile(inductor)", break_even_requests=2500.0,
                  effects=(Effect("prune", "parameters", 100.0, 50.0),),
                  test=QualityFigure("accuracy", True, 0.97, 0.98, Drop(0.01, 0.002, 0.018), "test"))
    without = trial("bbb", "train(adamw, epochs=2) | compile(inductor)", speed=1.5)
    beaten = trial("ccc", "train(adamw, epochs=2) | prune(ratio=0.9)", speed=1.4, drop=0.2)
    quiet.open([first, without, beaten], store="my study")
    detail = quiet.one("#detail")
    assert [li.split("so far as")[0].strip() for li in quiet.texts("#detail li")] == [
        "train(adamw, epochs=2)", "prune(ratio=0.5)", "compile(inductor)"]
    assert "so far as #2, #3" in quiet.texts("#detail li")[0]
    shown = detail.get_attribute("textContent")
    for part in ("0.9700 on test", "after 2.50 krequests, 2.50 days", "parameters", "Without a phase", "63.2 s"):
        assert part in shown
    assert shlex.split(quiet.one("#command").text) == ["thrifty", "run", "digits", first.recipe, "--study", "my study"]
    quiet.set("per-day", 25000, "input")
    assert "0.100 days" in detail.get_attribute("textContent")
    quiet.js("document.querySelector('tr[data-id=ccc] td').click()")
    assert quiet.chosen() == "ccc" and "dominated by #1" in detail.text
    assert quiet.js("return document.getElementById('scatter').data[0].x") == [1.4, 2.0]


def test_figures_can_be_taken_away(quiet):
    trials = [*many(25), trial("fff", "=1+1", drop=1 / 3)]
    quiet.open(trials)
    for name in ("csv", "json"):
        quiet.one(f"#{name}").click()
    table, whole = quiet.folder / "trials.csv", quiet.folder / "study.json"
    quiet.until(lambda: table.exists() and whole.exists())
    with table.open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert set(rows) == {t.id for t in trials} and rows["fff"]["recipe"] == "'=1+1"
    number = lambda text: float(text) if text else None
    for each in trials:
        row = rows[each.id]
        assert number(row["quality.drop.value"]) == (each.quality and each.quality.drop.value)
        assert number(row["inference.speedup.low"]) == (each.inference and each.inference.speedup.low)
        assert number(row["training.joules"]) is None and number(row["artifact.bytes"]) == (each.artifact and each.artifact.bytes)
        assert row["error"] == (each.error or "")
    assert json.loads(whole.read_text()) == json.loads(json.dumps(study_json(Findings.of(trials, ledger_of(trials)))))


def test_light_and_dark(quiet):
    ground = lambda: quiet.js("return getComputedStyle(document.documentElement).backgroundColor")
    ink = lambda: quiet.js("return document.getElementById('scatter').layout.font.color")
    quiet.open(many(10))
    light = (ground(), ink())
    quiet.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    quiet.until(lambda: ink() != light[1])
    dark = (ground(), ink())
    assert dark[0] != light[0]
    quiet.set("theme", "light")
    assert (ground(), ink()) == light
    quiet.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    quiet.set("theme", "dark")
    assert (ground(), ink()) == dark
