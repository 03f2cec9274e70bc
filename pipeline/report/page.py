"""The report: one HTML page that needs no network and no script."""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.files import atomic_dir, read_json, sha256_of_file
from pipeline.evaluation.figures import plot_curves
from pipeline.evaluation.galleries import TITLES
from pipeline.evaluation.intervals import Array
from pipeline.report import charts

if TYPE_CHECKING:
    from jinja2 import Environment

CsvRow = Mapping[str, str]
Facts = Mapping[str, Any]
Size = tuple[int, int]  # width and height in pixels
_GALLERY_PICTURES = 24  # per gallery, over all models; at least four and at most twelve per model
_PREVIEW = 12
_MOST_ROWS = 100  # of a table of classes
_TINY = 48  # pixels; smaller pictures are enlarged without smoothing
# name in scores.json: title and meaning
FIGURES = {
    "top1_accuracy": ("Top-1 accuracy", "share of pictures whose predicted class is correct; 1 is best"),
    "top5_accuracy": ("Top-5 accuracy", "share of pictures whose class is among the five most probable; 1 is best"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall of the classes, so rare classes count as much as common ones; 1 is best"),
    "macro_f1": ("Macro F1", "mean F1 of the classes; 1 is best"),
    "roc_auc": ("ROC AUC", "how well each class is ranked above the others, mean over the classes; 1 is best, 0.5 is chance"),
    "pr_auc": ("PR AUC", "area under the precision-recall curve, mean over the classes; 1 is best"),
    "log_loss": ("Log loss", "mean of -log of the true class's probability, in nats; 0 is best"),
    "brier": ("Brier score", "mean squared distance between probabilities and truth; 0 is best, 2 is worst"),
    "ece": ("Calibration error (ECE)", "average gap between confidence and accuracy; 0 is best"),
}


@dataclass(frozen=True)
class Model:
    """What the page shows of a model: its `scores.json`, `model.json` (`facts`), tables as rows, and `galleries.json`.

    `confusion`: class names and counts; `comparison`: with the baseline, plus its `verdict`; None for the baseline itself.
    """

    name: str
    scores: Facts
    facts: Facts
    history: Sequence[CsvRow]
    confusion: tuple[Sequence[str], Array]
    reliability: Sequence[CsvRow]
    reliability_before: Sequence[CsvRow]
    coverage: Sequence[CsvRow]
    galleries: Facts
    comparison: Facts | None = None

    @property
    def training_charts(self) -> list[charts.Chart]:
        """Loss and accuracy by epoch."""
        return charts.curves(self.history)

    @property
    def calibration_charts(self) -> list[charts.Chart]:
        """Reliability, and accuracy by coverage."""
        return [charts.reliability(self.reliability, self.reliability_before), charts.coverage(self.coverage)]

    @cached_property
    def drawn_matrix(self) -> charts.Matrix | None:
        """The confusion matrix as a drawing; None if there are too many classes."""
        return charts.lay_out(*self.confusion) if len(self.confusion[0]) <= charts.MOST_DRAWN else None

    @property
    def pixels(self) -> str:
        """The confusion matrix of many classes as a data URL."""
        return charts.draw_pixels(self.confusion[1])

    @property
    def confused(self) -> list[charts.Confusion]:
        """The most frequent mistakes."""
        return charts.most_confused(*self.confusion)

    @property
    def weakest_first(self) -> list[tuple[str, Facts]]:
        """The figures per class, the lowest F1 first. Classes without one are last."""
        values = {label: facts["f1"]["value"] for label, facts in self.scores["classes"].items()}
        return sorted(self.scores["classes"].items(), key=lambda pair: (values[pair[0]] is None, values[pair[0]]))

    @property
    def f1_start(self) -> float:
        """The start of the axis of the classes' F1."""
        return charts.whisker_scale(facts["f1"]["low"] for facts in self.scores["classes"].values())


@dataclass(frozen=True)
class Report:
    """The content of the page.

    `models`: the baseline first; `embedding`: the content of embedding.json; `sizes`: of the smallest and the largest picture; `doubts`:
    rows of out_of_fold.csv, each with a `thumbnail`; `against_best`: sentences; `montage`: data URLs by class; `digests`, `versions`: by
    name.
    """

    models: Sequence[Model]
    source: Facts
    backbone: Facts
    embedding: Facts
    audit: Facts
    sizes: tuple[Size, Size]
    doubts: Sequence[CsvRow]
    against_best: Sequence[str]
    montage: Mapping[str, Sequence[str]]
    digests: Mapping[str, str]
    versions: Mapping[str, str]

    @property
    def preview(self) -> list[str]:
        """The first twelve pictures of the montage, one per class in turn."""
        most = max(map(len, self.montage.values()), default=0)
        return [urls[number] for number in range(most) for urls in self.montage.values() if number < len(urls)][:_PREVIEW]


def library_versions() -> dict[str, str]:
    """The installed versions of Python and of every library that the project requires, without those of its extras."""
    names = [re.split(r"[^\w.-]", each)[0] for each in requires("transfer-pipeline") or () if "extra ==" not in each]
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def input_digests(source: Facts, backbone: Facts, data: Path, results: Mapping[str, Path]) -> dict[str, str]:
    """The sha256 of each input and of each model's files, by name. `results`: the folder of each model."""
    return {
        "pictures (download.digest)": str(source["digest"]),
        "data/raw": str(source["raw_digest"]),
        "data/manifest.csv": sha256_of_file(data / "manifest.csv"),
        "backbone weights": backbone["weights"]["sha256"] or "none: random weights",
        **{f"models/{name}/model.onnx": read_json(folder / "scores.json")["model_sha256"] for name, folder in results.items()},
        **{f"results/{name}/predictions.csv": sha256_of_file(folder / "predictions.csv") for name, folder in results.items()},
    }


@cache
def templates() -> "Environment":
    """The templates of this folder, which escape every value."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"three": three, "interval": interval, "points": points, "share": share}
    return environment


def write_page(folder: Path, report: Report) -> None:
    """Write `index.html`, which contains all of its pictures, and `curves.png`. All names are escaped."""
    first = report.models[0].scores
    html = templates().get_template("page.html").render(
        report=report, models=report.models, scores=first, audit=report.audit,
        figures={name: words for name, words in FIGURES.items() if name in first["figures"]}, titles=TITLES,
        shown_pictures=max(4, min(12, _GALLERY_PICTURES // len(report.models))), along=charts.percent_along,
        accuracy_start=charts.whisker_scale(model.scores["figures"]["top1_accuracy"]["low"] for model in report.models),
        tiny=report.audit["median_width"] < _TINY, charts=charts, most_rows=_MOST_ROWS,
    )  # fmt: skip
    with atomic_dir(folder) as partial:
        plot_curves(partial / "curves.png", {model.name: model.history for model in report.models})
        (partial / "index.html").write_text(html, encoding="utf-8")


def three(value: float | None) -> str:
    """A figure to three decimal places; a dash if it is undefined."""
    return "–" if value is None else f"{value:.3f}"


def interval(figure: Mapping[str, float | None]) -> str:
    """The interval of a figure: `0.901 to 0.974`; empty if it is undefined."""
    low, high = figure["low"], figure["high"]
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def share(value: float) -> str:
    """A share in percent: `97.8 %`."""
    return f"{100 * value:.1f} %"


def points(places: Sequence[tuple[float, float]]) -> str:
    """Coordinates as the `points` of an SVG polyline."""
    return " ".join(f"{x:g},{y:g}" for x, y in places)
