"""The page: its files, and what `/explain` answers."""

import base64
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from pipeline.pictures.images import Preprocessing
from pipeline.server import page
from pipeline.server.page import FILES, NO_HEAD, NO_MAP, seen_part
from tests.painted import BRIGHT_BLUE, RED, draw, load_all


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return load_all(tmp_path_factory.mktemp("models"))


# The files


@pytest.mark.parametrize(("path", "name"), [("", "index.html"), *((f"page/{name}", name) for name in FILES)])
def test_a_file_has_its_type_and_a_strict_policy_and_is_sent_again_only_if_it_changed(address, path, name):
    answer = requests.get(f"{address}/{path}", timeout=5)
    assert (answer.status_code, answer.headers["Content-Type"], answer.headers["Cache-Control"]) == (200, FILES[name], "no-cache")
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    again = requests.get(f"{address}/{path}", headers={"If-None-Match": answer.headers["ETag"]}, timeout=5)
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["page/", "page/page.py", "page/..%2fpage.py", "page/%2e%2e/page.py"])
def test_no_other_file_is_sent(address, path):
    assert requests.get(f"{address}/{path}", timeout=5).status_code == 404


def test_every_file_of_the_folder_is_named():
    assert {path.name for path in (Path(page.__file__).parent / "page").iterdir()} == set(FILES)


# The activation map


def explain(address, content):
    return requests.post(f"{address}/explain", data=content, headers={"Content-Type": "image/png"}, timeout=5)


def brightness(png):
    """Of the pixels of a data URL: float (height, width)."""
    with Image.open(io.BytesIO(base64.b64decode(png.partition(",")[2]))) as image:
        return np.asarray(image.convert("L"), float)


def test_a_map_is_bright_where_the_evidence_is(address):
    answer = explain(address, draw(RED)).json()
    assert (answer["predicted"], answer["reason"], answer["model"]["name"]) == ("red", None, "painted")
    found = brightness(answer["activation_map"]["png"])
    assert found[:80].min() > 200 > 30 > found[150:].max()


def test_a_map_covers_the_part_that_the_network_sees(address):
    part = explain(address, draw(RED, width=64, height=32)).json()["activation_map"]
    assert [part[side] for side in ("left", "top", "width", "height")] == [0.25, 0, 0.5, 1]


@pytest.mark.parametrize(
    ("mode", "expected"), [("center", (0.3, 0.1, 0.4, 0.8)), ("squash", (0.1, 0.1, 0.8, 0.8)), ("border", (0.1, -0.3, 0.8, 1.6))]
)
def test_the_seen_part_depends_on_the_crop(mode, expected):
    part = seen_part((200, 100), Preprocessing(image_size=32, crop=0.8, interpolation="bilinear", crop_mode=mode))
    assert [part[side] for side in ("left", "top", "width", "height")] == pytest.approx(expected)


def test_probability_and_unfamiliarity_are_those_of_predict(address):
    content = draw(BRIGHT_BLUE)
    explained = explain(address, content).json()
    (predicted,) = requests.post(f"{address}/predict", data=content, headers={"Content-Type": "image/png"}, timeout=5).json()["predictions"]
    assert predicted["unfamiliarity"] > 1
    assert {key: explained[key] for key in ("predicted", "probability", "unfamiliarity")} == {
        key: predicted[key] for key in ("predicted", "probability", "unfamiliarity")
    }


def test_invocations_say_what_predict_says_of_unfamiliar_pictures(address):
    contents = [draw(BRIGHT_BLUE), draw(RED)]
    cells = [{"picture": base64.b64encode(content).decode()} for content in contents]
    rows = requests.post(f"{address}/invocations", json={"dataframe_records": cells}, timeout=5).json()["predictions"]
    said = [requests.post(f"{address}/predict", data=each, timeout=5).json()["predictions"][0]["unfamiliar"] for each in contents]
    assert [row["unfamiliar"] for row in rows] == said == [True, False]


@pytest.mark.parametrize(("name", "reason"), [("painted", None), ("plain", NO_MAP), ("headless", NO_HEAD)])
def test_a_model_without_a_map_says_so(address, serve, name, reason):
    serve(name)
    answer = explain(address, draw(RED)).json()
    assert (answer["activation_map"] is None, answer["reason"], answer["predicted"]) == (reason is not None, reason, "red")
    assert requests.get(f"{address}/explain", timeout=5).json()["reason"] == reason


def test_a_broken_picture_and_two_pictures_are_refused_in_a_sentence(address):
    broken = explain(address, b"not a picture")
    assert (broken.status_code, broken.json()["error"]) == (422, "not a picture")
    two = requests.post(f"{address}/explain", files=[("a", draw(RED)), ("b", draw(RED))], timeout=5)
    assert two.status_code == 413


def test_the_colours_are_those_of_matplotlib():
    from matplotlib import colormaps

    wanted = 255 * colormaps["inferno"](np.arange(256))[:, :3]
    assert np.abs(np.frombuffer(page._palette(), np.uint8).reshape(-1, 3) - wanted).max() < 8


def test_importing_it_imports_neither_torch_nor_matplotlib():
    code = "import sys, pipeline.server.page; print([name for name in ('torch', 'matplotlib', 'mlflow', 'pandas') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
