"""`pipeline drift`: compare new pictures with those on which the model was tested."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.answering import whole

if TYPE_CHECKING:
    from pipeline.drift.looking import Looked

_ABOUT = """\
Compare new pictures, without labels, with those on which the model was tested: effect first, then one p-value.

FOLDER contains pictures; LOG is the folder of a log of predictions (`pipeline serve --log`). Writes a page, index.html, drift.json with
all figures, and label_next.csv: the pictures whose labels would teach most. docs/drift.md explains the figures."""
_CODES = """\
exit codes:
  0   ok: no drift is shown
  1   failure; a line on stderr gives the reason
  2   wrong usage
  10  drift
  11  too few pictures for a verdict; the sentence says how many would do"""
DRIFT, TOO_FEW = 10, 11
EXIT_CODES = {"ok": 0, "drift": DRIFT, "too few": TOO_FEW}
OUTPUT = "drift"
_MOST_FAULTS = 10  # that are printed


def add_drift(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "drift", help="compare new pictures with the test pictures; choose what to label next", description=_ABOUT, epilog=_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", metavar="FOLDER|LOG", help="a folder of pictures, or of a log of predictions")
    parser.add_argument("--model", metavar="NAME|FOLDER", help="a name in models/, or a model folder (default: champion)")
    parser.add_argument("--alpha", type=_rate, default=0.05, metavar="A", help="the false-alarm rate of a period (default: %(default)s)")
    parser.add_argument(
        "--looks", type=whole, default=30, metavar="N", help="looks of a period, by which A is divided (default: %(default)s)"
    )
    group = "a regular expression; its parentheses enclose the group in the path (default: split.group, or none; of a log: the request)"
    parser.add_argument("--group", metavar="REGEX|none", help=group)
    parser.add_argument("--label-next", type=_count, default=50, metavar="N", help="rows of label_next.csv (default: %(default)s)")
    parser.add_argument("--output", metavar="FOLDER", help="where to write (default: drift/ of the project)")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file, too")
    parser.set_defaults(run=print_drift, here=Path.cwd())  # the user's working directory: commands run in the project's root


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return rate


def _count(text: str) -> int:
    return 0 if text == "0" else whole(text)


def print_drift(parsed: argparse.Namespace) -> None:
    """Take a look, print what was found, and exit with the code of the verdict. Raises PipelineError."""
    from pipeline.core.files import output_path, write_json, writing

    json_file = parsed.json and output_path(parsed.here, parsed.json)
    looked = check_drift(parsed)
    if json_file:
        with writing(json_file):
            write_json(json_file, looked.facts)
    faults = looked.faults[:_MOST_FAULTS] + [f"and {len(looked.faults) - _MOST_FAULTS} more"] * (len(looked.faults) > _MOST_FAULTS)
    print("".join(f"{line}\n" for line in (*faults, *looked.facts["notes"])), end="", file=sys.stderr)
    print("\n".join(_lines(looked)), flush=True)
    print(parsed.output or OUTPUT)
    if code := EXIT_CODES[looked.findings.verdict]:
        raise SystemExit(code)


def check_drift(parsed: argparse.Namespace) -> "Looked":
    """Take the look that the command line asks for. Raises PipelineError."""
    from pipeline.core.params import read_threads
    from pipeline.drift.looking import Options, check

    output = parsed.here / parsed.output if parsed.output else Path(OUTPUT)
    return check(
        Options(
            parsed.folder, parsed.here, parsed.model, parsed.group, parsed.alpha, parsed.looks, parsed.label_next, output,
            read_threads(),
        )
    )  # fmt: skip


def drift_facts(folder: str, here: Path) -> dict[str, Any]:
    """What `pipeline retrain --drift` says of new pictures: `verdict` (or `failure`), `sentence`, `p`, `level`. Raises nothing expected."""
    from pipeline.core.errors import PipelineError

    parser = argparse.ArgumentParser()
    add_drift(parser.add_subparsers())
    try:
        looked = check_drift(argparse.Namespace(**vars(parser.parse_args(["drift", "--", folder])) | {"here": here}))
    except PipelineError as error:
        return {"verdict": "failure", "sentence": str(error), "p": None, "level": None}
    return {key: looked.facts[key] for key in ("verdict", "sentence", "p", "level")}


def _lines(looked: "Looked") -> list[str]:
    """The sentence, and a line per finding: the effect, its interval, its p-value."""
    found = looked.findings
    lines = [found.sentence]
    for title, domain in (("domain classifier, AUC", found.domain), ("the same, given the class", found.within)):
        if domain:
            lines.append(f"{title}: {domain['value']:.3f} ({domain['low']:.3f} to {domain['high']:.3f}), p {domain['p']:.2g}")
    if found.labels:
        widest = max(found.shares, key=lambda row: abs(row["value"] - row["reference"]))
        text = f"class {widest['class']}: {100 * widest['value']:.1f} % of the predictions, on test {100 * widest['reference']:.1f} %"
        lines.append(f"shares of the classes, p {found.labels['p']:.2g}; {text}")
    for row in found.traits:
        if row["p"] is not None and (row["difference"] is not None or row["ks"] == 1):
            effect = f"{row['difference']:+.2f} standard deviations" if row["difference"] is not None else f"all {row['word']}"
            lines.append(f"{row['title'].lower()}: {effect}, p {row['p']:.2g} (of four)")
    if found.unfamiliar:
        lines.append(f"unfamiliar: {100 * found.unfamiliar['value']:.1f} %, on test {100 * found.unfamiliar['reference']:.1f} %")
    accuracy = found.accuracy
    ends = "" if accuracy["low"] is None else f" ({accuracy['low']:.3f} to {accuracy['high']:.3f})"
    lines.append(f"estimated accuracy: {accuracy['value']:.3f}{ends}, on test {accuracy['reference']:.3f}; if {accuracy['assumption']}")
    return lines
