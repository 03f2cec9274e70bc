"""Food-101: the lists of its splits, whose lines are «class/picture», as in `apple_pie/1005649`."""

import re

from pipeline.data.members import Members, shown
from pipeline.data.named.published import Published

_LINE = re.compile(r"([^/]+)/[0-9]+")


def food_members(published: Published) -> Members:
    """The pictures that the lists name, as `<split>/<class>/<picture>.jpg`. Raises PipelineError."""
    class_names = set(published.class_names("food-101/meta/classes.txt"))
    members: Members = {}
    for split in ("train", "test"):
        name = f"food-101/meta/{split}.txt"
        for line in published.lines(name):
            match = _LINE.fullmatch(line)
            if not match or match[1] not in class_names:
                raise published.fault(name, f"holds the line {shown(line)}, which is no picture of a known class")
            members[f"{split}/{line}.jpg"] = published.member(f"food-101/images/{line}.jpg")
    return members
