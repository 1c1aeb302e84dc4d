"""The page whatever the study is, hostile, empty or large, and for every reader: in Chromium, from disk."""

import shlex
from pathlib import Path

import pytest
from tests.trials import failed, ledger_of, many, trial

from thrifty.report.comparison import comparison
from thrifty.report.document import study_json
from thrifty.studies.findings import Findings
from thrifty.studies.store import Failure
from thrifty.studies.trial import Drop, Effect, QualityFigure

pytestmark = pytest.mark.timeout(120)
EVIL = "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=1'><a href='javascript:pwned=1'>$`\"\\!\u2028"


# -- whatever the study is ---------------------------------------------------------------------------------------------


def test_a_hostile_study_runs_nothing(quiet):
    names = {"workload": EVIL, "environment": {EVIL: EVIL, "cpu": EVIL}, "target": {"device": EVIL, "threads": 1}}
    trials = [trial("aaa", EVIL, effects=(Effect(EVIL, EVIL, 1, 0, EVIL),), **names), failed("bbb", EVIL, EVIL, **names),
              trial("ccc", f"train() | {EVIL}", speed=3.0, **names,
                    quality=QualityFigure(EVIL, True, 0.9, 0.98, Drop(0.3, 0.2, 0.4))),
              trial("<b>ddd", EVIL * 30, speed=1.1, **names)]
    quiet.open(trials, [Failure("bbb", EVIL, EVIL, EVIL)], store=EVIL, bars={"max_drop": EVIL, EVIL: EVIL}, recommended=EVIL)
    for key in ("drop", "quality", "latency"):
        quiet.set("y", key)
    for each in trials:
        quiet.js("[...document.querySelectorAll('#table tr')].find((r) => r.dataset.id === arguments[0]).click()", each.id)
        assert shlex.split(quiet.one("#command").get_attribute("textContent"))[2:4] == [EVIL, each.recipe]
        quiet.js("const g = document.getElementById('scatter'); g.data.forEach((t, c) => t.customdata && t.customdata.forEach("
                 "(id, p) => Plotly.Fx.hover(g, [{curveNumber: c, pointNumber: p}])))")
    assert "<script>window.pwned=1" in quiet.one("#scatter .hoverlayer").get_attribute("textContent")
    assert quiet.one("#workload").get_attribute("textContent") == EVIL
    assert EVIL in quiet.texts("#failures summary code") and EVIL in quiet.texts("#failures details > p")
    assert quiet.js("return [typeof window.pwned, document.querySelectorAll('img[onerror], [href^=javascript]').length, "
                    "document.querySelectorAll('script').length]") == ["undefined", 0, 3]


def test_plotlys_own_markup_means_nothing_in_a_study(quiet):
    text = "<b>bold</b><br><a href='https://example.invalid'>x</a> &lt; %{x}"
    quiet.open([trial("aaa", text, quality=QualityFigure("<b>q</b>", True, 0.9, 0.98, Drop(0.08, 0.07, 0.09)))])
    quiet.js("const g = document.getElementById('scatter'); Plotly.Fx.hover(g, [{curveNumber: g.data.findIndex("
             "(t) => t.customdata), pointNumber: 0}])")
    assert text in quiet.texts("#scatter .hoverlayer tspan.line")
    assert "drop in <b>q</b> (points), lower is better" in quiet.texts("#scatter .ytitle")
    assert quiet.js("return document.querySelectorAll('.chart a').length") == 0


def test_the_policy_holds(browser):
    """What a gap in the escaping would let in could neither run nor ask for anything."""
    browser.open([trial("aaa")])
    browser.js("const s = document.createElement('script'); s.textContent = 'window.pwned = 1'; document.body.append(s); "
               "document.body.insertAdjacentHTML('beforeend', arguments[0])",
               '<img src="https://example.invalid/x.png" onerror="window.pwned=1">')
    browser.until(lambda: len(browser.js("return document.body.lastChild.complete ? 'ok' : ''")) > 0)
    assert browser.js("return fetch('https://example.invalid/').then(() => 'sent', () => 'refused')") == "refused"
    assert browser.js("return typeof window.pwned") == "undefined"
    said = " ".join(browser.complaints())
    assert "script-src" in said and "img-src" in said and "default-src" in said


def test_nothing_measured_yet(quiet):
    quiet.open([])
    assert quiet.one("#workload").text == "An empty study" and "No trial chosen" in quiet.one("#detail").text
    quiet.open([failed("aaa", "train()", "loss is nan")])
    assert "No trial has these figures" in quiet.one("#answer").text and "loss is nan" in quiet.texts("#table details > p")[0]


def test_a_lower_is_better_quality_has_no_points(quiet):
    bits = lambda value, drop: QualityFigure("bits per byte", False, value, 1.2, Drop(drop, drop - 0.01, drop + 0.01))
    quiet.open([trial("aaa", quality=bits(1.25, 0.05)), trial("bbb", quality=bits(1.2, 0.0), speed=1.2)])
    assert {id: y for id, (_, y, _) in quiet.points().items()} == {"aaa": 0.05, "bbb": 0.0}
    quiet.set("y", "quality")
    assert quiet.js("return document.getElementById('scatter').layout.yaxis.title.text") == "bits per byte, lower is better"
    bars = quiet.js("const t = document.getElementById('scatter').data.find((t) => t.customdata); "
                    "return [t.error_y.arrayminus[0], t.error_y.array[0]]")
    assert bars == [pytest.approx(0.01), pytest.approx(0.01)]


