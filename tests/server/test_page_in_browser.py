"""The page as a user meets it in a browser."""

import base64

import pytest

from pipeline.server.engine import Engine
from pipeline.server.uploads import Bounds
from tests.browsers import ARGUMENTS, CHROMIUM
from tests.painted import BRIGHT_BLUE, RED, draw, load_all, running

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe_playwright_python is not installed")
playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

HOSTILE = '<img src=x onerror="document.title=1">'
CLASSES = ("red", "green", "blue", HOSTILE, "a_rather_long_name_of_a_class_without_a_place_to_break_it", "violet", "cyan")
SIZES = {"wide": 1280, "phone": 360}


def upload(content, name="picture.png"):
    return {"name": name, "mimeType": "image/png", "buffer": content}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return load_all(tmp_path_factory.mktemp("models"), CLASSES)


@pytest.fixture(scope="module")
def browser():
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Open the page; `asked` are the addresses of its requests, `said` the messages of its console."""
    contexts = []

    def open_one(size="wide", url=address, **options):
        context = browser.new_context(viewport={"width": SIZES[size], "height": 800}, **options)
        contexts.append(context)
        view = context.new_page()
        view.set_default_timeout(10_000)
        view.asked, view.said = [], []
        view.on("request", lambda request: view.asked.append(request.url))
        view.on("console", lambda message: view.said.append(message.text))
        view.on("pageerror", lambda error: view.said.append(str(error)))
        view.goto(url)
        return view

    yield open_one
    for context in contexts:
        context.close()


def answered(view, count=1):
    """Wait until that many pictures have their answer or their fault; then their cards."""
    view.locator(".card:is([data-state=answer], [data-state=fault])").nth(count - 1).wait_for()
    return view.locator(".card")


def shows(view, text):
    """Wait until the page's status is a text."""
    playwright_api.expect(view.locator("#status")).to_have_text(text)


def test_a_picture_is_answered_with_classes_probabilities_and_model(visit):
    view = visit()
    view.set_input_files("#files", upload(draw(RED), "poppy.png"))
    card = answered(view)
    assert card.locator("h3:visible").inner_text().split("\n")[0].startswith("red")
    assert card.locator(".bars .label").all_inner_texts()[:3] == ["red", "green", "blue"]
    assert card.locator(".name").inner_text() == "poppy.png"
    assert "Familiar. It is like" in card.inner_text()
    assert "Model painted · version 3 · sha256" in card.locator(".origin").inner_text()
    widths = card.locator(".fill").evaluate_all("all => all.map(each => each.getBoundingClientRect().width)")
    assert widths == sorted(widths, reverse=True)
    assert "The model knows 7 classes: red, green, blue" in view.inner_text("#classes")
    shows(view, f"red, {card.locator('.share').inner_text()}. Familiar.")


def test_five_classes_are_shown_and_a_button_shows_all(visit):
    view = visit()
    view.set_input_files("#files", upload(draw(RED)))
    card = answered(view)
    assert card.locator(".bars li").count() == 5
    more = card.get_by_role("button", name="Show all 7 classes", expanded=False)
    more.click()
    assert card.locator(".bars li").count() == 7
    card.get_by_role("button", name="Show 5 classes", expanded=True).click()
    assert card.locator(".bars li").count() == 5


def test_an_unfamiliar_picture_is_called_so_in_words(visit):
    view = visit()
    view.set_input_files("#files", upload(draw(BRIGHT_BLUE)))
    assert "Unfamiliar. It is unlike the pictures that the model learned from" in answered(view).inner_text()


def test_several_pictures_keep_their_order_and_a_broken_one_has_its_fault(visit):
    view = visit()
    view.set_input_files("#files", [upload(draw(RED), "1.png"), upload(b"not a picture", "2.png"), upload(draw((0, 200, 0)), "3.png")])
    cards = answered(view, 3)
    shows(view, "2 of 3 pictures are answered.")
    assert cards.locator(".name").all_inner_texts() == ["1.png", "2.png", "3.png"]
    assert "not a picture" in cards.nth(1).locator(".say").inner_text()
    assert cards.nth(2).locator(".class").inner_text() == "green"
    view.set_input_files("#files", upload(draw(RED), "4.png"))
    assert answered(view, 4).locator(".name").first.inner_text() == "4.png"


