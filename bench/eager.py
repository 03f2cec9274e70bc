"""torch + timm, eager and in fp32: features computed once for scikit-learn's logistic regression, or one picture classified."""

from pathlib import Path

import numpy as np
import torch
from peer import BATCH_SIZE, TRANSFORMS, WORKERS, arguments, image_folder, load_network, report
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

CLASSES = 2  # of the network that classifies one picture


@torch.no_grad()
def features_of(network: nn.Module, pictures: Path, phase: str) -> tuple[np.ndarray, np.ndarray]:
    """The features, float32 (N, D), and the class numbers, int64 (N,), of the pictures of a phase, without augmentation."""
    batches = [
        (network(inputs), labels) for inputs, labels in DataLoader(image_folder(pictures, phase, "val"), BATCH_SIZE, num_workers=WORKERS)
    ]
    features, labels = zip(*batches, strict=True)
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


def fit_and_score(weights: Path, pictures: Path) -> None:
    """Fit on the features of `train`, score on those of `val`."""
    from sklearn.linear_model import LogisticRegression

    network = load_network(weights, 0).eval()
    (features, labels), (val_features, val_labels) = (features_of(network, pictures, phase) for phase in ("train", "val"))
    head = LogisticRegression(max_iter=1000).fit(features, labels)
    report(accuracy=float(head.score(val_features, val_labels)))


@torch.no_grad()
def predict(weights: Path, picture: Path) -> None:
    """Print the probabilities of a picture."""
    network = load_network(weights, CLASSES).eval()
    pixels = TRANSFORMS["val"](Image.open(picture).convert("RGB"))[None]
    report(probs=network(pixels).softmax(dim=1)[0].tolist())


def main() -> None:
    """Do one of the two."""
    parsed = arguments(__doc__, ("features", "predict"))
    {"features": fit_and_score, "predict": predict}[parsed.work](parsed.weights, parsed.pictures)


if __name__ == "__main__":
    main()
