"""The catalogue of the data sets that have a name: where they are published, under what terms, and who reads them."""

from dataclasses import dataclass
from functools import partial

from pipeline.data.named.cifar import cifar10_members, cifar100_members
from pipeline.data.named.digits import digits_members
from pipeline.data.named.flowers import flower_members
from pipeline.data.named.food import food_members
from pipeline.data.named.idx import idx_members
from pipeline.data.named.pets import pet_members
from pipeline.data.named.published import PublishedFile, Reader, all_members


@dataclass(frozen=True)
class NamedSource:
    """A data set with a name: its licence, the files that it is published as (none: a package carries it), what reads them.

    Where there are several files, each has a checksum. `digest`: that of the content, where it is known.
    """

    licence: str
    files: tuple[PublishedFile, ...] = ()
    read: Reader = all_members
    digest: str | None = None


def _mnist_files(folder: str, *md5s: str) -> tuple[PublishedFile, ...]:
    names = [f"{prefix}-{kind}-ubyte.gz" for prefix in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return tuple(PublishedFile(f"{folder}{name}", md5) for name, md5 in zip(names, md5s, strict=True))


def _files(folder: str, *files: tuple[str, str]) -> tuple[PublishedFile, ...]:
    return tuple(PublishedFile(f"{folder}{name}", md5) for name, md5 in files)


# Chapters 4 to 9 of the course «Learn PyTorch for Deep Learning» use this archive; the commit keeps it from changing.
_FOOD_COMMIT = "3b6c230bc4b373456f3a6ccd2734cac23cfac77f"

_EUROSAT_COMMIT = "c877bcd43f099cd0196738f714544e355477f3fd"
_FASHION = ("T-shirt_top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")  # it is «T-shirt/top»
_VGG = "https://www.robots.ox.ac.uk/~vgg/data/"

NAMED = {
    "digits": NamedSource(
        "CC BY 4.0 (UCI Machine Learning Repository, optical recognition of handwritten digits)",
        read=digits_members,
        digest="37acf0748c15b78e0925dba295929831a53986dbc868cb45322833d51c5da306",
    ),
    "hymenoptera": NamedSource(
        "pictures of the web, for teaching; no licence stated",
        (PublishedFile("https://download.pytorch.org/tutorial/hymenoptera_data.zip"),),
        digest="5a108f97d3bce1380a9ce668f27cbad193fc4949eae3742814be6880564333ae",
    ),
    "pizza_steak_sushi": NamedSource(
        "a part of Food-101: pictures of the web, for research",
        (PublishedFile(f"https://raw.githubusercontent.com/mrdbourke/pytorch-deep-learning/{_FOOD_COMMIT}/data/pizza_steak_sushi.zip"),),
    ),
    "mnist": NamedSource(
        "CC BY-SA 3.0 (Yann LeCun and Corinna Cortes, from NIST's databases)",
        _mnist_files(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        partial(idx_members, class_names="0123456789"),
    ),
    "fashion_mnist": NamedSource(
        "MIT (Zalando SE)",
        _mnist_files(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        partial(idx_members, class_names=_FASHION),
    ),
    "cifar10": NamedSource(
        "no licence stated (Alex Krizhevsky, Vinod Nair and Geoffrey Hinton)",
        _files("https://www.cs.toronto.edu/~kriz/", ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")),
        cifar10_members,
    ),
    "cifar100": NamedSource(
        "no licence stated (Alex Krizhevsky, Vinod Nair and Geoffrey Hinton)",
        _files("https://www.cs.toronto.edu/~kriz/", ("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8")),
        cifar100_members,
    ),
    "flowers102": NamedSource(
        "no licence stated (Visual Geometry Group, Oxford)",
        _files(
            f"{_VGG}flowers/102/",
            ("102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
            ("imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
            ("setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
        ),
        flower_members,
    ),
    "oxford_iiit_pet": NamedSource(
        "CC BY-SA 4.0 (Visual Geometry Group, Oxford, and IIIT Hyderabad); the pictures remain their owners'",
        _files(
            f"{_VGG}pets/data/",
            ("images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
            ("annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
        ),
        pet_members,
    ),
    "food101": NamedSource(
        "pictures of Foodspotting, not property of ETH Zurich; what goes beyond scientific fair use is for their owners to allow",
        _files("http://data.vision.ee.ethz.ch/cvl/", ("food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87")),
        food_members,
    ),
    "eurosat": NamedSource(
        "MIT (Patrick Helber and others)",
        _files(
            f"https://huggingface.co/datasets/torchgeo/eurosat/resolve/{_EUROSAT_COMMIT}/",
            ("EuroSAT.zip", "c8fa014336c82ac7804f0398fcb19387"),
        ),
    ),
}  # fmt: skip
