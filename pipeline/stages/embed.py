"""Embed the train and val pictures: run the frozen backbone once on each picture and store its features."""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from pydantic import PositiveInt

from pipeline.core import processes, stage
from pipeline.core.files import atomic_dir, read_json, write_json, write_table
from pipeline.core.hardware import keep_freed_memory
from pipeline.networks.embedding import EmbedParams, are_tiny, export_backbone, preprocessing_of
from pipeline.networks.features import Embedder, digests_of, embed_new, embed_on_ray, write_features
from pipeline.networks.onnx_file import open_session, read_facts, spread
from pipeline.networks.zoo import Architecture
from pipeline.pictures.images import square_batches
from pipeline.pictures.manifest import read_manifest
from pipeline.training.image_size import choose_image_size

_CHECKED = 8  # pictures on which the export is compared with torch


class Params(EmbedParams):
    """Section `embed` of params.yaml."""

    processes: PositiveInt


def run(params: Params, train: Path, val: Path, manifest: Path, backbone: Path, embeddings: Path) -> None:
    """Resolve the image size, export the backbone, embed the pictures, and write the folder `embeddings`."""
    keep_freed_memory()
    facts = read_json(backbone / "backbone.json")
    table = read_manifest(manifest)
    architecture = Architecture(**facts["architecture"])
    pictures = [*table.train, *table.val]
    paths = [picture.source(train) for picture in table.train] + [picture.source(val) for picture in table.val]
    checked = [paths[index] for index in spread(len(paths), _CHECKED)]
    with processes.leader_first():
        choice = choose_image_size(params.image_size, backbone, table.train, train, params.threads)
        preprocessing = preprocessing_of(architecture, choice.side)
        sample = next(square_batches(checked, preprocessing, _CHECKED, params.threads, "check"))
        onnx_path = export_backbone(backbone, choice.side, sample, params.threads)
    embedder, digests = Embedder(preprocessing, params.batch_size, params.threads, onnx_path, backbone), digests_of(paths)
    if params.cluster and processes.leads():
        embed_on_ray(paths, digests, embedder)
    new = embed_new(paths, digests, embedder)
    if not processes.leads():
        return
    print(f"embed: {new:,} pictures embedded, {len(paths) - new:,} from the cache", file=sys.stderr)
    with atomic_dir(embeddings) as partial:
        write_features(digests, embedder, partial / "features.npy")
        write_table(partial / "image_ids.csv", ["image_id"], [{"image_id": picture.image_id} for picture in pictures])
        for path in onnx_path.parent.iterdir():  # the graph, and the tensors beside it if it is large
            shutil.copyfile(path, partial / path.name)
        tiny = are_tiny(table.train, architecture.image_size)
        size = read_facts(open_session(onnx_path, params.threads))["size"]
        found = {"preprocessing": asdict(preprocessing), "image_sizes": choice.trials, "tiny": tiny, "size": size}
        write_json(partial / "embedding.json", found)


if __name__ == "__main__":
    stage.main("embed", Params, run)
