"""Embed the train and val pictures: run the frozen backbone once on each picture and store its features."""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.core import stage
from pipeline.core.files import atomic_dir, read_json, write_json, write_table
from pipeline.core.hardware import keep_freed_memory
from pipeline.networks.embedding import EmbedParams, are_tiny, embed, embed_on_ray, export_backbone, preprocessing_of
from pipeline.networks.onnx_file import open_session, read_facts, spread
from pipeline.networks.zoo import Architecture
from pipeline.pictures.images import square_batches
from pipeline.pictures.manifest import read_manifest
from pipeline.training.image_size import choose_image_size

_CHECKED = 8  # pictures on which the export is compared with torch


class Params(EmbedParams):
    """Section `embed` of params.yaml."""

    cluster: Literal["ray"] | None


def run(params: Params, train: Path, val: Path, manifest: Path, backbone: Path, embeddings: Path) -> None:
    """Resolve the image size, export the backbone, embed the pictures, and write the folder `embeddings`."""
    keep_freed_memory()
    facts = read_json(backbone / "backbone.json")
    table = read_manifest(manifest)
    choice = choose_image_size(params.image_size, backbone, table.train, train, params.threads)
    architecture = Architecture(**facts["architecture"])
    preprocessing = preprocessing_of(architecture, choice.side)
    pictures = [*table.train, *table.val]
    paths = [train / picture.path for picture in table.train] + [val / picture.path for picture in table.val]
    checked = [paths[index] for index in spread(len(paths), _CHECKED)]
    sample = next(square_batches(checked, preprocessing, _CHECKED, params.threads, "check"))
    onnx_path = export_backbone(backbone, choice.side, sample, params.threads)
    if params.cluster:
        embed_on_ray(paths, preprocessing, params.batch_size, params.threads, onnx_path, backbone)
    features, new = embed(paths, preprocessing, params.batch_size, params.threads, onnx_path, backbone)
    print(f"embed: {new:,} pictures embedded, {len(paths) - new:,} from the cache", file=sys.stderr)
    with atomic_dir(embeddings) as partial:
        np.save(partial / "features.npy", features)
        write_table(partial / "image_ids.csv", ["image_id"], [{"image_id": picture.image_id} for picture in pictures])
        for path in onnx_path.parent.iterdir():  # the graph, and the tensors beside it if it is large
            shutil.copyfile(path, partial / path.name)
        tiny = are_tiny(table.train, architecture.image_size)
        size = read_facts(open_session(onnx_path, params.threads))["size"]
        found = {"preprocessing": asdict(preprocessing), "image_sizes": choice.trials, "tiny": tiny, "size": size}
        write_json(partial / "embedding.json", found)


if __name__ == "__main__":
    stage.main("embed", Params, run)
