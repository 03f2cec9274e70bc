"""`pipeline results`, `audit`, `verify`, `models` and `summary`: print what the project contains."""

import argparse
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    from torch import nn

    from pipeline.stock.networks import ModelListing

METRICS = {"top1_accuracy": "top-1 accuracy", "balanced_accuracy": "balanced accuracy", "log_loss": "log loss", "ece": "ECE"}
_ADJUSTED = ", adjusted for the number of comparisons (Holm)"
_FINDINGS_SHOWN = 3  # per kind
_MODEL_COLUMNS = ("name", "library", "parameters", "GMACs", "px", "licence", "source", "on disk")
_NUMBERS = ("parameters", "GMACs", "px")
_WORD_LENGTH = 13  # of a licence or a source
_SUMMARY_COLUMNS = ("input_size", "output_size", "num_params", "trainable")


def align(rows: Sequence[Sequence[str]], numbers: Collection[str] = ()) -> list[str]:
    """One line per row, with aligned columns. The columns whose heading is in `numbers` are aligned on the right."""
    columns = [(max(map(len, column)), column[0] in numbers) for column in zip(*rows, strict=True)]
    cells = [[cell.rjust(width) if right else cell.ljust(width) for cell, (width, right) in zip(row, columns, strict=True)] for row in rows]
    return ["  ".join(row).rstrip() for row in cells]


def show_results(comparison_json: Path) -> str:
    """The scores of all models with intervals, the verdicts, and what to do next. Raises PipelineError."""
    from pipeline.core.files import read_json
    from pipeline.evaluation.comparison import verdict, verdicts_against_best

    if not comparison_json.is_file():
        raise PipelineError(f"{comparison_json}: does not exist; run `dvc repro`")
    comparison = read_json(comparison_json)
    pictures = comparison["test_pictures"]
    groups = f" in {comparison['test_groups']} groups" if comparison["test_groups"] < pictures else ""
    rows = [["model", *METRICS.values()]]
    rows += [[name, *(_figure(facts, column) for column in METRICS)] for name, facts in comparison["models"].items()]
    lines = [*align(rows), "", f"{pictures} test pictures{groups}; in brackets {100 * comparison['confidence']:g} % intervals."]
    for name, facts in comparison["models"].items():
        if facts["learned_test_pictures"]:
            lines.append(f"{name} learned from {facts['learned_test_pictures']} of the test pictures: its figures are too good.")
    for name, facts in comparison["differences"].items():
        lines += [
            verdict(name, facts, pictures),
            f"McNemar's exact test of {name}: p = {facts['mcnemar_p_adjusted']:.2g}{_ADJUSTED * (len(comparison['models']) > 2)}.",
        ]
        if facts["best_epoch"] == 0:
            lines.append(f"No epoch of {name} was better on val than its initial weights, which it kept.")
        if facts["last_epoch"] < facts["epochs"]:
            lines.append(
                f"The schedule of {name} was cut after {facts['last_epoch']} of {facts['epochs']} epochs: no later one was better on val."
            )
    lines += verdicts_against_best(comparison, pictures)
    return "\n".join([*lines, "", "Next: open report/index.html; `pipeline ui` for MLflow; change params.yaml and `dvc repro`."])


