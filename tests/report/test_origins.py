"""The provenance of a report: every digest, every version."""

import platform
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

from pipeline.core.files import sha256_of, write_json
from pipeline.report.page import input_digests, library_versions

SOURCE = {"digest": "a" * 64, "raw_digest": "b" * 64}


def make_digests(root, weights="c" * 64):
    (root / "manifest.csv").write_bytes(b"manifest")
    (root / "predictions.csv").write_bytes(b"predictions")
    write_json(root / "scores.json", {"model_sha256": "d" * 64})
    return input_digests(SOURCE, {"weights": {"sha256": weights}}, root, {"baseline": root})


def test_there_is_a_digest_of_everything_from_the_pictures_to_the_predictions(tmp_path):
    assert make_digests(tmp_path) == {
        "pictures (download.digest)": "a" * 64,
        "data/raw": "b" * 64,
        "data/manifest.csv": sha256_of(b"manifest"),
        "backbone weights": "c" * 64,
        "models/baseline/model.onnx": "d" * 64,
        "results/baseline/predictions.csv": sha256_of(b"predictions"),
    }


def test_random_weights_have_no_digest(tmp_path):
    assert make_digests(tmp_path, None)["backbone weights"].startswith("none")


def test_the_versions_are_those_of_python_and_of_every_required_library():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    names = [re.match(r"[\w-]+", each).group() for each in project["dependencies"]]
    assert library_versions() == {"python": platform.python_version(), **{name: version(name) for name in names}}
