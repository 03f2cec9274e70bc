"""The data set as inputs of a run: one for each split, with a digest of the pictures in it."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.addresses import without_password
from pipeline.data.manifest import SPLITS, Picture, read_manifest
from pipeline.files import read_json, sha256_of_json

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run

_DIGEST_LENGTH = 16  # of sha256 in hex; MLflow takes 36, and its columns show so many
_NAME_LENGTH = 500
_SCHEMA = json.dumps({"image_id": "string", "path": "string", "sha256": "string", "label": "string", "width": "long", "height": "long"})


def run_inputs(manifest: Path, source_json: Path) -> list["DatasetInput"]:
    """An input for each split that has pictures. Its digest covers the pictures, their labels and all else that is said of them.

    A split whose pictures are the same has the same digest, whatever changed in the others.
    """
    source, pictures = read_json(source_json), read_manifest(manifest)
    splits = {split: [picture for picture in pictures if picture.split == split] for split in SPLITS}
    return [_input(source, split, pictures) for split, pictures in splits.items() if pictures]


def contradicts_inputs(run: "Run", wanted: list["DatasetInput"]) -> bool:
    """Whether the run names an input that is none of these."""
    logged = run.inputs.dataset_inputs if run.inputs else []
    found = {(entry.dataset.name, entry.dataset.digest) for entry in logged}
    return not found <= {(entry.dataset.name, entry.dataset.digest) for entry in wanted}


def _input(source: dict[str, Any], split: str, pictures: list[Picture]) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    title = without_password(source["source"])
    where = json.dumps({"uri": title, "licence": source["licence"]}, ensure_ascii=False)
    profile = json.dumps({"pictures": len(pictures), "classes": dict(sorted(Counter(picture.label for picture in pictures).items()))})
    rows = [[picture.image_id, picture.sha256, picture.label] for picture in pictures]
    digest = sha256_of_json([split, where, _SCHEMA, profile, rows])[:_DIGEST_LENGTH]  # MLflow keeps what it first heard of a digest
    dataset = Dataset(title[:_NAME_LENGTH], digest, "local", where, _SCHEMA, profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", split)])
