"""Readers of the formats in which named datasets are published."""

import gzip
import io
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError
from pipeline.net.fetch import Pin
from pipeline.sources.archives import open_archive
from pipeline.sources.members import BLOCK, Budget, Limits, Members, damage_named, is_archive, is_junk, name_fault, shown

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray

_CIFAR_PIXEL_BYTES = 3 * 32 * 32
_FLOWER_SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}  # and their names in setid.mat
_MATLAB_BYTES = 1 << 16  # compressed up to a thousandfold; the published files are far smaller
_FOOD_LINE = re.compile(r"([^/]+)/[0-9]+")
_IDX_PREFIXES = {"train": "train", "test": "t10k"}  # of the file names of a split
_IDX_UINT8 = 8
_PET_LISTS = {"train": "annotations/trainval.txt", "test": "annotations/test.txt"}
_PET_LINE = re.compile(r"(([A-Za-z]+(?:_[A-Za-z]+)*)_[0-9]+) ([0-9]{1,3}) [0-9]+ [0-9]+")

# In the order of the class numbers. The publisher writes «pink-yellow dahlia?», which some systems refuse as a folder.
_FLOWER_TEXT = """
pink primrose; hard-leaved pocket orchid; canterbury bells; sweet pea; english marigold; tiger lily; moon orchid; bird of paradise;
monkshood; globe thistle; snapdragon; colt's foot; king protea; spear thistle; yellow iris; globe-flower; purple coneflower; peruvian
lily; balloon flower; giant white arum lily; fire lily; pincushion flower; fritillary; red ginger; grape hyacinth; corn poppy; prince of
wales feathers; stemless gentian; artichoke; sweet william; carnation; garden phlox; love in the mist; mexican aster; alpine sea holly;
ruby-lipped cattleya; cape flower; great masterwort; siam tulip; lenten rose; barbeton daisy; daffodil; sword lily; poinsettia; bolero
deep blue; wallflower; marigold; buttercup; oxeye daisy; common dandelion; petunia; wild pansy; primula; sunflower; pelargonium; bishop
of llandaff; gaura; geranium; orange dahlia; pink-yellow dahlia; cautleya spicata; japanese anemone; black-eyed susan; silverbush;
californian poppy; osteospermum; spring crocus; bearded iris; windflower; tree poppy; gazania; azalea; water lily; rose; thorn apple;
morning glory; passion flower; lotus; toad lily; anthurium; frangipani; clematis; hibiscus; columbine; desert-rose; tree mallow;
magnolia; cyclamen; watercress; canna lily; hippeastrum; bee balm; ball moss; foxglove; bougainvillea; camellia; mallow; mexican
petunia; bromelia; blanket flower; trumpet creeper; blackberry lily
"""
FLOWER_NAMES = tuple(" ".join(_FLOWER_TEXT.split()).split("; "))


@dataclass(frozen=True)
class PublishedFile:
    """A file of a dataset: its address, and its published checksum, if there is one."""

    url: str
    md5: str | None = None  # publishers state no other; the content's sha256, which params.yaml pins, is the protection against forgery

    @property
    def name(self) -> str:
        """The end of its address."""
        return self.url.rpartition("/")[2]

    @property
    def pin(self) -> Pin | None:
        """The checksum that a download must have."""
        fault = "its MD5 is {found}, the published one is {digits}"
        cure = "run again later, or name a mirror in params.yaml: download.url_mirrors"
        return Pin(self.md5, fault, cure, "md5") if self.md5 else None


class Published:
    """All files of a dataset: those in archives by their paths, a compressed file without its `.gz`.

    `budget` counts the pictures that a reader makes from them.
    """

    def __init__(self, title: str, members: Members, limits: Limits) -> None:
        self.members, self.budget = members, Budget(title, limits)

    def member(self, name: str) -> Callable[[], bytes]:
        """The function that reads a file. Raises PipelineError if there is none of that name."""
        if name not in self.members:
            raise self.fault(name, "is missing")
        return self.members[name]

    def lines(self, name: str) -> list[str]:
        """The lines of a text file, without empty ones. Raises PipelineError."""
        try:
            lines = self.member(name)().decode().splitlines()
        except UnicodeDecodeError:
            raise self.fault(name, "is not text in UTF-8") from None
        return [line.strip() for line in lines if line.strip()]

    def class_names(self, name: str) -> list[str]:
        """The lines of a text file, each valid as the name of a folder, all different. Raises PipelineError."""
        names = self.lines(name)
        for line in names:
            if "/" in line or name_fault(line) or is_junk(line) or not line.isprintable():
                raise self.fault(name, f"names the class {shown(line)}, which cannot be a folder")
        if len({line.casefold() for line in names}) < len(names):
            raise self.fault(name, "names a class twice")
        return names

    def fault(self, name: str, fault: str) -> PipelineError:
        """The error for a file that is not in the published format."""
        return PipelineError(f"{self.budget.title}: {shown(name)} {fault}; name a folder or an archive of the pictures instead")


