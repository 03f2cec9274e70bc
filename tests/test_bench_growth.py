"""The growth of the stages: pictures that are all different, commands that are all measured, and ratios worked by hand."""

import importlib
import io
import json
import shutil
import zipfile
from types import ModuleType

import pytest
import yaml
from PIL import Image

from tests.conftest import ROOT


@pytest.fixture
def growth(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))  # its scripts import each other as they do when they are run
    return importlib.import_module("growth")


def sizes_of(growth, *seconds):
    """Sizes of 10, 100 and 1,000 pictures whose parts all took the same seconds."""
    names = (*growth.STAGES, growth.DVC, growth.ALL)
    return [
        {"pictures": 10**power, "seconds": dict.fromkeys(names, value), "megabytes": dict.fromkeys([*growth.STAGES, growth.ALL], 50)}
        for power, value in enumerate(seconds, start=1)
    ]


def test_the_pictures_of_a_set_are_different_jpeg_files_in_ten_folders(growth, tmp_path):
    growth.write_pictures(tmp_path / "pictures.zip", 40, 64)
    with zipfile.ZipFile(tmp_path / "pictures.zip") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert len(set(contents.values())) == 40
    assert len({name.partition("/")[0] for name in contents}) == 10
    with Image.open(io.BytesIO(contents["class0/0000000.jpg"])) as picture:
        assert (picture.format, picture.size) == ("JPEG", (64, 64))


def test_each_stage_of_the_flow_reports_its_figures(growth, tmp_path):
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    growth.measure_stages(tmp_path, tmp_path / "reports")
    before, after = (yaml.safe_load((folder / "dvc.yaml").read_text())["stages"] for folder in (ROOT, tmp_path))
    for name in ("download", "backbone", "split", "embed", "train_baseline", "evaluate", "evaluate_baseline"):
        head, _, own = after[name]["cmd"].partition(".json ")
        assert (own, head.rpartition("/")[2]) == (before[name]["cmd"], name.removesuffix("_baseline") if name[0] == "e" else name)


@pytest.mark.parametrize(
    ("seconds", "ratio", "added"),
    [
        ((1, 10, 100), 1.0, 1.0),  # linear
        ((6, 15, 105), 0.7, 1.0),  # linear, after 5 s for whatever size
        ((1, 10, 1000), 10.0, 11.0),  # 990 s for 900 pictures, after 9 s for 90
        ((3, 2, 40), 2.0, None),
        ((5, 100), 2.0, None),
    ],
)
def test_growth_is_a_ratio_of_seconds_per_picture_and_per_additional_picture(growth, seconds, ratio, added):
    sizes = sizes_of(growth, *seconds)
    assert (growth.ratio(sizes, growth.ALL), growth.added_ratio(sizes, growth.ALL)) == (ratio, added)


def test_the_table_has_a_row_per_stage_and_the_plot_is_drawn(growth, tmp_path):
    sizes = sizes_of(growth, 1, 10, 200)
    head, _, *rows = growth.rows_of(sizes)
    assert [len(row) for row in rows] == [len(head)] * 8
    assert rows[0] == ["download", "1.0", "10.0", "200.0", "200.00", "2.00", "2.11", "50", "50", "50"]
    growth.draw(sizes, tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as plot:
        assert plot.size == (1320, 660)


def test_the_docs_quote_the_table_of_the_stored_sizes(growth):
    sizes = json.loads((ROOT / "bench/results.json").read_text())["growth"]["sizes"]
    assert "\n".join(f"| {' | '.join(row)} |" for row in growth.rows_of(sizes)) in (ROOT / "docs/scale.md").read_text()
