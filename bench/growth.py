"""Measure how the stages grow with the number of pictures: `dvc repro` up to the baseline's evaluation, on generated sets of several sizes.

    python bench/growth.py                                  1,000, 10,000 and 100,000 pictures of 64 px
    python bench/growth.py 10000 100000 300000 --side 32    other sizes, smaller pictures
    python bench/growth.py 1000 3000                        a try: nothing is written

Prints a table: seconds and peak memory per stage and size, DVC's own seconds, and two ratios of the largest size to the one before it.
The first is of seconds per picture. The second is of the seconds per additional picture, in which costs that do not grow cancel out.
From 100,000 pictures on, it also writes the key `growth` of `bench/results.json` and draws `docs/growth.png`.
"""

import argparse
import datetime
import io
import itertools
import json
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from projects import ROOT, Projects, dvc, environment, of_project
from rounds import Contender, run_once
from run import hardware, versions

from pipeline.core.files import write_json

SIZES, WRITTEN_FROM = (1_000, 10_000, 100_000), 100_000
CLASSES, CELLS, CLASS_SHARE = 10, 8, 0.4
IMAGE_SIZE = 64  # pixels, at which the network is cheap
STAGES = ("download", "backbone", "split", "embed", "train_baseline", "evaluate")
DVC, ALL = "DVC itself", "all"
COLORS = ("#4269d0", "#97bbf5", "#3ca951", "#efb118", "#ff725c", "#a463f2", "#9498a0", "#1d1d1d")  # one per row of the table


def write_pictures(archive: Path, count: int, side: int) -> None:
    """Write a zip of different JPEG files in ten folders: random colours on 8 x 8 cells, partly those of the class."""
    generator = np.random.default_rng(0)
    patterns = generator.uniform(0, 255, (CLASSES, CELLS, CELLS, 3))
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(count):
            label = number % CLASSES
            cells = CLASS_SHARE * patterns[label] + (1 - CLASS_SHARE) * generator.uniform(0, 255, (CELLS, CELLS, 3))
            picture = io.BytesIO()
            Image.fromarray(cells.astype(np.uint8)).resize((side, side)).save(picture, "JPEG", quality=85)
            file.writestr(f"class{label}/{number:07d}.jpg", picture.getvalue())


def measure_stages(project: Path, reports: Path) -> None:
    """Change the commands in dvc.yaml so that each stage writes its seconds and its memory into a file of its name below `reports`."""
    reports.mkdir()
    path = project / "dvc.yaml"
    launch = f"python -I -S {Path(__file__).with_name('launch.py')} {reports}"
    measured = re.sub(r"python -m pipeline\.stages\.(\w+)", rf"{launch}/\1.json \g<0>", path.read_text(encoding="utf-8"))
    path.write_text(measured, encoding="utf-8")


def measure(folder: Path, count: int, side: int) -> dict[str, Any]:
    """Seconds and peak megabytes of each stage, of DVC and of all, on a fresh clone and `count` new pictures.

    The memory of a stage is that of its largest process, as the kernel counts it. That of all is what DVC and the stage that was running
    had together.
    """
    write_pictures(folder / "pictures.zip", count, side)
    project = Projects(folder, folder / "pictures.zip").clone("clone", image_size=IMAGE_SIZE)
    reports = folder / "reports"
    measure_stages(project, reports)
    command = dvc("repro", "evaluate_baseline@baseline")
    whole = run_once(Contender(f"{count:,} pictures", command, project, environment=of_project(project)), environment())
    read = {name: json.loads((reports / f"{name}.json").read_text()) for name in STAGES}
    seconds = {name: report["seconds"] for name, report in read.items()}
    seconds |= {DVC: whole.seconds - sum(seconds.values()), ALL: whole.seconds}
    megabytes = {name: report["kilobytes"] / 1000 for name, report in read.items()} | {ALL: whole.peak_megabytes}
    return {
        "pictures": count,
        "foreign": round(whole.foreign, 3),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "megabytes": {name: round(value) for name, value in megabytes.items()},
    }


def ratio(sizes: Sequence[Mapping[str, Any]], name: str) -> float:
    """Seconds per picture of the largest size, divided by those of the size before it; 1 is linear growth with no constant part."""
    before, largest = (float(size["seconds"][name] / size["pictures"]) for size in sizes[-2:])
    return round(largest / before, 2)