Reader = Callable[[Published], Members]  # returns a dataset's pictures, as `<split>/<class>/<file>`


def all_members(published: Published) -> Members:
    """The files as they are: an archive of folders of pictures."""
    return published.members


@contextmanager
def open_published(title: str, paths: Mapping[str, Path], limits: Limits) -> Iterator[Published]:
    """Open the files of a dataset. `paths`: by their published names. Raises PipelineError."""
    members: Members = {}
    with ExitStack() as stack:
        for name, path in paths.items():
            if is_archive(name):
                members |= stack.enter_context(open_archive(path, f"{title}: {name}", limits))
            else:
                members[name.removesuffix(".gz")] = partial(_read, name, path, Budget(f"{title}: {name}", limits, path.stat().st_size))
        yield Published(title, members, limits)


def _read(name: str, path: Path, budget: Budget) -> bytes:
    with damage_named(budget.title), gzip.open(path) if name.endswith(".gz") else path.open("rb") as file:
        return budget.read(name, iter(partial(file.read, BLOCK), b""))


def picture_members(
    published: Published, split: str, pictures: "Iterable[NDArray[uint8]]", labels: Iterable[int], class_names: Sequence[str]
) -> Members:
    """One split's pictures as `<split>/<class>/<number>.png`, each encoded when it is read.

    `pictures`: (height, width) or (height, width, 3), uint8; `labels`: indices into `class_names`, one per picture.
    Raises PipelineError if there are more than the limits allow.
    """
    members: Members = {}
    for number, (pixels, label) in enumerate(zip(pictures, labels, strict=True)):
        published.budget.add_file()
        members[f"{split}/{class_names[label]}/{number:05d}.png"] = partial(encode_png, pixels)
    return members


def encode_png(pixels: "NDArray[Any]") -> bytes:
    """A picture as a PNG file. `pixels`: (height, width) or (height, width, 3), uint8."""
    from PIL import Image

    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG", compress_level=0)  # compressed bytes would depend on the version of zlib
        return file.getvalue()


def cifar10_members(published: Published) -> Members:
    """The pictures of CIFAR-10, in its splits. Raises PipelineError."""
    splits = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
    return _cifar_members(published, "cifar-10-batches-bin", splits, "batches.meta.txt", 1)


def cifar100_members(published: Published) -> Members:
    """The pictures of CIFAR-100, in its splits and fine classes. Raises PipelineError."""
    return _cifar_members(published, "cifar-100-binary", {"train": ["train"], "test": ["test"]}, "fine_label_names.txt", 2)


def _cifar_members(published: Published, folder: str, splits: dict[str, list[str]], classes: str, label_bytes: int) -> Members:
    class_names, members = published.class_names(f"{folder}/{classes}"), Members()
    for split, names in splits.items():
        batches = [_read_cifar_batch(published, f"{folder}/{name}.bin", label_bytes, len(class_names)) for name in names]
        pictures = chain.from_iterable(pictures for pictures, _ in batches)
        labels = chain.from_iterable(labels.tolist() for _, labels in batches)
        members |= picture_members(published, split, pictures, labels, class_names)
    return members


