"""`pipeline export-folders`: trees that torchvision reads, of pictures in trees and in shards."""

import shutil
from pathlib import Path

import pytest
import yaml
from torchvision.datasets import ImageFolder

from pipeline.__main__ import main
from pipeline.pictures.manifest import read_manifest
from pipeline.stages import split
from tests import projects

OUTS = ("data/splits", "data/manifest.csv", "data/quarantine.csv", "data/audit.json")


@pytest.mark.parametrize("folders_up_to", [0, 1000])
def test_every_picture_is_in_its_split_and_class(in_small_project, folders_up_to):
    params = {**projects.PARAMS, "split": {**projects.PARAMS["split"], "folders_up_to": folders_up_to}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    projects.run(split, "split", "data/raw", *OUTS)
    main(["export-folders", "exported"])
    manifest = read_manifest(Path("data/manifest.csv"))
    for name in ("train", "val", "test"):
        pictures, found = manifest.split(name), ImageFolder(f"exported/{name}")
        assert {path: Path(path).read_bytes() for path, _ in found.samples} == {
            f"exported/{name}/{each.path}": Path("pictures", each.image_id).read_bytes() for each in pictures
        }
        assert found.classes == manifest.class_names


def test_a_copy_that_is_changed_leaves_the_projects_own_picture_as_it_is(in_small_project):
    main(["export-folders", "exported", "--split", "val"])
    path = next(Path("exported/val").rglob("*.png"))
    path.write_bytes(b"changed")
    assert Path("data/splits", path.relative_to("exported")).read_bytes() != b"changed"


def test_nothing_is_left_where_a_picture_is_missing(in_small_project):
    shutil.rmtree("data/splits/test")
    with pytest.raises(SystemExit):
        main(["export-folders", "exported"])
    assert not Path("exported").exists()