def _figure(facts: dict[str, Any], name: str) -> str:
    return interval(*(facts.get(f"{name}{end}") for end in ("", "_low", "_high")))


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A figure with its interval if it has one; a dash if it is undefined."""
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def add_audit(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("audit", help="print broken, duplicate and suspect pictures, and which of them were left out")
    parser.add_argument("--all", action="store_true", help=f"print every finding, not only the first {_FINDINGS_SHOWN} of each kind")
    parser.set_defaults(run=lambda parsed: print("\n".join(audit_lines(Path("data/audit.json"), None if parsed.all else _FINDINGS_SHOWN))))


def audit_lines(path: Path, shown: int | None) -> Iterator[str]:
    """The lines to print: how many pictures there are, then each kind of finding with the first of them. Raises PipelineError."""
    from pipeline.core.files import read_json

    if not path.is_file():
        raise PipelineError(f"{path}: does not exist; run `dvc repro`")
    audit = read_json(path)
    yield f"{audit['pictures']} pictures are used, {audit['quarantined']} left out."
    for kind, facts in audit["kinds"].items():
        findings = [finding for finding in audit["findings"] if finding["kind"] == kind]
        if findings:
            yield f"\n{facts['title']}: {len(findings)}, {facts['fate']}"
        for finding in findings[:shown]:
            yield f"  {finding['sentence']}"
        if len(findings) > len(findings[:shown]):
            yield f"  and {len(findings) - len(findings[:shown])} more (--all)"


def verify_all() -> list[str]:
    """One line per model, if its file, its metadata, model.json and its scores agree. Raises PipelineError if not, or for a stray."""
    from pipeline.core.files import read_json
    from pipeline.networks.artifact import find_strays, verify_model

    if strays := find_strays(Path()):
        names = ", ".join(map(str, strays))
        raise PipelineError(
            f"{names}: params.yaml has no such entry of `models`; add it, or run `pipeline mend --strays` to remove what it left"
        )
    folders = sorted(path.parent for path in Path("models").glob("*/model.json"))
    if not folders:
        raise PipelineError("models: contains no model; run `dvc repro`")
    lines = []
    for folder in folders:
        sha256, scores = verify_model(folder), Path("results") / folder.name / "scores.json"
        if not scores.is_file() or read_json(scores)["model_sha256"] != sha256:
            raise PipelineError(f"{scores}: is not about the model {folder}/model.onnx; run `dvc repro`")
        lines.append(f"{sha256}  {folder}/model.onnx: scored, stored and described alike")
    return lines


def add_models(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("models", help="list the networks of torchvision and timm that can be the backbone")
    parser.add_argument("--search", metavar="TEXT", default="", help="only names that contain this text")
    parser.add_argument("--library", choices=["torchvision", "timm"], help="only networks of this library (default: both)")
    parser.set_defaults(run=lambda parsed: print("\n".join(model_lines(parsed.search, parsed.library))))


def model_lines(search: str, library: str | None) -> Iterator[str]:
    """The lines to print. Raises PipelineError, which lists the nearest names, if no name contains the text."""
    from pipeline.networks import zoo
    from pipeline.stock.networks import find_names, list_entries

    names = find_names(search, library)
    if not names:
        among = f" among those of {library}" if library else ""
        raise PipelineError(f"{search!r}: no model has that in its name{among}; the nearest are {', '.join(zoo.nearest_names(search))}")
    entries = list(list_entries(names))
    yield from align([_MODEL_COLUMNS, *map(_model_row, entries)], _NUMBERS)
    yield ""
    yield f"{len(entries)} models. GMACs: thousand millions of multiply-adds per picture. To use one, set backbone.name in params.yaml."
    if any(entry.parameters is None for entry in entries):
        yield "timm has no table of sizes; they are counted if a search leaves at most 50 of its models."


def _model_row(entry: "ModelListing") -> tuple[str, ...]:
    licence, source = (text if len(text) <= _WORD_LENGTH else f"{text[: _WORD_LENGTH - 1]}…" for text in (entry.licence, entry.source))
    parameters = "-" if entry.parameters is None else f"{entry.parameters / 1e6:,.1f} M"
    gmacs = "-" if entry.gmacs is None else f"{entry.gmacs:,.{1 if entry.gmacs >= 100 else 2}f}"
    return entry.name, entry.library, parameters, gmacs, str(entry.image_size), licence, source, entry.disk


def add_summary(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("summary", help="print the layers of the backbone or of a model, with shapes and sizes")
    parser.add_argument("--model", metavar="NAME|FOLDER", help="a name in models/, or a model folder (default: the backbone alone)")
    parser.set_defaults(run=lambda parsed: print(summary_table(parsed.model, parsed.here)), here=Path.cwd())


def summary_table(model: str | None, here: Path) -> str:
    """One row per layer: input and output shape, number of parameters, and whether they are trained. Raises PipelineError."""
    from pipeline.networks.artifact import BACKBONE, read_backbone

    facts = read_backbone()  # a missing backbone is reported before torch is imported
    import torch
    import torchinfo

    from pipeline.networks.classifier import load_backbone
    from pipeline.networks.regimes import freeze_norms

    if model:
        network, image_size = _open_model(model, here)
    else:
        network, image_size = load_backbone(BACKBONE)[0], facts["architecture"]["image_size"]
        freeze_norms(network)
    pixels = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8)
    depth = 4 if model else 3  # in a classifier the backbone is one level deeper
    table = torchinfo.summary(
        network, input_data=pixels, col_names=_SUMMARY_COLUMNS, row_settings=("var_names",), depth=depth, mode="eval", verbose=0
    )
    return re.sub(r"Units\.([A-Z])[A-Z]+", r"\1", str(table))  # torchinfo prints its own enum since Python 3.11


def _open_model(name: str, here: Path) -> tuple["nn.Module", int]:
    """The classifier of a model folder, with the layers trainable that are so in its last epoch, and its image size."""
    from pipeline.networks.artifact import BACKBONE, check_backbone, find_model, read_facts
    from pipeline.networks.classifier import load_classifier
    from pipeline.networks.regimes import make_plan

    folder = find_model(name, Path("models"), here)
    facts = read_facts(folder)
    check_backbone(folder)
    params, image_size = facts["params"], facts["preprocessing"]["image_size"]
    classifier = load_classifier(BACKBONE, folder, len(facts["class_names"]))
    name, batchnorm = params.get("regime", "frozen"), params.get("batchnorm", "frozen")  # the baseline has neither
    regime = make_plan(name, params.get("stages", 1), batchnorm, params.get("epochs", 1), False, classifier.backbone, image_size).regime
    regime.train_mode(classifier, classifier, regime.thaw_epochs)
    return classifier, image_size
