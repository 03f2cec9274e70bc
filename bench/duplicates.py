"""Measure the search for near duplicates: how many changed copies it finds, how many false pairs, and what it costs.

    python bench/duplicates.py ../shared/data/hymenoptera_data.zip
    python bench/duplicates.py my/photographs --photographs 120

Each photograph is compared with a changed copy of each photograph, one change at a time. A copy is found if it is in the
group of its original. A link between two different photographs is a false pair; the table of links names them, since two
photographs of a set may be true near duplicates. The costs are those of synthetic pictures. Writes `bench/duplicates.json`.
"""

import argparse
import contextlib
import io
import json
import resource
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from tqdm import tqdm

from pipeline.core.files import write_json
from pipeline.core.params import read_params
from pipeline.pictures.audit import leaks
from pipeline.pictures.images import PICTURE_SUFFIXES, BrokenPicture, decode
from pipeline.pictures.inspection import Groups, PictureInfo, inspect, near_duplicates
from pipeline.pictures.likeness import likeness_of

ROOT = Path(__file__).parent.parent
LOGO = (0.22, 0.12)  # shares of the width and the height
Change = Callable[[Image.Image], Image.Image]


def cropped(share: float) -> Change:
    """Cut off a share of the width or the height on each of the four sides."""

    def change(image: Image.Image) -> Image.Image:
        across, down = round(image.width * share), round(image.height * share)
        return image.crop((across, down, image.width - across, image.height - down))

    return change


def turned(degrees: float) -> Change:
    """Turn about the centre, with black corners."""
    return lambda image: image.rotate(degrees, Image.Resampling.BICUBIC)


