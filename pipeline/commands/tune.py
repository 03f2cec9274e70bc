"""`pipeline tune`: try recipes for an entry of `models`, and name the one that did best on val."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.columns import align
from pipeline.commands.outs import choose_entry, find_inputs
from pipeline.commands.rewrite import PARAMS, set_params, spell
from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.models.history import kept_row
from pipeline.params import read_section
from pipeline.training.settings import Settings
from pipeline.training.space import Params, read_space

if TYPE_CHECKING:
    from pipeline.training.course import Inputs
    from pipeline.training.study import Study, Trial

_SHOWN = 5
_WORDS = {"complete": "came to their end", "pruned": "pruned", "failed": "broke down"}


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("tune", help="try recipes for an entry of `models`; the best on val")
    parser.add_argument("model", nargs="?", help="an entry of `models` in params.yaml (default: the first)")
    parser.add_argument("--trials", type=int, help="in all, those of before included (default: tune.trials of params.yaml)")
    parser.add_argument("--write", action="store_true", help="set the best in params.yaml")
    parser.set_defaults(run=tune)


def tune(parsed: argparse.Namespace) -> None:
    """Run the trials that are missing, print the best ones, and write the best. Raises PipelineError."""
    name = choose_entry("tune", parsed.model)
    params, space, stated = read_section("tune", Params), read_space(), read_section(f"models.{name}", Settings)
    count = params.trials if parsed.trials is None else parsed.trials
    if count < 1:
        raise PipelineError(f"--trials: {count} is not at least 1")
    inputs = find_inputs()
    from pipeline.training.tuning import open_study

    with open_study(name, stated, space, params.startup_trials, inputs) as study:
        _run(study, stated, inputs, count)
    if not study.ranking:
        raise PipelineError(f"tune {name}: none of {len(study.trials)} trials came to its end; narrow tune.space in {PARAMS}")
    print(show(name, study))
    if parsed.write:
        set_params({f"models.{name}.{key}": value for key, value in study.ranking[0].params.items()})
        print(f"\nWritten: see `git diff {PARAMS}`.")


def _run(study: "Study", stated: Settings, inputs: "Inputs", count: int) -> None:
    """Run trials until there are so many, a line each on stderr."""
    from pipeline.tracking.trials import live_study
    from pipeline.training.tuning import run_trials

    if study.trials:
        print(f"{study.facts['model']}: {len(study.trials)} trials are there", file=sys.stderr)
    with live_study(study) as log:
        for trial in run_trials(study, stated, inputs, count):
            print(f"trial {trial.number} of {count}: {_tell(trial, study.monitor)}", file=sys.stderr)
            log.bring_up_to_date()


def _tell(trial: "Trial", monitor: str) -> str:
    """A trial in a line."""
    params = ", ".join(f"{key} {spell(value)}" for key, value in trial.params.items())
    if trial.value is None:
        return f"broke down; {params}"
    ending = f", pruned after epoch {len(trial.history) - 1}" if trial.state == "pruned" else ""
    return f"{monitor} {trial.value:.4f}{ending}; {params}"


def show(name: str, study: "Study") -> str:
    """The table of the best trials, what they are worth, and the best one as lines of params.yaml."""
    keys, best = list(study.space), study.ranking[0]
    rows = [[str(trial.number), f"{trial.value:.4f}", *(spell(trial.params[key]) for key in keys)] for trial in study.ranking[:_SHOWN]]
    states = [trial.state for trial in study.trials]
    counts = [f"{states.count(state)} {word}" for state, word in _WORDS.items() if state in states]
    return "\n".join(
        [
            *align([["trial", study.monitor, *keys], *rows]),
            "",
            f"{len(states)} trials: {', '.join(counts)}.{_stored(name, study)}",
            "Chosen on val, the best of many looks better there than it is: run `dvc repro` with it, and let the test pictures judge.",
            "",
            "models:",
            f"  {name}:",
            *(f"    {key}: {spell(best.params[key])}" for key in keys),
        ]
    )


def _stored(name: str, study: "Study") -> str:
    """What the model that is stored has of the figure, if it learned from the same pictures."""
    folder = Path("models") / name
    facts = read_json(folder / "model.json") if (folder / "model.json").is_file() else {"inputs_sha256": {}}
    if facts["inputs_sha256"].get("data") != study.facts["inputs_sha256"]["data"]:
        return ""
    return f" The model that is stored in {folder}: {study.monitor} {float(kept_row(folder)[study.monitor]):.4f}."