def test_four_hundred_trials(quiet):
    trials = many(400)
    quiet.open(trials)
    assert len(quiet.listed()) == 400 and len(quiet.points()) == sum(t.status == "done" for t in trials)
    assert set(quiet.points("parallel")) == set(quiet.points())
    quiet.set("x", "latency")
    quiet.set("filter", "openvino", "input")
    assert len(quiet.listed()) == sum("openvino" in t.recipe for t in trials)
    assert quiet.js("return document.querySelectorAll('*').length") < 60_000
    assert quiet.js("return document.documentElement.scrollWidth <= innerWidth")


def test_history_importance_tags_and_another_study(quiet):
    trials = many(40)
    done = [t for t in trials if t.status == "done"]
    spent = [60.0 * (i + 1) for i in range(len(done))]
    remarks = {done[2].id: {"tags": ["shipped"], "note": "Runs at the customer's."}}
    found = Findings.of(trials, ledger_of(trials), remarks=remarks,
                        history=[(t.id, at) for t, at in zip(done, spent, strict=True)])
    other = Findings.of(done[:6], ledger_of(done[:6]))
    quiet.show(study_json(found), compared=comparison(found, other, "study-before"))
    marks = quiet.points("history")
    assert {id: x for id, (x, _, _) in marks.items()} == {t.id: pytest.approx(at / 60) for t, at in zip(done, spent, strict=True)}
    line = quiet.js("return document.getElementById('history').data[0].y")
    within = [t.inference.speedup.value for t in done if t.quality.drop.high <= 0.01 + 1e-9]
    assert line == [pytest.approx(max(within[:i + 1])) for i in range(len(within)) if i == 0 or within[i] > max(within[:i])] + [
        pytest.approx(max(within))]
    shares = study_json(found)["importance"]["speedup"]
    assert quiet.texts("#importance .pair > :first-child tbody th") == list(shares)
    assert "Compared with study-before" in quiet.one("#compared-title").text
    assert len(quiet.texts("#compared table:last-of-type tbody tr")) >= 6
    quiet.set("filter", "SHIP", "input")
    assert quiet.listed() == [done[2].id] and "tags" in quiet.texts("#table thead th button")
    quiet.js("document.querySelector('#table tbody tr').click()")
    assert quiet.texts("#detail .tags span") == ["shipped"] and quiet.one("#detail .remark").text == "Runs at the customer's."


# -- for every reader ---------------------------------------------------------------------------------------------------


def test_a_failed_trial_is_one_line_until_it_is_opened(quiet):
    quiet.open([trial("aaa"), failed("bbb", "train() | " * 40 + "compile(inductor)", "the reason " * 60)])
    row = quiet.one("#table tr.failed")
    closed = row.size["height"]
    quiet.one("#table tr.failed summary").click()
    assert closed < 45 < row.size["height"] and "the reason" in row.text


@pytest.mark.parametrize(("width", "scheme"), [
    (390, "light"), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((390, "dark"), (1440, "light"), (1440, "dark")))])
def test_axe_finds_nothing(quiet, width, scheme):
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python, which has axe-core, is not installed")
    trials, extra = many(40), {"remarks": {many(40)[2].id: {"tags": ["shipped"], "note": "Good."}}}
    done = [t for t in trials if t.status == "done"]
    found = Findings.of(trials, ledger_of(trials), [Failure(None, "train()", "out of memory", "2026-11-24")],
                        history=[(t.id, 9.0 * i) for i, t in enumerate(done)], **extra)
    quiet.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                 {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500})
    quiet.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    try:
        quiet.show(study_json(found), compared=comparison(found, Findings.of(done[:5]), "study-before"))
        assert quiet.js("return document.documentElement.scrollWidth") <= width
        assert quiet.one("#table-hint").is_displayed()
        height = quiet.js("return document.documentElement.scrollHeight")
        assert height < (2900 if width == 390 else 7000)
        script = (Path(axe.__file__).parent / "axe.min.js").read_text()
        quiet.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": script})  # as a reader's tool does: the policy holds
        run = ("const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then((found) => done("
               "[found.passes.length, found.violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.target).join(' ')}`)]))")
        passed, violations = quiet.driver.execute_async_script(run)
        assert violations == [] and passed >= 20
        if width == 390:  # where parts are closed at first
            quiet.js("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
            assert quiet.driver.execute_async_script(run)[1] == []
            assert quiet.js("return document.documentElement.scrollWidth") <= width
    finally:
        quiet.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        quiet.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_what_rounds_to_zero_has_no_sign(quiet):
    quiet.open([trial("aaa", quality=QualityFigure("accuracy", True, 0.98, 0.98, Drop(-0.00001, -0.004, 0.004)))])
    shown = " ".join(quiet.texts("#table tbody tr") + quiet.texts("#detail"))
    assert "0.00 pt" in shown and "-0.00 pt" not in shown
