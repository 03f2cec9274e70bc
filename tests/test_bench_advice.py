"""The table of the advice: its verdicts and ratios follow from its own figures."""

import re

import numpy as np
import pytest

from bench import automata
from tests.conftest import ROOT

PAGE = (ROOT / "docs/advice.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]
DATA = {row[0]: dict(zip(next(row for row in ROWS if row[0] == "data"), row, strict=True)) for row in ROWS}


@pytest.mark.parametrize("name", ["digits", "hymenoptera", "automata"])
def test_the_favourite_is_within_the_interval_of_the_best_and_its_time_was_estimated_well(name):
    row = DATA[name]
    (favourite,) = [float(cell.strip("*")) for cell in row.values() if re.fullmatch(r"\*\*[\d.]+\*\*", cell)]
    low = float(re.search(r": ([\d.]+) to", row["interval of the best"])[1])
    assert (row["right"], favourite >= low) == ("yes", True)
    assert 1 / 1.5 <= float(row["ratio"]) <= 1.5
    assert float(row["ratio"]) == pytest.approx(float(row["seconds told"]) / float(row["seconds taken"]), abs=0.05)


def test_an_automaton_follows_its_rule(monkeypatch):
    monkeypatch.setattr(automata, "FLIPPED", 0)
    pixels = np.array(automata.draw(110, np.random.default_rng(0)))[::2, ::2]
    alive = (pixels != pixels[0, 0]).any(axis=2).astype(int)

    def follows(cells):  # 110 is 01101110: the next states of 111, 110, …, 000
        past = 4 * np.roll(cells, 1, axis=1) + 2 * cells + np.roll(cells, -1, axis=1)
        return (np.array([0, 1, 1, 1, 0, 1, 1, 0])[past[:-1]] == cells[1:]).all()

    assert follows(alive) or follows(1 - alive)  # either colour may be alive
