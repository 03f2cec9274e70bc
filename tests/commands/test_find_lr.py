"""`pipeline find-lr`: what it needs, and what it says where that is not there."""

import pytest

from pipeline.__main__ import main


@pytest.fixture(autouse=True)
def inside_a_project(tmp_path, monkeypatch):
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
def test_what_is_missing_or_wrong_is_one_line(arguments, fault, capsys):
    with pytest.raises(SystemExit) as end:
        main(["find-lr", *arguments])
    assert end.value.code == 1
    assert capsys.readouterr() == ("", fault + "\n")


def test_a_picture_of_another_kind_is_refused_before_anything_is_trained(capsys):
    with pytest.raises(SystemExit) as end:
        main(["find-lr", "--output", "curve.svg"])
    assert end.value.code == 2
    assert "'curve.svg' does not end in .png" in capsys.readouterr().err
