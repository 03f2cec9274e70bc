"""Small datasets in the formats of the published ones: a few different pictures of noise."""

import gzip
import io
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image
from scipy.io import savemat


def noise(seed, *shape):
    return np.random.default_rng([*map(ord, seed)]).integers(0, 256, shape, dtype=np.uint8)


def jpeg(seed):
    with io.BytesIO() as file:
        Image.fromarray(noise(seed, 24, 32, 3)).save(file, "JPEG")
        return file.getvalue()


def idx(array):
    """An array as an IDX file of bytes."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def cifar(*labels, pictures):
    """Records of CIFAR's binary version. `labels`: one or two lists; `pictures`: (N, 32, 32, 3)."""
    planes = np.moveaxis(pictures, 3, 1).reshape(len(pictures), -1)
    return b"".join(bytes(record) for record in np.column_stack([*labels, planes]).astype(np.uint8))


def matlab(**variables):
    with io.BytesIO() as file:
        savemat(file, variables, do_compression=True)
        return file.getvalue()


def tarred(contents):
    """A .tar.gz of these contents by their names."""
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return file.getvalue()


def zipped(contents):
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return file.getvalue()


# Each dataset as it is published: its files by name, and the expected pictures by split, class and file.


def mnist(class_names):
    """Three pictures a class to learn from and one to test."""
    files, expected = {}, {}
    for split, prefix, count in (("train", "train", 3), ("test", "t10k", 1)):
        labels = np.tile(np.arange(len(class_names)), count)
        pictures = noise(split, len(labels), 28, 28)
        files[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(idx(pictures), mtime=0)
        files[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(idx(labels), mtime=0)
        expected |= {
            f"{split}/{class_names[label]}/{number:05d}.png": pixels
            for number, (label, pixels) in enumerate(zip(labels, pictures, strict=True))
        }
    return files, expected


def cifar10():
    names, expected = ["airplane", "frog"], {}
    batches = {f"cifar-10-batches-bin/data_batch_{number}.bin": ("train", 2 * number - 2) for number in range(1, 6)}
    contents = {"cifar-10-batches-bin/batches.meta.txt": "\n".join([*names, "", ""]).encode()}
    for name, (split, start) in (batches | {"cifar-10-batches-bin/test_batch.bin": ("test", 0)}).items():
        pictures = noise(name, 2, 32, 32, 3)
        contents[name] = cifar([1, 0], pictures=pictures)
        expected |= {f"{split}/{names[1 - place]}/{start + place:05d}.png": pictures[place] for place in (0, 1)}
    return {"cifar-10-binary.tar.gz": tarred(contents)}, expected


def cifar100():
    fine, expected = ["apple", "aquarium_fish", "baby"], {}
    contents = {"cifar-100-binary/fine_label_names.txt": b"apple\naquarium_fish\nbaby\n"}
    contents["cifar-100-binary/coarse_label_names.txt"] = b"aquatic_mammals\nfish\n"
    for split, labels in (("train", [0, 2, 1, 2, 1, 0, 1, 2, 0]), ("test", [2, 0, 1])):
        pictures = noise(split, len(labels), 32, 32, 3)
        contents[f"cifar-100-binary/{split}.bin"] = cifar([1] * len(labels), labels, pictures=pictures)
        expected |= {f"{split}/{fine[label]}/{number:05d}.png": pictures[number] for number, label in enumerate(labels)}
    return {"cifar-100-binary.tar.gz": tarred(contents)}, expected


def flowers102():
    """Two classes, in each split two pictures of either."""
    labels = [1] * 6 + [102] * 6
    splits = {"trnid": [1, 8, 2, 7], "valid": [9, 3, 10, 4], "tstid": [5, 11, 6, 12]}
    pictures = {number: jpeg(f"flower {number}") for number in range(1, 13)}
    files = {
        "102flowers.tgz": tarred({f"jpg/image_{number:05d}.jpg": content for number, content in pictures.items()}),
        "imagelabels.mat": matlab(labels=np.array([labels], np.uint8)),
        "setid.mat": matlab(**{key: np.array([numbers], np.uint16) for key, numbers in splits.items()}),
    }
    names = {1: "pink primrose", 102: "blackberry lily"}
    expected = {
        f"{split}/{names[labels[number - 1]]}/image_{number:05d}.jpg": pictures[number]
        for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
        for number in splits[key]
    }
    return files, expected


def oxford_iiit_pet():
    breeds = {"Abyssinian": "1 1 1", "american_bulldog": "2 2 1"}
    pictures = {f"{breed}_{number}": jpeg(f"{breed} {number}") for breed in breeds for number in (1, 2, 3, 100)}
    lists = {
        "trainval": [f"{breed}_{number} {rest}" for breed, rest in breeds.items() for number in (100, 1, 2)],
        "test": [f"{breed}_3 {rest}" for breed, rest in breeds.items()],
    }
    files = {
        "images.tar.gz": tarred(
            {f"images/{name}.jpg": content for name, content in pictures.items()}
            | {"images/Abyssinian_100.mat": b"of no use", "images/Abyssinian_9.jpg": jpeg("in no list")}
        ),
        "annotations.tar.gz": tarred(
            {f"annotations/{name}.txt": "".join(f"{line}\n" for line in lines).encode() for name, lines in lists.items()}
            | {"annotations/._trimaps": b"", "annotations/README": b"", "annotations/list.txt": b"#Image CLASS-ID SPECIES BREED ID\n"}
        ),
    }
    expected = {
        f"{split}/{line.split()[0].rpartition('_')[0]}/{line.split()[0]}.jpg": pictures[line.split()[0]]
        for split, name in (("train", "trainval"), ("test", "test"))
        for line in lists[name]
    }
    return files, expected


def food101():
    expected, contents = {}, {"food-101/meta/classes.txt": b"apple_pie\nbaby_back_ribs\n", "food-101/license_agreement.txt": b""}
    for split, numbers in (("train", (1005649, 1014775, 1026328)), ("test", (1011328,))):
        lines = [f"{label}/{number}" for label in ("apple_pie", "baby_back_ribs") for number in numbers]
        contents[f"food-101/meta/{split}.txt"] = "".join(f"{line}\n" for line in lines).encode()
        contents |= {f"food-101/images/{line}.jpg": jpeg(line) for line in lines}
        expected |= {f"{split}/{line}.jpg": jpeg(line) for line in lines}
    return {"food-101.tar.gz": tarred(contents)}, expected


def eurosat():
    pictures = {f"2750/{label}/{label}_{number}.jpg": jpeg(f"{label} {number}") for label in ("Forest", "River") for number in range(1, 8)}
    return {"EuroSAT.zip": zipped(pictures)}, pictures


FASHION = ["T-shirt_top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]

SETS = {
    "mnist": lambda: mnist("0123456789"),
    "fashion_mnist": lambda: mnist(FASHION),
    "cifar10": cifar10,
    "cifar100": cifar100,
    "flowers102": flowers102,
    "oxford_iiit_pet": oxford_iiit_pet,
    "food101": food101,
    "eurosat": eurosat,
}
