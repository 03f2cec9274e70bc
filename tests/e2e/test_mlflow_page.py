"""MLflow's page in a browser: the table of runs, the comparison, the curves, the figures, the predictions.

The runs are those of two small models. With README_PICTURES=1 they are those of this checkout, and docs/mlflow.png is taken anew:

    README_PICTURES=1 python -m pytest tests/e2e/test_mlflow_page.py
"""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.core.files import read_json, sha256_of, sha256_of_file, write_json, write_table
from pipeline.pictures.manifest import Picture, write_manifest
from tests.browsers import ARGUMENTS, CHROMIUM, status_of
from tests.checkout import ROOT

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
sync_api.expect.set_options(timeout=60_000)  # the page is slow where two cores draw it and serve it
OF_THIS_CHECKOUT = bool(os.environ.get("README_PICTURES"))

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of playwright's own connections
]


def write_project(root: Path) -> Path:
    """Write the files of two evaluated models, with a few bytes in place of their graphs."""
    for name in ("baseline", "finetuned"):
        write_model(root, name, sum(map(ord, name)))
    (root / "params.yaml").write_text(yaml.safe_dump({"models": {"finetuned": {}}}))
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {}}))
    return root


def write_model(root: Path, name: str, seed: int) -> None:
    pictures = [
        Picture(f"ant/{i}.png", f"ant/{i}.png", str(i) * 64, "ant", split, str(i), 8, 8) for i, split in enumerate(["train", "test"])
    ]
    write_manifest(root / "data/manifest.csv", pictures)
    write_json(root / "data/source.json", {"source": "insects", "licence": "CC0"})
    graph, model, results = name.encode(), root / "models" / name, root / "results" / name
    model.mkdir(parents=True)
    results.mkdir(parents=True)
    (model / "model.onnx").write_bytes(graph)
    sums = {"data": sha256_of_file(root / "data/manifest.csv"), "params": "p" * 64, "code": "c" * 64}
    facts = {"model": name, "class_names": ["ant", "bee"], "params": {"seed": seed}, "inputs_sha256": sums, "hardware": {"threads": 1}}
    write_json(model / "model.json", {**facts, "model_sha256": sha256_of(graph)})
    write_table(model / "history.csv", ["epoch", "val_loss"], [{"epoch": step, "val_loss": 1 / (step + seed)} for step in range(3)])
    answer = {"image_id": "ant/1.png", "label": "ant", "predicted": "ant", "probability": "0.75"}
    write_table(results / "predictions.csv", list(answer), [answer])
    noise = np.random.default_rng(seed).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for figure in ("confusion_matrix", "gallery_mistakes"):
        Image.fromarray(noise).save(results / f"{figure}.png")
    write_json(results / "scores.json",
               {"model": name, "model_sha256": sha256_of(graph), "test_pictures": 1, "test_sha256": "7" * 64, "confidence": 0.95,
                "figures": {"balanced_accuracy": {"value": 0.75, "low": 0.5, "high": 1.0}}})  # fmt: skip


@contextmanager
def served(root: Path):
    """The address of MLflow's page on the database of `root`, as `pipeline ui` serves it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "pipeline", "ui", "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, env={**environment, "DVC_ROOT": str(root)}, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        assert status_of(f"http://127.0.0.1:{port}/health") == 200
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def files(root):
    """The folder with the data, the models and their results."""
    return ROOT if OF_THIS_CHECKOUT else write_project(root)


@pytest.fixture(scope="module")
def address(root, files):
    """MLflow's page with two runs."""
    from pipeline.tracking.publish import publish

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(files)
        monkeypatch.setenv("DVC_ROOT", str(root))
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert len(publish(files / "data", files / "models", files / "results")) == 2
    with served(root) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def visitor(browser, address):
    """Somebody who was here before: the assistant's panel is closed, the page's scripts are in the browser's cache."""
    visitor = browser.new_context(viewport={"width": 1400, "height": 800})
    first = open_table(visitor, address)
    first.locator('[data-component-id^="mlflow.assistant"][data-component-id$="close"]').first.click()
    first.close()
    yield visitor
    visitor.close()


def open_table(visitor, address):
    page = visitor.new_page()
    page.goto(f"{address}/#/experiments/1/runs?workflowType=machine_learning")
    return page


@pytest.fixture
def page(visitor, address):
    """The table of runs."""
    page = open_table(visitor, address)
    yield page
    page.close()


def link_to(page, name):
    """The link to a run in the table; its logged model has the same name."""
    return page.get_by_role("link", name=name, exact=True).and_(page.locator('a[href*="/runs/"]'))


def compare(page):
    """Select both runs, and press «Compare»."""
    page.get_by_label("Select all runs").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    sync_api.expect(page.get_by_role("heading", name="Comparing 2 Runs from 1 Experiment")).to_be_visible()


