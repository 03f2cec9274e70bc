"""fastai's vision_learner: the whole network, one-cycle schedule, in fp32. RandomResizedCrop and flips alone, its fastest way."""

import time
from typing import Any

from fastai.vision.all import Callback, CrossEntropyLossFlat, Flip, ImageDataLoaders, Normalize, RandomResizedCrop, set_seed, vision_learner
from fastai.vision.all import accuracy as share_right
from peer import BATCH_SIZE, IMAGE_SIZE, MEAN_STD, NETWORK, WORKERS, arguments, load_body, report

RATE = 1e-3


class EpochSeconds(Callback):  # type: ignore[misc] # the extra `bench` is not installed where types are checked
    """Times the training part of each epoch."""

    def __init__(self) -> None:
        self.begun, self.seconds = 0.0, list[float]()

    def before_train(self) -> None:
        self.begun = time.perf_counter()

    def after_train(self) -> None:
        self.seconds.append(time.perf_counter() - self.begun)


def main() -> None:
    """Train, or time a validation."""
    parsed = arguments(__doc__, ("whole", "evaluate"))
    set_seed(0)
    loaders: Any = ImageDataLoaders.from_folder(
        parsed.pictures,
        train="train",
        valid="val",
        item_tfms=RandomResizedCrop(IMAGE_SIZE),
        batch_tfms=[Flip(), Normalize.from_stats(*MEAN_STD)],
        bs=BATCH_SIZE,
        num_workers=WORKERS,
    )
    times = EpochSeconds()
    learner = vision_learner(loaders, NETWORK, pretrained=False, loss_func=CrossEntropyLossFlat(), metrics=share_right, cbs=[times])
    load_body(learner.model[0].model, parsed.weights)
    learner.unfreeze()
    with learner.no_bar(), learner.no_logging():
        if parsed.work == "whole":
            learner.fit_one_cycle(parsed.epochs, RATE)
        begun = time.perf_counter()
        _, right = learner.validate()
        speed = len(loaders.valid_ds) / (time.perf_counter() - begun)
    if parsed.work == "whole":
        report(pictures_per_second=len(loaders.train_ds) / times.seconds[-1], accuracy=right)
    else:
        report(pictures_per_second=speed)


if __name__ == "__main__":
    main()