def with_logo(image: Image.Image) -> Image.Image:
    """Put a white sign with black bars into the lower right corner."""
    marked = image.copy()
    width, height = round(image.width * LOGO[0]), round(image.height * LOGO[1])
    left, top = image.width - width, image.height - height
    drawing = ImageDraw.Draw(marked)
    drawing.rectangle((left, top, image.width, image.height), "white")
    for number in range(1, 6, 2):
        drawing.rectangle((left + width * number // 7, top + height // 4, left + width * (number + 1) // 7, top + height * 3 // 4), "black")
    return marked


CHANGES: dict[str, Change] = {
    "re-encoded, JPEG quality 50": lambda image: image,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "30 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "30 % darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "grey": lambda image: image.convert("L"),
    "mirrored": ImageOps.mirror,
    "logo in a corner": with_logo,
    "cropped by 1 % per side": cropped(0.01),
    "cropped by 2 % per side": cropped(0.02),
    "cropped by 3 % per side": cropped(0.03),
    "cropped by 4 % per side": cropped(0.04),
    "cropped by 5 % per side": cropped(0.05),
    "turned by 2°": turned(2),
    "turned by -2°": turned(-2),
}


def files_of(source: Path) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the pictures in a folder or a zip, by name."""
    if source.is_dir():
        for path in sorted(path for path in source.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES):
            yield path.name, path.read_bytes()
    else:
        with zipfile.ZipFile(source) as archive:
            for name in sorted(name for name in archive.namelist() if name.lower().endswith(PICTURE_SUFFIXES)):
                yield Path(name).name, archive.read(name)


def photographs(source: Path, count: int) -> list[tuple[str, Image.Image]]:
    """The names and the pixels of the first pictures that decode."""
    found: list[tuple[str, Image.Image]] = []
    for name, content in files_of(source):
        with contextlib.suppress(BrokenPicture):
            found.append((name, decode(content)))
        if len(found) == count:
            break
    return found


def encoded(image: Image.Image, quality: int) -> bytes:
    """The bytes of a JPEG."""
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=quality)
        return file.getvalue()


def facts_of(image: Image.Image, quality: int = 90) -> PictureInfo:
    """What the audit keeps of a picture."""
    info = inspect(encoded(image, quality)).info
    assert info is not None  # noqa: S101 - it was encoded here
    return info


def recalls(originals: list[tuple[str, Image.Image]], similarity: float) -> tuple[dict[str, float], dict[str, int], int]:
    """The share of copies found per change, how often each two photographs were linked, and the number of pairs compared."""
    found, false, compared = dict[str, float](), Counter[str](), 0
    whole = {f"{number:06d} original": facts_of(image) for number, (_, image) in enumerate(originals)}
    for title, change in tqdm(CHANGES.items(), "changes"):
        quality = 50 if "50" in title else 90
        copies = {f"{number:06d} copy": facts_of(change(image), quality) for number, (_, image) in enumerate(originals)}
        groups = Groups([*whole, *copies])
        for pair in near_duplicates(whole | copies, similarity):
            groups.join(pair)
            first, second = (int(name.split()[0]) for name in pair)
            if first != second:
                false[" and ".join(sorted((originals[first][0], originals[second][0])))] += 1
        together = [groups.of(original) == groups.of(copy) for original, copy in zip(whole, copies, strict=True)]
        found[title] = round(sum(together) / len(together), 4)
        compared += 2 * len(originals) * (len(originals) - 1)
    return found, dict(false), compared


def synthetic(originals: list[tuple[str, Image.Image]], count: int) -> Iterator[tuple[str, Iterator[Image.Image]]]:
    """Sets of pictures of 64 x 64 pixels that are hard in different ways."""
    generator = np.random.default_rng(0)
    images = [image for _, image in originals]
    scene = np.asarray(images[0].resize((64, 64)), dtype=float)

    def window() -> Image.Image:
        image = images[generator.integers(len(images))]
        width, height = (int(side * generator.uniform(0.2, 0.6)) for side in image.size)
        left, top = generator.integers(0, (image.width - width, image.height - height))
        return image.resize((64, 64), box=(left, top, left + width, top + height), reducing_gap=2)

    def frame(grain: float) -> Image.Image:
        pixels = scene * generator.uniform(0.8, 1.1) + generator.normal(0, grain, scene.shape)
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    yield "windows of the photographs", (window() for _ in range(count))
    yield "frames of one fixed camera", (frame(6) for _ in range(count))
    yield "frames that are alike to the hash alone", (frame(60) for _ in range(count))


def costs(originals: list[tuple[str, Image.Image]], count: int, similarity: float) -> dict[str, dict[str, float]]:
    """The seconds, the memory added and the links found per set of synthetic pictures."""
    results, info = {}, facts_of(originals[0][1])
    for title, images in synthetic(originals, count):
        infos = {
            f"{number:07d}": replace(info, pixels_sha256=str(number), likeness=likeness_of(image))
            for number, image in enumerate(tqdm(images, title, count))
        }
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        links = near_duplicates(infos, similarity)
        seconds = time.process_time() - begun
        megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        results[title] = {"pictures": count, "links": len(links), "cpu_seconds": round(seconds, 1), "peak_megabytes_more": round(megabytes)}
    return results | {"leaks within one group": cost_of_leaks(count)}


def cost_of_leaks(count: int) -> dict[str, float]:
    """The seconds to find the leaks of a group of which one half is in train and one half in test."""
    given = {f"{number:07d}": ("train", "test")[number % 2] for number in range(count)}
    info, together = facts_of(Image.new("RGB", (8, 8))), Groups(given)
    together.join(given)
    begun = time.process_time()
    links = [*leaks(given, together, {}, {name: replace(info, pixels_sha256=name) for name in given})]
    return {"pictures": count, "links": len(links), "cpu_seconds": round(time.process_time() - begun, 1)}


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="a folder or a zip file")
    parser.add_argument("--photographs", dest="count", type=int, default=400, help="use at most so many (default: %(default)s)")
    parser.add_argument("--synthetic", type=int, default=100_000, help="size of the synthetic sets; 0: none (default: %(default)s)")
    parser.add_argument("--similarity", type=float, default=read_params()["split"]["similarity"], help="default: that of params.yaml")
    parsed = parser.parse_args()
    originals = photographs(parsed.photographs, parsed.count)
    found, false, compared = recalls(originals, parsed.similarity)
    report = {
        "photographs": len(originals),
        "similarity": parsed.similarity,
        "recall": found,
        "pairs_of_different_photographs": compared,
        "false_pairs_per_million": round(1e6 * sum(false.values()) / compared, 2),
        "linked_photographs": false,
        "costs": costs(originals, parsed.synthetic, parsed.similarity) if parsed.synthetic else {},
    }
    write_json(ROOT / "bench/duplicates.json", report)
    print(json.dumps(report, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
