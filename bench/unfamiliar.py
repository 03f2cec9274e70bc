"""Which distance tells foreign pictures from known ones best, and does it call as many known ones unfamiliar as stated?

    python bench/unfamiliar.py

In a fresh clone per data set (digits, and an archive of ants and bees) the baseline and the fine-tuned model are trained as usual. On the
features of each stored model three distances are fitted to the same train pictures: to the k-th nearest neighbour on normalised features
(Sun et al., 2022), which the pipeline uses; Mahalanobis (Lee et al., 2018); relative Mahalanobis (Ren et al., 2021). The covariance is
shared by the classes and shrunk (Ledoit and Wolf, 2004), the relative distance's both by the same amount. Foreign are 60 pictures of the
other data set and those of `foreign_sets`. The threshold comes from val, the rate of false alarms from test; `resplit`: its mean over
1,000 random splits of both. Prints tables and writes the key `unfamiliar` of bench/results.json.
"""

import argparse
import datetime
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from projects import ROOT, call, dvc
from run import ARCHIVE, RESULTS, hardware, versions

from pipeline.core.files import write_json
from pipeline.core.sections import read_section
from pipeline.evaluation.foreign import area_between, area_interval, foreign_sets
from pipeline.evaluation.intervals import proportion_interval
from pipeline.networks.onnx_file import spread
from pipeline.networks.unfamiliar import References, choose_references, conformal_quantile, normalise
from pipeline.pictures.images import Array, Source, square_batches
from pipeline.pictures.manifest import read_manifest
from pipeline.serving.predictor import Predictor
from pipeline.sources.members import Limits
from pipeline.sources.source import find_source, measure_digest

PICTURES = 60  # of each foreign set
MODELS = ("baseline", "finetuned")
THREADS, CONFIDENCE, RESPLITS = 2, 0.95, 1000
Distance = Callable[[Array], Array]  # from features, float (N, D), to distances, float (N,)


def nearest(features: Array, labels: Array, neighbours: int) -> Distance:
    """1 - cosine to the k-th nearest neighbour."""
    return References(normalise(features), neighbours).distances


def mahalanobis(features: Array, labels: Array, *, relative: bool = False) -> Distance:
    """The squared distance from the nearest class mean; `relative`: less that from the mean of all under the covariance of all."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    means = np.stack([features[labels == label].mean(axis=0) for label in np.unique(labels)])
    residuals, mean = (features - means[np.unique(labels, return_inverse=True)[1]]).astype(np.float64), features.mean(axis=0)
    amount = ledoit_wolf_shrinkage(residuals, assume_centered=True)
    ridge = amount * (residuals**2).mean()
    whiten, whiten_all = (_whitening(each, amount, ridge) for each in (residuals, (features - mean).astype(np.float64)))

    def distances(others: Array) -> Array:
        own = np.min([((others - each) @ whiten) ** 2 @ np.ones(whiten.shape[1]) for each in means], axis=0)
        return np.asarray(own - relative * (((others - mean) @ whiten_all) ** 2).sum(axis=1))

    return distances


def _whitening(residuals: Array, amount: float, ridge: float) -> Array:
    """The matrix W with W Wᵀ the inverse of (1 - amount) covariance + ridge."""
    values, vectors = np.linalg.eigh((1 - amount) * residuals.T @ residuals / len(residuals) + ridge * np.eye(residuals.shape[1]))
    return np.asarray(vectors / np.sqrt(np.maximum(values, 1e-12 * values.max())))


def methods(features: Array, labels: Array, neighbours: int) -> dict[str, Distance]:
    """Each distance, fitted on features of train pictures."""
    return {
        "nearest neighbours": nearest(features, labels, neighbours),
        "Mahalanobis": mahalanobis(features, labels),
        "relative Mahalanobis": mahalanobis(features, labels, relative=True),
    }


def train(source: str, folder: Path, models: Sequence[str]) -> None:
    """Make a project of a data set, with these models."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    digest = measure_digest(find_source(source), (), read_section("download.limits", Limits, ROOT / "params.yaml"))
    params["download"] |= {"source": source, "digest": digest}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    call(dvc("repro", "train" if "finetuned" in models else "train_baseline"), folder)


def outputs_of(predictor: Predictor, sources: Sequence[Source]) -> tuple[Array, Array]:
    """Features, float32 (pictures, D), and unfamiliarity, float32 (pictures,)."""
    runs = [
        predictor.run(pixels, "features", "unfamiliarity")
        for pixels in square_batches(sources, predictor.preprocessing, 32, THREADS, "embed")
    ]
    return np.concatenate([run.features for run in runs]), np.concatenate([run.unfamiliarity for run in runs])


def resplit_rate(val: Array, test: Array, rate: float) -> float:
    """The mean rate of false alarms over random splits of the distances of val and test pictures."""
    generator, both, rates = np.random.default_rng(0), np.concatenate([val, test]), []
    for _ in range(RESPLITS):
        drawn = generator.permutation(both)
        threshold = conformal_quantile(drawn[: len(val)], [str(number) for number in range(len(val))], rate)
        rates.append((drawn[len(val) :] > threshold).mean())
    return float(np.mean(rates))