TRANSFER = """(kind, base64) => {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], `${kind}.png`, { type: "image/png" }));
  const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
  const make = (name) => name === "paste" ? new ClipboardEvent(name, options) : new DragEvent(name, options);
  for (const name of kind === "drop" ? ["dragenter", "dragover", "drop"] : ["paste"]) document.body.dispatchEvent(make(name));
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_picture_may_be_dropped_or_pasted(visit, kind):
    view = visit()
    view.evaluate(f"([kind, base64]) => ({TRANSFER})(kind, base64)", [kind, base64.b64encode(draw(RED)).decode()])
    card = answered(view)
    assert (card.locator(".name").inner_text(), card.locator(".class").inner_text()) == (f"{kind}.png", "red")
    assert view.locator(".dragging").count() == 0


def test_the_keyboard_alone_chooses_a_picture_shows_its_map_and_clears(visit):
    view = visit()
    view.on("filechooser", lambda _: None)  # Playwright intercepts choosers from now on, and does not wait until Chromium has heard of it
    view.locator("#classes p").wait_for()
    view.keyboard.press("Tab")
    with view.expect_file_chooser() as chooser:
        view.keyboard.press("Enter")
    chooser.value.set_files(upload(draw(RED)))
    card = answered(view)
    for _ in ("clear", "more", "toggle"):
        view.keyboard.press("Tab")
    view.keyboard.press("Space")
    card.locator(".map[src]").wait_for()
    assert card.get_by_role("button", name="Activation map", pressed=True).evaluate("button => button === document.activeElement")
    assert "Bright: evidence for red." in card.locator(".legend").inner_text()
    assert card.locator(".map").evaluate("map => [map.style.left, map.style.width]") == ["16.6667%", "66.6667%"]
    view.keyboard.press("Space")
    assert not card.locator(".map").is_visible()
    view.keyboard.press("Shift+Tab")
    view.keyboard.press("Shift+Tab")
    view.keyboard.press("Enter")
    assert (view.locator(".card").count(), view.evaluate("document.activeElement.id")) == (0, "choose")


def test_a_model_without_map_and_unfamiliarity_has_no_such_button_and_says_so(visit, serve):
    serve("plain")
    view = visit()
    view.set_input_files("#files", upload(draw(RED)))
    card = answered(view)
    assert not card.locator(".toggle").is_visible()
    assert "This model does not say whether a picture is unfamiliar." in card.inner_text()


def test_after_a_swap_the_page_shows_the_new_model_and_its_classes(visit, serve):
    view = visit()
    view.locator("#classes p").wait_for()
    serve("plain")
    view.set_input_files("#files", upload(draw(RED)))
    card = answered(view)
    assert card.locator(".origin").inner_text().startswith("Model plain")
    assert not card.locator(".toggle").is_visible()
    assert (view.inner_text("#model")[:11], view.inner_text("#classes")) == ("Model plain", "The model knows 3 classes: red, green, blue.")


def test_a_file_beyond_the_limit_is_not_sent(visit, models):
    with running(Engine(models["painted"]), bounds=Bounds(body_bytes=100_000)) as url:
        view = visit(url=url)
        view.set_input_files("#files", upload(bytes(200_000)))
        assert "The file has 0.2 MB; the server takes 0.1 MB at most." in answered(view).inner_text()
        assert [url for url in view.asked if url.endswith("/predict")] == []
        view.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_no_fault_and_nothing_scrolls_sideways(visit, size, scheme):
    view = visit(size, color_scheme=scheme, bypass_csp=True)  # axe is a script
    view.set_input_files("#files", [upload(draw(RED)), upload(draw(BRIGHT_BLUE), "long" * 40), upload(b"not a picture")])
    card = answered(view, 3)
    card.locator(".toggle").first.click()
    card.locator(".map[src]").first.wait_for()
    found = [fault["id"] for fault in axe.Axe().run(view).response["violations"]]
    if size == "phone":
        view.evaluate("document.getElementById('ask-token').showModal()")
        found += [fault["id"] for fault in axe.Axe().run(view).response["violations"]]
    assert (found, view.evaluate("document.documentElement.scrollWidth")) == ([], SIZES[size])


def test_no_request_leaves_the_server_and_the_policy_refuses_nothing(visit, address):
    view = visit()
    view.set_input_files("#files", upload(draw(RED)))
    answered(view).locator(".toggle").click()
    view.locator(".map[src]").wait_for()
    outside = [url for url in view.asked if not url.startswith((f"{address}/", "blob:", "data:"))]
    assert (outside, view.said) == ([], [])


def test_names_of_files_and_classes_are_text(visit):
    view = visit()
    view.set_input_files("#files", [upload(draw(RED), HOSTILE), upload(b"not a picture", HOSTILE)])
    card = answered(view, 2)
    card.locator(".more").first.click()
    assert card.locator(".name").all_inner_texts() == [HOSTILE] * 2
    assert HOSTILE in card.locator(".label").all_inner_texts()
    assert (view.title(), view.locator("img:not(.picture, .map)").count()) == ("Classify pictures", 0)


def test_a_token_is_asked_for_once_and_kept_for_the_tab_alone(visit, models):
    with running(Engine(models["painted"]), "open-sesame") as url:
        view = visit(url=url)
        dialog = view.get_by_role("dialog", name="This server asks for a token")
        for token, then in (("wrong", "The server refused this token."), ("open-sesame", None)):
            dialog.get_by_label("Token").fill(token)
            dialog.get_by_role("button", name="Continue").click()
            if then:
                dialog.get_by_text(then).wait_for()
        view.locator("#classes p").wait_for()
        view.set_input_files("#files", upload(draw(RED)))
        assert answered(view).locator(".class").inner_text() == "red"
        view.reload()
        view.locator("#classes p").wait_for()
        assert not dialog.is_visible()
        kept = view.evaluate("[localStorage.length, document.cookie, Object.keys(sessionStorage).join()]")
        assert (kept, [url for url in view.asked if "sesame" in url]) == ([0, "", "token"], [])
        view.close()


@pytest.mark.parametrize("state", ["busy", "away"])
def test_the_page_says_that_it_waits_and_tries_again(visit, state):
    view = visit()
    view.locator("#classes p").wait_for()
    refusal = {"status": 503, "headers": {"Retry-After": "1"}, "json": {"error": "the server is busy"}}
    view.route("**/predict", lambda route: route.fulfill(**refusal) if state == "busy" else route.abort(), times=1)
    view.set_input_files("#files", upload(draw(RED)))
    words = {"busy": "The server is busy", "away": "The server does not answer"}[state]
    shows(view, f"{words}. It is asked again in 1 s.")
    assert answered(view).locator(".class").inner_text() == "red"


def test_nothing_turns_where_motion_is_unwanted(visit):
    view = visit(reduced_motion="reduce")
    view.route("**/predict", lambda route: None)
    view.set_input_files("#files", upload(draw(RED)))
    assert view.locator(".wait").evaluate("place => getComputedStyle(place, '::before').animationName") == "none"
