"""What a report was made from: every sum, every version, nothing of the machine."""

import platform
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

from pipeline.core.files import sha256_of, write_json
from pipeline.report.page import LIBRARIES, library_versions, sums

SOURCE = {"digest": "a" * 64, "raw_sha256": "b" * 64}


def make_sums(root, weights="c" * 64):
    (root / "manifest.csv").write_bytes(b"manifest")
    (root / "predictions.csv").write_bytes(b"predictions")
    write_json(root / "scores.json", {"model_sha256": "d" * 64})
    return sums(SOURCE, {"weights": {"sha256": weights}}, root, {"baseline": root})


def test_all_sums_are_told_from_the_pictures_to_the_answers(tmp_path):
    assert make_sums(tmp_path) == {
        "pictures (download.digest)": "a" * 64,
        "data/raw.zip": "b" * 64,
        "data/manifest.csv": sha256_of(b"manifest"),
        "backbone's weights": "c" * 64,
        "models/baseline/model.onnx": "d" * 64,
        "results/baseline/predictions.csv": sha256_of(b"predictions"),
    }


def test_weights_drawn_at_random_have_no_sum(tmp_path):
    assert make_sums(tmp_path, None)["backbone's weights"] == "none: drawn at random"


def test_the_versions_are_those_that_run():
    found = library_versions()
    assert list(found) == ["python", *LIBRARIES]
    assert (found["python"], found["numpy"]) == (platform.python_version(), version("numpy"))


def test_the_libraries_are_all_that_the_project_depends_on():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert list(LIBRARIES) == [re.match(r"[\w-]+", each).group() for each in project["dependencies"]]