def draw(page, pattern):
    """Show the charts whose names match, in a window large enough for all: MLflow draws only what is in view."""
    page.set_viewport_size({"width": 1400, "height": 5000})
    page.locator("label:has(input[value=CHART])").click()
    page.get_by_placeholder("Search metric charts").fill(pattern)
    return page.get_by_test_id("draggable-chart-cards-grid")


def draw_curves(page):
    """The card of val_loss, with the curves of both runs."""
    grid = draw(page, "^val_loss$")
    card = grid.locator("> *").filter(has=page.get_by_text("val_loss", exact=True))
    for name in ("baseline", "finetuned"):
        sync_api.expect(card.get_by_text(f"{name} (val_loss)")).to_be_visible()
    return card


def wait_for_images(page, count):
    """Wait until `count` large pictures are loaded."""
    page.wait_for_function("count => [...document.images].filter(image => image.complete && image.naturalWidth > 200 "
                           "&& !image.src.startsWith('data:')).length >= count", arg=count)  # fmt: skip


def show_figures(page):
    """Open a figure on the comparison page, which draws it once per run."""
    compare(page)
    page.get_by_text("confusion_matrix.png", exact=True).click()
    wait_for_images(page, 2)


def test_the_table_lists_both_runs_with_their_data(page):
    for name in ("baseline", "finetuned"):
        sync_api.expect(link_to(page, name)).to_be_visible()
    sync_api.expect(page.get_by_text(re.compile(r"^\w+ \([0-9a-f]{16}\)$")).first).to_be_visible()


def test_the_comparison_shows_the_intervals_of_both(page, files):
    compare(page)
    for end, key in {"": "value", "_low": "low", "_high": "high"}.items():
        sync_api.expect(page.get_by_text(f"test_balanced_accuracy{end}", exact=True)).to_be_visible()
        for name in ("baseline", "finetuned"):
            value = read_json(files / "results" / name / "scores.json")["figures"]["balanced_accuracy"][key]
            sync_api.expect(page.get_by_text(f"{round(value, 3):g}", exact=True).first).to_be_visible()


def test_the_comparison_lays_the_figures_of_both_side_by_side(page):
    show_figures(page)
    page.wait_for_function("""() => {
        const boxes = [...document.images].filter(image => image.naturalWidth > 200).map(image => image.getBoundingClientRect());
        const [first, second, ...more] = boxes.filter(box => box.width > 0);
        return second && !more.length && first.y === second.y && first.right <= second.x;
    }""")


def test_the_curves_of_both_are_on_the_same_axes(page):
    sync_api.expect(draw_curves(page)).to_be_visible()


def test_a_chart_of_a_figure_shows_that_of_each_run(page):
    grid = draw(page, "^confusion_matrix$")
    sync_api.expect(grid.get_by_text("confusion_matrix", exact=True)).to_be_visible()
    wait_for_images(page, 2)


def test_the_predictions_of_both_are_in_one_table(page):
    page.locator("label:has(input[value=ARTIFACT])").click()
    sync_api.expect(page.get_by_text("predictions_table.json")).to_be_visible()
    sync_api.expect(page.get_by_role("row", name=re.compile("^image_id predicted .* finetuned .* baseline "))).to_be_visible()
    sync_api.expect(page.get_by_role("gridcell", name=re.compile(".png$")).first).to_be_visible()


def test_the_page_of_a_run_describes_it(page):
    link_to(page, "finetuned").click()
    sync_api.expect(page.get_by_text("classes, scored on")).to_be_visible()
    sync_api.expect(page.get_by_text("balanced_accuracy").first).to_be_visible()


@pytest.mark.slow
def test_the_picture_of_the_readme_shows_curves_and_figures(page, tmp_path):
    draw_curves(page).locator('[data-component-id="fullscreen_button_chartcard"]').click()
    sync_api.expect(page.get_by_role("dialog").get_by_text("finetuned (val_loss)")).to_be_visible()
    take(page, tmp_path / "curves.png", 500)
    page.keyboard.press("Escape")
    page.locator("label:has(input[value=TABLE])").click()
    show_figures(page)
    page.get_by_role("button", name="Artifacts").evaluate("section => section.scrollIntoView()")
    take(page, tmp_path / "figures.png", 680)
    picture = (ROOT / "docs" if OF_THIS_CHECKOUT else tmp_path) / "mlflow.png"
    stack([tmp_path / "curves.png", tmp_path / "figures.png"], picture)
    with Image.open(picture) as image:
        assert image.size == (1400, 1180)
    assert picture.stat().st_size < 300_000 or not OF_THIS_CHECKOUT


def take(page, path, height):
    """Take a picture of the window at that height, after charts and pictures have followed its size."""
    page.set_viewport_size({"width": 1400, "height": height})
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)
    page.screenshot(path=path)


def stack(paths, target):
    """One PNG of several, from top to bottom, in 256 colours."""
    shots = [Image.open(path).convert("RGB") for path in paths]
    whole = Image.new("RGB", (shots[0].width, sum(shot.height for shot in shots)))
    for index, shot in enumerate(shots):
        whole.paste(shot, (0, sum(before.height for before in shots[:index])))
    whole.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
