"""`pipeline find-lr`: the rate and the curve, and the faults of its arguments."""

import re

import numpy as np
import pytest
from PIL import Image

from pipeline.__main__ import main
from tests.checkout import ROOT


def test_the_rate_is_printed_and_the_curve_drawn(in_small_project, capsys):
    folder = in_small_project
    before = (folder / "params.yaml").read_bytes()
    main(["find-lr", "--steps", "20", "--output", "curve.png"])
    output = capsys.readouterr().out.replace(str(folder), "FOLDER")
    rate = re.search(r"learning_rate: (\S+)", output)[1]
    assert 0 < float(rate) < 1
    assert output.replace(rate, "RATE") == (ROOT / "tests/golden/find-lr.txt").read_text()
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
        (["another"], "find-lr another: .* finetuned, partial"),
        (["--steps", "3"], "--steps: 3 .* 20"),
        ([], "data/manifest.csv: .* `dvc repro`"),
    ],
)
@pytest.mark.usefixtures("params_alone")
def test_what_is_missing_or_wrong_is_one_line(arguments, fault, capsys):
    with pytest.raises(SystemExit) as end:
        main(["find-lr", *arguments])
    assert end.value.code == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert re.fullmatch(fault + "\n", errors)


@pytest.mark.usefixtures("params_alone")
def test_a_picture_of_another_kind_is_refused_before_anything_is_trained(capsys):
    with pytest.raises(SystemExit) as end:
        main(["find-lr", "--output", "curve.svg"])
    assert end.value.code == 2
    assert "'curve.svg' does not end in .png" in capsys.readouterr().err