def measure(project: Path, model: str, others: Mapping[str, Sequence[Source]]) -> dict[str, Any]:
    """The figures of each method on a model of a project. `others`: pictures of other data sets."""
    predictor, table = Predictor.load(project / f"models/{model}/model.onnx", THREADS), read_manifest(project / "data/manifest.csv")
    facts = predictor.facts["unfamiliar"]
    rows = choose_references(table.labels(table.train), facts["references"])
    splits = {"train": [table.train[row] for row in rows], "val": table.val, "test": table.split("test")}
    sources = {name: [picture.source(project / "data/splits" / name) for picture in part] for name, part in splits.items()}
    features = {name: outputs_of(predictor, part) for name, part in sources.items()}
    foreign = {
        name: outputs_of(predictor, part) for name, part in {**others, **dict(foreign_sets(predictor.facts["learned"], PICTURES))}.items()
    }
    figures = {}
    fitted = methods(features["train"][0], np.array(table.labels(splits["train"])), facts["neighbours"])
    for method, distance in fitted.items():
        val, test = (distance(features[name][0]) for name in ("val", "test"))
        threshold = conformal_quantile(val, [picture.group for picture in table.val], facts["false_alarm_rate"])
        alarms = test > threshold
        figures[method] = {
            "on_test": _figure(alarms.mean(), *proportion_interval(alarms, np.arange(len(alarms)), CONFIDENCE)),
            "resplit": round(resplit_rate(val, test, facts["false_alarm_rate"]), 4),
            "sets": {name: _of_set(test, distance(found[0]), threshold) for name, found in foreign.items()},
        }
        if method == "nearest neighbours":  # the stored output is this distance
            np.testing.assert_allclose(test / threshold, features["test"][1], rtol=1e-3, atol=1e-4)
    pictures = {name: len(part) for name, part in splits.items()}
    return {"pictures": pictures, "neighbours": facts["neighbours"], "stated": facts["false_alarm_rate"], "methods": figures}


def _of_set(known: Array, foreign: Array, threshold: float) -> dict[str, Any]:
    area, detected = area_between(known, foreign), foreign > threshold
    return {
        "auroc": _figure(area, *area_interval(area, len(known), len(foreign), CONFIDENCE)),
        "detected": _figure(detected.mean(), *proportion_interval(detected, np.arange(len(detected)), CONFIDENCE)),
    }


def _figure(value: float, low: float, high: float) -> dict[str, float]:
    return {name: round(float(number), 4) for name, number in (("value", value), ("low", low), ("high", high))}


def area_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """AUROC and its interval by model, foreign set and method, in Markdown."""
    titles = list(next(iter(rows.values()))["methods"])
    lines = [f"| model | foreign pictures | {' | '.join(titles)} |", "| --- " * (len(titles) + 2) + "|"]
    for name, row in rows.items():
        for each in row["methods"][titles[0]]["sets"]:
            cells = [_cell(row["methods"][title]["sets"][each]["auroc"]) for title in titles]
            lines.append(f"| {name} | {each} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rate_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The stated and the found rate of false alarms of the stored output, and the share of each foreign set that it detects."""
    lines = ["| model | val pictures | stated | on test | resplit | detected |", "| --- " * 6 + "|"]
    for name, row in rows.items():
        found = row["methods"]["nearest neighbours"]
        detected = ", ".join(f"{each} {figures['detected']['value']:.2f}" for each, figures in found["sets"].items())
        lines.append(
            f"| {name} | {row['pictures']['val']} | {row['stated']:.3f} | {_cell(found['on_test'])} | {found['resplit']:.3f} | {detected} |"
        )
    return "\n".join(lines)


def _cell(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def main() -> None:
    """Run, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, default=ARCHIVE, help="of labelled pictures (default: %(default)s)")
    parser.add_argument("--projects", type=Path, help="a folder with projects that an earlier run made, and where they are made otherwise")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = parsed.projects or Path(temporary)
        projects = {"digits": folder / "digits", "hymenoptera": folder / "hymenoptera"}
        for name, source in zip(projects, ("digits", str(parsed.archive.resolve())), strict=True):
            if not projects[name].is_dir():
                train(source, projects[name], parsed.models)
        rows: dict[str, Any] = {}
        for name, project in projects.items():
            others = {other: _pictures(projects[other]) for other in projects if other not in (name, "digits")}
            rows |= {f"{name}, {model}": measure(project, model, others) for model in parsed.models}
    facts = {"date": datetime.date.today().isoformat(), "hardware": hardware(), "versions": versions()}
    write_json(RESULTS, {**json.loads(RESULTS.read_text(encoding="utf-8")), "unfamiliar": {**facts, "rows": rows}})
    print(area_table(rows), rate_table(rows), sep="\n\n")


def _pictures(project: Path) -> list[Source]:
    """Some test pictures of a project."""
    test = read_manifest(project / "data/manifest.csv").split("test")
    return [test[number].source(project / "data/splits/test") for number in spread(len(test), PICTURES)]


if __name__ == "__main__":
    main()
