"""The loop of PyTorch's transfer-learning tutorial, in its style: a train and a val phase per epoch, SGD with momentum, in fp32.

Batches have 32 pictures in place of 4, and the rate grows with them (Goyal et al., 2017): small batches would be slower.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peer import BATCH_SIZE, WORKERS, arguments, image_folder, load_network, report
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

RATE = 0.001 * BATCH_SIZE / 4


def make_loaders(pictures: Path) -> dict[str, DataLoader[Any]]:
    """Batches of both phases."""
    return {
        phase: DataLoader(image_folder(pictures, phase, phase), BATCH_SIZE, shuffle=phase == "train", num_workers=WORKERS)
        for phase in ("train", "val")
    }


def run_phase(model: nn.Module, loader: DataLoader[Any], optimizer: optim.Optimizer | None) -> float:
    """Run over the pictures once, and train if there is an optimizer. Returns the accuracy."""
    criterion = nn.CrossEntropyLoss()
    model.train(optimizer is not None)
    running_loss, running_corrects, pictures = 0.0, 0, 0
    for inputs, labels in loader:
        with torch.set_grad_enabled(optimizer is not None):
            outputs = model(inputs)
            loss = criterion(outputs, labels)
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        running_loss += loss.item() * len(inputs)
        running_corrects += int((outputs.argmax(dim=1) == labels).sum())
        pictures += len(inputs)
    return running_corrects / pictures


def train_model(model: nn.Module, loaders: dict[str, DataLoader[Any]], epochs: int) -> dict[str, Any]:
    """Train what requires a gradient and keep the best epoch. Returns its accuracy, the seconds per epoch and the speed of the last."""
    optimizer = optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=RATE, momentum=0.9)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    best, speed, epoch_seconds = -1.0, 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "best.pt")
        for _ in range(epochs):
            begun = time.perf_counter()
            run_phase(model, loaders["train"], optimizer)
            scheduler.step()
            speed = len(loaders["train"].dataset) / (time.perf_counter() - begun)  # type: ignore[arg-type]
            right = run_phase(model, loaders["val"], None)
            if right > best:
                best = right
                torch.save(model.state_dict(), checkpoint)
            epoch_seconds.append(time.perf_counter() - begun)
        model.load_state_dict(torch.load(checkpoint, weights_only=True))
    return {"pictures_per_second": speed, "accuracy": best, "epoch_seconds": epoch_seconds}


def frozen(weights: Path, num_classes: int) -> nn.Module:
    """The network as a fixed feature extractor: only the new head learns."""
    model = load_network(weights, num_classes)
    for name, weight in model.named_parameters():
        weight.requires_grad = name.startswith("classifier.")
    return model


def main() -> None:
    """Train by one of the loops or by both, or time a pass over the val pictures."""
    parsed = arguments(__doc__, ("whole", "frozen", "both", "evaluate"))
    torch.manual_seed(0)
    loaders = make_loaders(parsed.pictures)
    num_classes = len(loaders["train"].dataset.classes)  # type: ignore[attr-defined]
    figures: dict[str, Any] = {}
    if parsed.work in ("whole", "both"):
        figures = train_model(load_network(parsed.weights, num_classes), loaders, parsed.epochs)
    if parsed.work in ("frozen", "both"):
        of_frozen = train_model(frozen(parsed.weights, num_classes), loaders, parsed.epochs)
        figures = figures or of_frozen
    if parsed.work == "evaluate":
        model, begun = load_network(parsed.weights, num_classes), time.perf_counter()
        run_phase(model, loaders["val"], None)
        figures = {"pictures_per_second": len(loaders["val"].dataset) / (time.perf_counter() - begun)}  # type: ignore[arg-type]
    report(**figures)


if __name__ == "__main__":
    main()
