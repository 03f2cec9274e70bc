"""Predictions by Ray: the bytes of the local command, also for pictures that cannot be read; the model is checked on each machine."""

import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of_file
from pipeline.pictures.images import Preprocessing, read_square
from pipeline.serving.remote import ChunkPredictor
from pipeline.sources.formats import encode_png
from tests.checkout import ROOT
from tests.stored import SIZE, write_model


def picture_bytes(number):
    return encode_png(np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8))


@pytest.fixture
def project(tmp_path):
    """A project with a model, to which one picture is familiar, and three pictures, one of them broken, and one whose name is not text."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text("threads: 1\n")
    familiar = read_square(picture_bytes(0), Preprocessing(SIZE, 1.0, "bicubic"))
    write_model(tmp_path / "models" / "baseline", familiar=familiar[None])
    for number, name in enumerate([b"a.png", b"\xff.png"]):
        (tmp_path / os.fsdecode(name)).write_bytes(picture_bytes(number))
    (tmp_path / "broken.png").write_text("hello")
    return tmp_path


def predict(project, stdin, *options, **variables):
    """Type `pipeline predict` for a list of paths in a process of its own: its exit code, stdout and stderr."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "DVC_ROOT"))}
    command = [sys.executable, "-m", "pipeline", "predict", "-", "--batch-size", "2", *options]
    environment = {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")]), **variables}
    ended = subprocess.run(command, cwd=project, env=environment, input=stdin, capture_output=True, check=False)
    return ended.returncode, ended.stdout, ended.stderr


def test_ray_gives_the_bytes_of_the_local_command_and_leaves_nothing_behind(project, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with tempfile.TemporaryDirectory(prefix="t") as short:  # the path of a socket has at most 107 bytes
        asked = project, b"a.png\nbroken.png\n\xff.png\n" * 50, "--unfamiliar", "refuse"  # three chunks
        local, by_ray = (
            predict(*asked, "--unfamiliar", "refuse"),
            predict(*asked, "--unfamiliar", "refuse", "--on", "ray", HOME=str(home), TMPDIR=short),
        )
        assert (os.listdir(short), os.listdir(home)) == ([], [])
    assert (local[0], local[1].count(b"\n")) == (3, 101)
    assert by_ray[:2] == local[:2]
    assert (local[1].count(b",true,"), local[1].count(b",,")) == (50, 50)  # every other picture is unfamiliar, and has no class
    assert by_ray[2].endswith(local[2])


def test_a_machine_with_another_model_file_is_refused(project):
    folder = project / "models" / "baseline"
    settings = (project, 0.0, 2, 1, False)
    ChunkPredictor(folder, sha256_of_file(folder / "model.onnx"), *settings)
    with pytest.raises(PipelineError, match="is another file on"):
        ChunkPredictor(folder, "0" * 64, *settings)
    with pytest.raises(PipelineError, match="is missing on"):
        ChunkPredictor(project, "0" * 64, *settings)


def test_without_ray_one_line_names_the_cure(project):
    (project / "ray.py").write_text("raise ImportError")
    code, _, err = predict(project, b"a.png", "--on", "ray")
    assert (code, err.decode()) == (1, "ray: the package is not installed; run `pip install -e '.[ray]'`\n")
