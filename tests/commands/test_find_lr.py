"""`pipeline find-lr`: what it finds and draws, what it needs, and what it says where that is not there."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from pipeline.__main__ import main
from tests.commands.test_tune import enter, project  # noqa: F401 - a fixture


def test_the_rate_is_named_and_the_curve_drawn(project, tmp_path, monkeypatch, capsys):  # noqa: F811
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    enter(folder, monkeypatch)
    before = (folder / "params.yaml").read_bytes()
    main(["find-lr", "--steps", "20", "--output", "curve.png"])
    rate, path = capsys.readouterr().out.splitlines()
    assert 0 < float(re.fullmatch(r"models\.finetuned\.learning_rate: (\S+)", rate)[1]) < 1
    assert path == str(folder / "curve.png")
    with Image.open(folder / "curve.png") as picture:
        assert picture.size == (780, 504)
        assert np.asarray(picture.convert("L")).min() < 255
    assert (folder / "params.yaml").read_bytes() == before


@pytest.fixture
def params_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "params.yaml").write_text("seed: 0\nrecipe: {}\nmodels: {finetuned: {regime: finetuned}, partial: {regime: partial}}\n")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["another"], "find-lr another: is no entry of `models` in params.yaml; there: finetuned, partial"),
        (["--steps", "3"], "--steps: 3 is not at least 20"),
        ([], "data/manifest.csv: is not there; run `dvc repro`"),
    ],
)
@pytest.mark.usefixtures("params_alone")
def test_what_is_missing_or_wrong_is_one_line(arguments, fault, capsys):
    with pytest.raises(SystemExit) as end:
        main(["find-lr", *arguments])
    assert end.value.code == 1
    assert capsys.readouterr() == ("", fault + "\n")


@pytest.mark.usefixtures("params_alone")
def test_a_picture_of_another_kind_is_refused_before_anything_is_trained(capsys):
    with pytest.raises(SystemExit) as end:
        main(["find-lr", "--output", "curve.svg"])
    assert end.value.code == 2
    assert "'curve.svg' does not end in .png" in capsys.readouterr().err
