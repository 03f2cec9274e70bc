"""The command line, `pipeline COMMAND`."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from pipeline.commands import predict, search, show, stock, upkeep

_COMMANDS = (
    show.add_results,
    predict.add_predict,
    predict.add_explain,
    show.add_audit,
    search.add_advise,
    show.add_models,
    show.add_summary,
    search.add_find_lr,
    search.add_tune,
    search.add_seeds,
    upkeep.add_retrain,
    upkeep.add_data,
    upkeep.add_publish,
    upkeep.add_mend,
    upkeep.add_deps,
    upkeep.add_ui,
    show.add_verify,
    stock.add_classify,
    stock.add_segment,
    stock.add_detect,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the command in the project's root. A PipelineError becomes one line and exit code 1."""
    parser = argparse.ArgumentParser(prog="pipeline", description="From a folder of labelled pictures to a classifier you can trust.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add_command in _COMMANDS:
        add_command(commands)
    parsed = parser.parse_args(arguments)
    from pipeline.core.errors import PipelineError
    from pipeline.core.files import project_root

    try:
        os.chdir(project_root())
        parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout closed it early, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes what is left when it exits
        raise SystemExit(128 + signal.SIGPIPE) from None
    except PipelineError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
