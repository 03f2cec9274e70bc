"""Check the names of the entries of `models`, before DVC removes the folders that they name."""

from pathlib import Path

from pipeline.core import stage
from pipeline.core.files import atomic_file
from pipeline.core.params import SHARED
from pipeline.core.sections import Section


class Params(Section, extra="allow"):  # section `models` of params.yaml, of which the names alone count here
    overridable = SHARED  # an entry may be called `seed`


def run(params: Params, checked: Path) -> None:
    """Write the file on which `train` depends, always the same one: a new entry trains no other again. Reading `params` checked them."""
    with atomic_file(checked) as partial:
        partial.write_text("The names of the entries of `models` are plain.\n", encoding="utf-8")


if __name__ == "__main__":
    stage.main("models", Params, run)
