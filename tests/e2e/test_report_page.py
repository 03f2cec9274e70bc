"""The report and the decisions in a browser: accessible, no sideways scrolling on a phone, no requests, readable without scripts."""

from functools import partial
from pathlib import Path

import pytest

from pipeline.report import page
from pipeline.report.decisions import write_decisions
from pipeline.report.page import write_page
from tests.browsers import ARGUMENTS, CHROMIUM
from tests.decisions import entry, judgement, row, twelve_weeks
from tests.large_report import read_large_report, write_large_results
from tests.reports import make_doubt, make_report

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe_playwright_python is not installed")
playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

LONG = "a_rather_long_name_of_a_class_without_a_place_to_break_it_at"
FINDING = ("near_duplicate", [f"{LONG}/{LONG}/1.png", f"{LONG}/2.png"], f"'{LONG}/{LONG}/1.png', '{LONG}/2.png': the two look alike")
SIZES = {"wide": 1280, "phone": 390}


@pytest.fixture(scope="module", params=[2, 40], ids=["2 classes", "40 classes"])
def address(request, tmp_path_factory):
    """A report with long names, as a file:// address."""
    folder = tmp_path_factory.mktemp("page") / "report"
    names = [f"{LONG}_{number}" if number % 2 else f"c{number}" for number in range(request.param)]
    report = make_report(class_names=names, findings=[FINDING], doubts=[make_doubt(f"{LONG}/{LONG}.png", names[1])])
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(page, "plot_curves", lambda path, histories: None)
        write_page(folder, report)
    return (folder / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open a page; also returns the schemes of its requests and the messages of its console."""
    contexts = []

    def open_one(address, size="wide", **options):
        context = browser.new_context(viewport={"width": SIZES[size], "height": 800}, **options)
        contexts.append(context)
        view = context.new_page()
        asked, said = [], []
        view.on("request", lambda request: asked.append(request.url.partition(":")[0]))
        view.on("console", lambda message: said.append(message.text))
        view.goto(address)
        return view, asked, said

    yield open_one
    for context in contexts:
        context.close()


@pytest.fixture
def visit(open_page, address):
    """Open the report with long names."""
    return partial(open_page, address)


def serious_faults(view):
    """The serious and critical findings of axe in a page, all of it unfolded. Open the page with `bypass_csp`: axe is a script."""
    view.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = axe.Axe().run(view).response["violations"]
    return [(fault["id"], fault["nodes"][0]["html"]) for fault in found if fault["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_no_serious_fault(visit, size, scheme):
    view, _, _ = visit(size, color_scheme=scheme, bypass_csp=True)
    assert serious_faults(view) == []


def test_nothing_scrolls_sideways_on_a_phone(visit):
    view, _, _ = visit("phone")
    assert view.evaluate("document.documentElement.scrollWidth") == 390


def test_nothing_is_asked_for_and_nothing_is_refused(visit):
    _, asked, said = visit()
    assert (set(asked) - {"data"}, asked.count("file"), said) == ({"file"}, 1, [])


def test_all_is_there_without_scripts(visit):
    view, _, _ = visit(java_script_enabled=False)
    assert "finetuned is better by 7.1 points." in view.inner_text("body")
    assert view.locator("svg").first.is_visible()
    assert view.locator("summary").first.is_visible()


def test_dark_is_dark_and_light_is_light(visit):
    colours = [
        visit(color_scheme=scheme)[0].evaluate("getComputedStyle(document.documentElement).backgroundColor") for scheme in ("light", "dark")
    ]
    assert colours == ["rgb(255, 255, 255)", "rgb(18, 22, 27)"]


def test_on_paper_all_is_unfolded(visit):
    view, _, _ = visit()
    folded = view.locator("details:not([open]) > :not(summary)")
    count = folded.count()
    assert (count > 0, [folded.nth(number).is_visible() for number in range(count)]) == (True, [False] * count)
    view.emulate_media(media="print")
    assert [folded.nth(number).is_visible() for number in range(count)] == [True] * count
    assert min(folded.nth(number).bounding_box()["height"] for number in range(count)) > 10


# The decisions


@pytest.fixture(scope="module", params=["empty", "twelve weeks", "long names", "many"])
def decisions(request, tmp_path_factory):
    """A page of decisions, as a file:// address."""
    folder = tmp_path_factory.mktemp("page") / "decisions"
    long = judgement(classes=[row(f"{LONG}_{number}") for number in range(40)], notes=[f"{LONG}/{LONG}"])
    names = {"model": LONG, "reason": f"{LONG}{LONG}", "judgement": long}
    entries = {
        "empty": [],
        "twelve weeks": twelve_weeks(),
        "long names": [entry(**names), entry("HOLD", 1, **names)],
        "many": [entry("PROMOTE" if week % 9 == 0 else "HOLD", week, judgement=judgement("HOLD")) for week in range(500)],
    }
    write_decisions(folder, entries[request.param])
    return (folder / "index.html").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_no_serious_fault_in_the_decisions(open_page, decisions, size, scheme):
    view, _, _ = open_page(decisions, size, color_scheme=scheme, bypass_csp=True)
    assert serious_faults(view) == []


def test_the_decisions_do_not_scroll_sideways_on_a_phone_and_ask_for_nothing(open_page, decisions):
    view, asked, said = open_page(decisions, "phone")
    assert view.evaluate("document.documentElement.scrollWidth") == 390
    assert (asked, said) == (["file"], [])


@pytest.mark.parametrize(("size", "shown"), [("wide", [True, False]), ("phone", [False, True])])
def test_each_size_has_its_drawing_of_the_history(open_page, tmp_path, size, shown):
    write_decisions(tmp_path, twelve_weeks())
    drawings = open_page((tmp_path / "index.html").as_uri(), size)[0].locator("svg.history")
    assert [drawings.nth(number).is_visible() for number in range(drawings.count())] == shown


# 1,000 classes and 50,000 pictures


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The largest report for which the stages are made."""
    folder = tmp_path_factory.mktemp("large")
    write_page(folder / "report", read_large_report(folder, write_large_results(folder)))
    return folder / "report" / "index.html"


@pytest.mark.slow
def test_a_large_report_is_under_ten_megabytes(large):
    assert large.stat().st_size < 10e6


@pytest.mark.slow
def test_a_large_report_does_not_scroll_sideways_on_a_phone(large, open_page):
    view, _, _ = open_page(large.as_uri(), "phone")
    assert view.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.slow
def test_axe_finds_no_serious_fault_in_a_large_report(large, open_page):
    view, _, _ = open_page(large.as_uri(), bypass_csp=True)
    assert serious_faults(view) == []


# The report on 400 digits


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault_in_the_report_on_the_digits(digits, open_page, scheme):
    view, _, _ = open_page(Path(digits[0], "report", "index.html").as_uri(), color_scheme=scheme, bypass_csp=True)
    assert serious_faults(view) == []
