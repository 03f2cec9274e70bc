"""`pipeline`: what a person types."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from pipeline.commands import (
    advise,
    audit,
    classify,
    data,
    detect,
    explain,
    find_lr,
    mend,
    models,
    predict,
    publish,
    results,
    retrain,
    seeds,
    segment,
    summary,
    tune,
    ui,
    verify,
)
from pipeline.errors import PipelineError
from pipeline.files import project_root
from pipeline.stage import fail

_COMMANDS = (
    results, predict, explain, audit, advise, models, summary, find_lr, tune, seeds, retrain, data, publish, mend, ui, verify,
    classify, segment, detect,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the command in the project's root. A PipelineError becomes one line and exit code 1."""
    parser = argparse.ArgumentParser(prog="pipeline", description="From a folder of labelled pictures to a classifier you can trust.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    parsed = parser.parse_args(arguments)
    try:
        os.chdir(project_root())
        parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads stdout has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left as it ends
        raise SystemExit(128 + signal.SIGPIPE) from None
    except PipelineError as error:
        fail(error)


if __name__ == "__main__":
    main()
