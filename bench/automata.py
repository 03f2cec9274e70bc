"""Pictures that are far from photographs: what elementary cellular automata draw, a class for each rule.

    python bench/automata.py FOLDER

A row follows from the row above it by the rule (Wolfram, 1983), from a random first row. A tenth of the cells is flipped afterwards, in
colours drawn anew for each picture, so that only how neighbours go together tells the class. 8 rules, 150 pictures each, 64 x 64 pixels.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

RULES = (30, 45, 73, 75, 89, 101, 110, 150)
PICTURES, SIDE, WARM_UP, FLIPPED = 150, 32, 32, 0.1


def draw(rule: int, generator: np.random.Generator) -> Image.Image:
    """A picture of a rule, each cell 2 x 2 pixels."""
    rows = [generator.integers(0, 2, SIDE)]
    for _ in range(WARM_UP + SIDE - 1):
        left, right = np.roll(rows[-1], 1), np.roll(rows[-1], -1)
        rows.append(rule >> (4 * left + 2 * rows[-1] + right) & 1)
    cells = np.array(rows[-SIDE:]) ^ (generator.random((SIDE, SIDE)) < FLIPPED)
    colours = generator.integers(0, 256, (2, 3), dtype=np.uint8)
    return Image.fromarray(colours[cells.repeat(2, axis=0).repeat(2, axis=1)])


def write(folder: Path) -> None:
    """A folder for each rule; the same pictures each time."""
    for rule in RULES:
        (folder / f"rule_{rule:03d}").mkdir(parents=True)
        for number in range(PICTURES):
            draw(rule, np.random.default_rng([rule, number])).save(folder / f"rule_{rule:03d}" / f"{number:03d}.png")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