def added_ratio(sizes: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The same for the seconds per additional picture; 1 is linear growth. None for fewer than three sizes, or if they did not grow."""
    slopes = [
        (later["seconds"][name] - earlier["seconds"][name]) / (later["pictures"] - earlier["pictures"])
        for earlier, later in itertools.pairwise(sizes[-3:])
    ]
    return round(slopes[1] / slopes[0], 2) if len(slopes) == 2 and slopes[0] > 0 else None


def rows_of(sizes: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """The rows of a Markdown table, its head first."""
    counts = [f"{size['pictures']:,}" for size in sizes]
    yield ["stage", *(f"s, {count}" for count in counts), "ms per picture", "ratio", "added", *(f"MB, {count}" for count in counts)]
    yield ["---"] * (4 + 2 * len(sizes))
    for name in (*STAGES, DVC, ALL):
        added = added_ratio(sizes, name)
        yield [
            name,
            *(f"{size['seconds'][name]:.1f}" for size in sizes),
            f"{1000 * sizes[-1]['seconds'][name] / sizes[-1]['pictures']:.2f}",
            f"{ratio(sizes, name):.2f}",
            "" if added is None else f"{added:.2f}",
            *(f"{size['megabytes'][name]}" if name in size["megabytes"] else "" for size in sizes),
        ]


def draw(sizes: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw seconds and memory by the number of pictures, both axes logarithmic, each line with its name at its end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    counts = [size["pictures"] for size in sizes]
    for axes, key, title in zip(
        figure.subplots(1, 2), ("seconds", "megabytes"), ("seconds; dotted: linear growth", "peak memory, MB"), strict=True
    ):
        colors = dict(zip((*STAGES, DVC, ALL), COLORS, strict=True))
        ends = {name: sizes[-1][key][name] for name in colors if name in sizes[-1][key]}
        for name in ends:
            axes.loglog(counts, [size[key][name] for size in sizes], color=colors[name], marker="o", linewidth=2.5 if name == ALL else 1.5)
        if key == "seconds":
            linear = [sizes[-1][key][ALL] * count / counts[-1] for count in counts]
            axes.loglog(counts, linear, color="#bbbbbb", linestyle=":", zorder=0)
        label_ends(axes, counts[-1], ends, colors)
        axes.set_title(title, loc="left")
        axes.set_xlabel("pictures")
        axes.grid(True, color="#eeeeee")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def label_ends(axes: Any, x: float, ends: Mapping[str, float], colors: Mapping[str, str]) -> None:
    """Write the name of each line beside its end, those of close ends one above the other."""
    axes.margins(x=0.05)
    low, high = np.log10(axes.get_ylim())
    least, place = (high - low) * 0.045, -np.inf
    for name in sorted(ends, key=ends.__getitem__):
        place = max(float(np.log10(ends[name])), place + least)
        axes.annotate(name, (x, 10**place), (8, 0), textcoords="offset points", va="center", color=colors[name], annotation_clip=False)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="*", default=SIZES, help=f"numbers of pictures, at least two (default: {SIZES})")
    parser.add_argument("--side", type=int, default=64, help="of the pictures, in pixels (default: %(default)s)")
    parsed = parser.parse_args()
    counts = sorted({*parsed.sizes})
    if len(counts) < 2:
        parser.error("growth takes at least two sizes")
    sizes = []
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="growth-") as folder:
            sizes.append(measure(Path(folder), count, parsed.side))
        print(f"{count:,} pictures: {sizes[-1]['seconds'][ALL]:.0f} s, {sizes[-1]['foreign']:.0%} foreign CPU", file=sys.stderr, flush=True)
    print("\n".join(f"| {' | '.join(row)} |" for row in rows_of(sizes)))
    if counts[-1] >= WRITTEN_FROM:
        path = ROOT / "bench/results.json"
        facts = {"date": datetime.date.today().isoformat(), "hardware": hardware(), "versions": versions(), "side": parsed.side}
        ratios = {name: {"ratio": ratio(sizes, name), "added": added_ratio(sizes, name)} for name in (*STAGES, DVC, ALL)}
        write_json(path, {**json.loads(path.read_text()), "growth": {**facts, "sizes": sizes, "ratios": ratios}})
        draw(sizes, ROOT / "docs/growth.png")


if __name__ == "__main__":
    main()
