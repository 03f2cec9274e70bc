"""`pipeline export`: a model in another form. `pipeline export-folders`: the pictures in folders for other tools."""

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.commands.answering import share
from pipeline.core.errors import PipelineError

_SPLITS = ("train", "val", "test")
_REPORT = "form.json"
_ABOUT = """\
Write a model in another form, for another runtime or in fewer bytes, into a folder of its own.

  int8      ONNX in 8 bits, calibrated on train pictures: less time on a CPU, about a quarter of the size
  fp16      ONNX in 16 bits: half of the size; for GPUs
  openvino  OpenVINO's model.xml and model.bin, for Intel's CPUs and GPUs (extra `openvino`)
  pt2       torch's exported program, for `torch.export.load`

The folder has model.json with the facts of the model, and form.json with the comparison of both. int8 and fp16 are model
folders: `pipeline predict --model FOLDER` runs them.

The form answers the test pictures beside the model. It is refused, and nothing is written, if its accuracy is lower by
more than --max-loss. The difference itself decides. Its paired 95 % interval is printed: few test pictures cannot show
that a form loses nothing."""


def add_export(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "export", help="write a model in another form: int8, fp16, OpenVINO, torch", description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    # All choices stand here, since the list in `networks.forms` is slow to import; a test compares them.
    parser.add_argument("--to", required=True, choices=("int8", "fp16", "openvino", "pt2", "torchscript", "tflite"), dest="form",
                        help="the form; torchscript and tflite are refused with the reason")  # fmt: skip
    parser.add_argument("--model", metavar="NAME|FOLDER", help="(default: champion; before there is one, the lowest val loss)")
    parser.add_argument("--output", metavar="FOLDER", help="a new or an empty folder, or an earlier export (default: exports/MODEL-FORM)")
    parser.add_argument("--max-loss", type=share, default=0.01, metavar="SHARE", help="of accuracy, from 0 to 1 (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="write it whatever it loses; form.json says so")
    parser.set_defaults(run=export, here=Path.cwd())


def export(parsed: argparse.Namespace) -> None:
    """Write the form and print how it compares with its model. Raises PipelineError if it loses too much."""
    from pipeline.core.files import atomic_dir, write_json, writing
    from pipeline.core.params import read_threads
    from pipeline.networks.artifact import BACKBONE, check_backbone, read_facts, verify_model
    from pipeline.networks.forms import REFUSED, make_form, open_form
    from pipeline.promotion.champions import find_served
    from pipeline.promotion.exporting import calibration_pixels, score_form
    from pipeline.serving.predictor import open_model

    kind, threads = parsed.form, read_threads()
    if kind in REFUSED:
        raise PipelineError(f"--to {kind}: {REFUSED[kind]}")
    name, model = find_served(parsed.model, parsed.here)
    verify_model(model)
    facts, predictor = read_facts(model), open_model(model, threads)
    if "form" in facts:
        raise PipelineError(f"{name}: is the form {facts['form']} of a model; name the model")
    if kind == "pt2":
        check_backbone(model)
    target = parsed.here / parsed.output if parsed.output else Path("exports") / f"{name}-{kind}"
    shown = parsed.output or str(target)
    if target.exists() and not (target / _REPORT).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise PipelineError(f"{shown}: is neither empty nor an earlier export; name a new folder")
    with writing(shown), atomic_dir(target) as partial:
        make_form(kind, model, BACKBONE, facts, lambda: calibration_pixels(predictor), partial)
        report = score_form(kind, open_form(kind, partial, facts, threads), partial, model, predictor)
        loss = -report["top1_accuracy"]["difference"]
        report |= {"max_loss": parsed.max_loss, "accepted": loss <= parsed.max_loss, "forced": parsed.force and loss > parsed.max_loss}
        print("\n".join(describe_form(name, report)))
        if not (report["accepted"] or parsed.force):
            points = f"{100 * loss:.1f} points of accuracy, more than {100 * parsed.max_loss:.3g}"
            raise PipelineError(f"{name} as {kind}: loses {points}; choose another form, or see --max-loss and --force")
        write_json(partial / _REPORT, report)
    print(f"{shown}: written")


def describe_form(name: str, report: Mapping[str, Any]) -> list[str]:
    """The lines about a form and its model. `report`: the content of form.json."""
    table = {
        "accuracy": ("top1_accuracy", 3),
        "log loss": ("log_loss", 3),
        "unfamiliar pictures": ("unfamiliar", 3),
        "ms, one picture at a time": ("milliseconds", 2),
        "ms per picture, 8 at a time": ("milliseconds_at_8", 2),
        "MB": ("megabytes", 2),
    }
    rows = [(title, report[key], places) for title, (key, places) in table.items() if key in report]
    accuracy = report["top1_accuracy"]
    difference, low, high = (100 * accuracy[key] for key in ("difference", "low", "high"))
    changed = report["changed_answers"]
    changes = f"{changed} answer{'s' * (changed != 1)} changed; the largest difference of a probability is"
    missing = ", ".join(report["missing_outputs"])
    return [
        f"{name} as {report['form']}, on {report['test_pictures']} test pictures ({report['test_groups']} groups)",
        f"{'':<29}{'original':>10}{report['form']:>10}",
        *(f"{title:<29}{each['original']:>10.{places}f}{each['form']:>10.{places}f}" for title, each, places in rows),
        f"accuracy: {difference:+.1f} points, interval {low:+.1f} to {high:+.1f}",
        f"{changes} {report['largest_probability_difference']:.4f}",
        *([f"outputs of the model that the form lacks: {missing}"] if missing else []),
    ]


def add_export_folders(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("export-folders", help="copy the pictures to folders that other tools read, one per split and class")
    parser.add_argument("folder", metavar="FOLDER", help="a new or an empty folder")
    parser.add_argument("--split", choices=_SPLITS, help="only the pictures of this split (default: all)")
    parser.set_defaults(run=lambda parsed: print(export_folders(parsed.folder, parsed.split, parsed.here)), here=Path.cwd())


def export_folders(named: str, split: str | None, here: Path) -> str:
    """Write ImageFolder trees, whole or not at all, and return what was written. Raises PipelineError.

    The files are copies: a tool may change them. Those that torchvision would drop or misread are PNGs.
    """
    from tqdm import tqdm

    from pipeline.core.files import Slice, atomic_dir, writing
    from pipeline.pictures.manifest import read_manifest

    target, data = here / named, Path("data")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise PipelineError(f"{named}: is not an empty folder; name a new one")
    if not (data / "manifest.csv").is_file():
        raise PipelineError(f"{data / 'manifest.csv'}: does not exist; run `dvc repro`")
    pictures = [picture for picture in read_manifest(data / "manifest.csv").pictures if split in (None, picture.split)]
    with writing(named), atomic_dir(target) as partial:
        for picture in tqdm(pictures, "export", disable=None, leave=False):
            source, path = picture.source(data / "splits" / picture.split), partial / picture.split / picture.path
            file = source.path if isinstance(source, Slice) else source
            if not file.is_file():
                raise PipelineError(f"{file}: does not exist; run `dvc repro`")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read_bytes())
    counts = Counter(picture.split for picture in pictures)
    return f"{named}: {', '.join(f'{counts[name]} {name}' for name in _SPLITS if counts[name])} pictures"
