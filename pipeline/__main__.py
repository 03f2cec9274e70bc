"""The command line, `pipeline COMMAND`. Its modules import a library only when a command that needs it runs."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.commands import export, predict, promotion, schedule, search, serve, show, stock, storage, upkeep
from pipeline.core.errors import PipelineError


def _command(name: str, summary: str, run: Callable[[argparse.Namespace], None]) -> Callable[[Any], None]:
    """The function that adds a command without arguments to the parser; the other commands have their own."""
    return lambda commands: commands.add_parser(name, help=summary).set_defaults(run=run)


_GROUPS = {
    "pipeline": (
        _command("results", "print the test scores of all models and how they compare",
                 lambda _: print(show.show_results(Path("metrics/comparison.json")))),
        predict.add_predict,
        predict.add_explain,
        show.add_audit,
        _command("verify", "check that each model file is the one that was scored and described, and the champion is the same everywhere",
                 lambda _: print("\n".join(promotion.verify_lines()))),
        serve.add_serve,
        export.add_export,
        upkeep.add_data,
        promotion.add_retrain,
        promotion.add_champion,
        promotion.add_history,
        promotion.add_promote,
        promotion.add_approve,
        promotion.add_rollback,
        _command("publish", "log the evaluated models to MLflow, if they are not there yet",
                 lambda _: print("\n".join(upkeep.publish_all()) or "MLflow is up to date")),
        schedule.add_schedule,
        upkeep.add_mend,
        storage.add_store,
        _command("deps", "rewrite the lists of files in dvc.yaml that `embed` and `train` import", upkeep.print_deps),
        upkeep.add_ui,
    ),
    "workbench": (
        show.add_models, show.add_summary, search.add_advise, search.add_find_lr, search.add_tune, search.add_seeds, stock.add_classify,
        stock.add_segment, stock.add_detect,
    ),
}  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands. Its help lists them in groups."""
    parser = argparse.ArgumentParser(
        prog="pipeline",
        usage="%(prog)s [-h] COMMAND ...",
        description="From a folder of labelled pictures to a classifier you can trust.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # argparse lists all commands in one block. Its list is hidden, and the epilog has one block per group.
    commands = parser.add_subparsers(required=True, prog="pipeline", metavar="COMMAND", help=argparse.SUPPRESS)
    blocks = []
    for title, adders in _GROUPS.items():
        for add_command in adders:
            add_command(commands)
        entries = commands._choices_actions[-len(adders) :]
        blocks.append("\n".join([f"{title}:", *(f"  {entry.dest:<16}{entry.help}" for entry in entries)]))
        for entry in entries:
            command = commands.choices[entry.dest]
            command.description = command.description or f"{entry.help}."
    parser.epilog = "\n\n".join([*blocks, "`pipeline COMMAND --help` explains a command."])
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the command in the project's root. A PipelineError becomes one line and exit code 1."""
    parsed = make_parser().parse_args(arguments)
    from pipeline.core.files import keep_caches_here, project_root
    from pipeline.core.params import PARAMS, read_params

    try:
        os.chdir(project_root())
        keep_caches_here()
        if PARAMS.is_file():
            read_params()  # before DVC reads it, whose messages about a name of an entry are a puzzle
        parsed.run(parsed)
        sys.stdout.flush()
        return
    except BrokenPipeError:  # the reader of stdout has closed it, as `head` does: end quietly, as `cat` does
        code = 128 + signal.SIGPIPE
    except PipelineError as error:
        print(error, file=sys.stderr)
        code = 1
    try:
        sys.stdout.flush()
    except OSError:  # Python would report it once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(code)


if __name__ == "__main__":
    main()
