"""Oxford-IIIT Pet: the lists of its splits, whose lines are «picture class species breed-of-species», as in `Abyssinian_100 1 1 1`."""

import re

from pipeline.data.members import Members, shown
from pipeline.data.named.published import Published

_LISTS = {"train": "annotations/trainval.txt", "test": "annotations/test.txt"}
_LINE = re.compile(r"(([A-Za-z]+(?:_[A-Za-z]+)*)_[0-9]+) ([0-9]{1,3}) [0-9]+ [0-9]+")


def pet_members(published: Published) -> Members:
    """The pictures that the lists name, as `<split>/<breed>/<picture>.jpg`; what no list names is left out. Raises PipelineError."""
    members: Members = {}
    breeds: dict[str, str] = {}
    for split, name in _LISTS.items():
        for line in published.lines(name):
            match = _LINE.fullmatch(line)
            if not match:
                raise published.fault(name, f"holds the line {shown(line)}, which is no picture with its class")
            picture, breed, label = match.groups()
            if breeds.setdefault(label, breed) != breed:
                raise published.fault(name, f"holds {breeds[label]} and {breed} as class {label}")
            members[f"{split}/{breed}/{picture}.jpg"] = published.member(f"images/{picture}.jpg")
    return members
