"""`pipeline results`, `audit`, `verify`, `models` and `summary`: print what there is."""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.evaluation.comparison import verdict
from pipeline.networks.artifact import BACKBONE, check_backbone, read_backbone

if TYPE_CHECKING:
    from torch import nn

    from pipeline.stock.networks import ModelListing


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line a row, whose cells begin where those of the other rows do."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


_COLUMNS = {"top1_accuracy": "top-1 accuracy", "balanced_accuracy": "balanced accuracy", "log_loss": "log loss", "ece": "ECE"}


def add_results(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("results", help="print what the models scored")
    parser.set_defaults(run=lambda parsed: print(show_results(Path("metrics/comparison.json"))))


def show_results(comparison_json: Path) -> str:
    """The table of all models with intervals, the verdicts, and where to look next. Raises PipelineError."""
    if not comparison_json.is_file():
        raise PipelineError(f"{comparison_json}: is not there; run `dvc repro`")
    comparison = read_json(comparison_json)
    pictures = comparison["test_pictures"]
    rows = [["model", *_COLUMNS.values()]]
    rows += [[name, *(_figure(facts, column) for column in _COLUMNS)] for name, facts in comparison["models"].items()]
    lines = [*align(rows), "", f"{pictures} test pictures; in brackets {100 * comparison['confidence']:g} % intervals."]
    for name, facts in comparison["differences"].items():
        lines.append(f"{verdict(name, facts, pictures)} McNemar p = {facts['mcnemar_p']:.2g}.")
        if facts["best_epoch"] == 0:
            lines.append(f"No epoch of {name} was better on val than its start, whose weights it kept.")
    return "\n".join([*lines, "", "Next: open report/index.html; `pipeline ui` for MLflow; change params.yaml and `dvc repro`."])


def _figure(facts: dict[str, Any], name: str) -> str:
    value, low, high = (facts.get(f"{name}{end}") for end in ("", "_low", "_high"))
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


_SHOWN = 3  # findings of a kind


def add_audit(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("audit", help="print what is wrong or odd with the pictures, and what was left out")
    parser.add_argument("--all", action="store_true", help=f"every finding, not only the first {_SHOWN} of each kind")
    parser.set_defaults(run=lambda parsed: print("\n".join(audit_lines(Path("data/audit.json"), None if parsed.all else _SHOWN))))


def audit_lines(path: Path, shown: int | None) -> Iterator[str]:
    """The lines to print: how many pictures there are, then each kind of finding with the first of them. Raises PipelineError."""
    if not path.is_file():
        raise PipelineError(f"{path}: is not there; run `dvc repro`")
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


def add_verify(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("verify", help="check that scored, stored and described models are one file")
    parser.set_defaults(run=lambda parsed: print("\n".join(verify_all())))


def verify_all() -> list[str]:
    """A line for each model that its own metadata, model.json and its scores agree on. Raises PipelineError."""
    from pipeline.networks.artifact import verify_model

    folders = sorted(path.parent for path in Path("models").glob("*/model.json"))
    if not folders:
        raise PipelineError("models: holds no model; run `dvc repro`")
    lines = []
    for folder in folders:
        sha256, scores = verify_model(folder), Path("results") / folder.name / "scores.json"
        if not scores.is_file() or read_json(scores)["model_sha256"] != sha256:
            raise PipelineError(f"{scores}: tells of another model than {folder}/model.onnx; run `dvc repro`")
        lines.append(f"{sha256}  {folder}/model.onnx: scored, stored and described alike")
    return lines


_MODEL_COLUMNS = ("name", "library", "parameters", "GFLOPs", "px", "licence", "source", "on disk")
_NUMBERS = ("parameters", "GFLOPs", "px")
_WORD = 13  # characters that are shown of a licence or a source


def add_models(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("models", help="list the networks of torchvision and timm that params.yaml may name")
    parser.add_argument("--search", metavar="TEXT", default="", help="those whose name holds this text")
    parser.add_argument("--library", choices=["torchvision", "timm"], help="those of one library (default: of both)")
    parser.set_defaults(run=lambda parsed: print("\n".join(model_lines(parsed.search, parsed.library))))


def model_lines(search: str, library: str | None) -> Iterator[str]:
    """The lines to print. Raises PipelineError with the nearest names where none fits."""
    from pipeline.networks import zoo
    from pipeline.stock.networks import find_names, list_entries

    names = find_names(search, library)
    if not names:
        among = f" among those of {library}" if library else ""
        raise PipelineError(f"{search!r}: no model has that in its name{among}; the nearest are {', '.join(zoo.nearest_names(search))}")
    entries = list(list_entries(names))
    rows = [_MODEL_COLUMNS, *map(_model_row, entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_MODEL_COLUMNS))]
    for row in rows:
        yield "  ".join(_aligned(*cell) for cell in zip(row, _MODEL_COLUMNS, widths, strict=True)).rstrip()
    yield ""
    yield f"{len(entries)} models. GFLOPs: thousand millions of multiply-adds a picture. Take one: backbone.name in params.yaml."
    if any(entry.parameters is None for entry in entries):
        yield "timm has no table of sizes; they are counted where a search leaves 50 of its models or fewer."


def _model_row(entry: "ModelListing") -> tuple[str, ...]:
    licence, source = (text if len(text) <= _WORD else f"{text[: _WORD - 1]}…" for text in (entry.licence, entry.source))
    parameters = "-" if entry.parameters is None else f"{entry.parameters / 1e6:,.1f} M"
    gflops = "-" if entry.gflops is None else f"{entry.gflops:,.{1 if entry.gflops >= 100 else 2}f}"
    return entry.name, entry.library, parameters, gflops, str(entry.image_size), licence, source, entry.disk


def _aligned(cell: str, column: str, width: int) -> str:
    return cell.rjust(width) if column in _NUMBERS else cell.ljust(width)


_SUMMARY_COLUMNS = ("input_size", "output_size", "num_params", "trainable")


def add_summary(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("summary", help="print the layers of the backbone or of a model, their shapes and sizes")
    parser.add_argument("--model", metavar="NAME", help="a name in models/, or a folder (default: the backbone alone)")
    parser.set_defaults(run=lambda parsed: print(summary_table(parsed.model, parsed.here)), here=Path.cwd())


def summary_table(model: str | None, here: Path) -> str:
    """A row a layer: what goes in, what comes out, how many parameters, and whether they are trained. Raises PipelineError."""
    facts = read_backbone()

    import torch
    import torchinfo

    network, side = _open_model(model, here) if model else _open_backbone(facts)
    pixels = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    depth = 4 if model else 3  # a classifier holds the backbone one level deeper
    table = torchinfo.summary(
        network, input_data=pixels, col_names=_SUMMARY_COLUMNS, row_settings=("var_names",), depth=depth, mode="eval", verbose=0
    )
    return re.sub(r"Units\.([A-Z])[A-Z]+", r"\1", str(table))  # since Python 3.11 it names its own constants


def _open_backbone(facts: dict[str, Any]) -> tuple["nn.Module", int]:
    from pipeline.networks.classifier import load_backbone
    from pipeline.networks.regimes import freeze_norms

    backbone = load_backbone(BACKBONE)[0]
    freeze_norms(backbone)
    return backbone, facts["architecture"]["image_size"]


def _open_model(name: str, here: Path) -> tuple["nn.Module", int]:
    """The classifier that a model folder stores, as its regime trains it in the end, and the side of its pictures in pixels."""
    from pipeline.networks.artifact import find_model, read_facts
    from pipeline.networks.classifier import load_classifier
    from pipeline.networks.regimes import make_plan

    folder = find_model(name, Path("models"), here)
    told = read_facts(folder)
    check_backbone(folder)
    params, side = told["params"], told["preprocessing"]["image_size"]
    classifier = load_classifier(BACKBONE, folder, len(told["class_names"]))
    name, batchnorm = params.get("regime", "frozen"), params.get("batchnorm", "frozen")  # the baseline has neither
    regime = make_plan(name, params.get("stages", 1), batchnorm, params.get("epochs", 1), False, classifier.backbone, side).regime
    regime.train_mode(classifier, classifier, regime.thaw_epochs)
    return classifier, side