def _read_cifar_batch(published: Published, name: str, label_bytes: int, num_classes: int) -> "tuple[NDArray[uint8], NDArray[uint8]]":
    """The pictures of a file, (N, 32, 32, 3), and their labels, (N,). With a coarse and a fine label, the fine one is last."""
    import numpy as np

    content = published.member(name)()
    size = label_bytes + _CIFAR_PIXEL_BYTES
    if not content or len(content) % size:
        raise published.fault(name, f"has {len(content)} bytes, which is not a whole number of records of {size}")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    labels = records[:, label_bytes - 1]
    if labels.max() >= num_classes:
        raise published.fault(name, f"contains the label {labels.max()}, but there are {num_classes} classes")
    return records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def digits_members(published: Published) -> Members:
    """The digits of scikit-learn, 8 x 8 grey pixels each, as `<digit>/<number>.png`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {
        f"{label}/{number:04d}.png": partial(encode_png, (pixels * (255 / 16)).round().astype("uint8"))
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True))
    }


def flower_members(published: Published) -> Members:
    """The pictures as `<split>/<class>/<picture>.jpg`. Raises PipelineError."""
    labels = _read_vector(published, "imagelabels.mat", "labels")
    if strange := set(labels) - set(range(1, len(FLOWER_NAMES) + 1)):
        raise published.fault("imagelabels.mat", f"contains the label {min(strange)}, but there are {len(FLOWER_NAMES)} classes")
    members: Members = {}
    for split, key in _FLOWER_SPLITS.items():
        for number in _read_vector(published, "setid.mat", key):
            if not 1 <= number <= len(labels):
                raise published.fault("setid.mat", f"names picture {number}, but there are {len(labels)} labels")
            picture = f"image_{number:05d}.jpg"
            members[f"{split}/{FLOWER_NAMES[labels[number - 1] - 1]}/{picture}"] = published.member(f"jpg/{picture}")
    return members


def _read_vector(published: Published, name: str, key: str) -> list[int]:
    """The whole numbers of a variable in a MATLAB file, bounded before and after they are unpacked."""
    from scipy.io import loadmat

    content = published.member(name)()
    if len(content) > _MATLAB_BYTES:
        raise published.fault(name, "is larger than 64 KiB")
    try:
        values = loadmat(io.BytesIO(content), variable_names=[key])[key]
        if values.dtype.kind not in "iu":
            raise TypeError
    except Exception:  # scipy raises exceptions of many kinds on a damaged file
        raise published.fault(name, f"is not a MATLAB file with whole numbers named {key}") from None
    if values.size > len(published.members):
        raise published.fault(name, f"contains {values.size} numbers named {key}, but there are {len(published.members)} files")
    return [int(value) for value in values.ravel()]


def food_members(published: Published) -> Members:
    """The pictures in the lists, as `<split>/<class>/<picture>.jpg`. Raises PipelineError."""
    class_names = set(published.class_names("food-101/meta/classes.txt"))
    members: Members = {}
    for split in ("train", "test"):
        name = f"food-101/meta/{split}.txt"
        for line in published.lines(name):
            match = _FOOD_LINE.fullmatch(line)
            if not match or match[1] not in class_names:
                raise published.fault(name, f"contains the line {shown(line)}, which is not a picture of a known class")
            members[f"{split}/{line}.jpg"] = published.member(f"food-101/images/{line}.jpg")
    return members


def idx_members(published: Published, class_names: Sequence[str]) -> Members:
    """The pictures of MNIST, or of a dataset in its format, in its splits. Raises PipelineError."""
    members: Members = {}
    for split, prefix in _IDX_PREFIXES.items():
        pictures = read_idx(published, f"{prefix}-images-idx3-ubyte", 3)
        name = f"{prefix}-labels-idx1-ubyte"
        labels = read_idx(published, name, 1)
        if len(labels) != len(pictures):
            raise published.fault(name, f"contains {len(labels)} labels for {len(pictures)} pictures")
        if labels.max() >= len(class_names):
            raise published.fault(name, f"contains the label {labels.max()}, but there are {len(class_names)} classes")
        members |= picture_members(published, split, pictures, labels.tolist(), class_names)
    return members


def read_idx(published: Published, name: str, dimensions: int) -> "NDArray[uint8]":
    """The array in an IDX file, uint8, with that many dimensions, none of them empty. Raises PipelineError."""
    import numpy as np

    content = published.member(name)()
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, _IDX_UINT8, dimensions]):
        raise published.fault(name, f"does not begin like an IDX file of bytes, {dimensions}-dimensional")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    if math.prod(shape) != len(content) - start or not all(shape):
        sizes = " x ".join(map(str, shape))
        raise published.fault(name, f"claims {sizes} values and has {len(content) - start}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def pet_members(published: Published) -> Members:
    """The pictures in the lists, as `<split>/<breed>/<picture>.jpg`. Pictures in no list are left out. Raises PipelineError."""
    members: Members = {}
    breeds: dict[str, str] = {}
    for split, name in _PET_LISTS.items():
        for line in published.lines(name):
            match = _PET_LINE.fullmatch(line)
            if not match:
                raise published.fault(name, f"contains the line {shown(line)}, which is not a picture with its class")
            picture, breed, label = match.groups()
            if breeds.setdefault(label, breed) != breed:
                raise published.fault(name, f"has {breeds[label]} and {breed} as class {label}")
            members[f"{split}/{breed}/{picture}.jpg"] = published.member(f"images/{picture}.jpg")
    return members
