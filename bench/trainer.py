"""Hugging Face's Trainer, with its defaults but for batch size, rate and workers: it trains the whole network in fp32."""

import tempfile
import time
from typing import Any

import torch
from peer import BATCH_SIZE, WORKERS, accuracy, arguments, image_folder, load_network, report
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer, TrainerCallback, TrainingArguments

RATE = 1e-3


class WithLoss(nn.Module):
    """A network as Trainer calls it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.network(pixel_values)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class EpochSeconds(TrainerCallback):  # type: ignore[misc] # the extra `bench` is not installed where types are checked
    """Times the training part of each epoch."""

    def __init__(self) -> None:
        self.begun, self.seconds = 0.0, list[float]()

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.begun = time.perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.begun)


def collate(examples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """A batch."""
    pixels, labels = zip(*examples, strict=True)
    return {"pixel_values": torch.stack(pixels), "labels": torch.tensor(labels)}


def main() -> None:
    """Train, or time an evaluation."""
    parsed = arguments(__doc__, ("whole", "evaluate"))
    train, val = (image_folder(parsed.pictures, phase, phase) for phase in ("train", "val"))
    times = EpochSeconds()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=BATCH_SIZE,
            num_train_epochs=parsed.epochs,
            learning_rate=RATE,
            dataloader_num_workers=WORKERS,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            WithLoss(load_network(parsed.weights, len(train.classes))),
            settings,
            data_collator=collate,
            train_dataset=train,
            eval_dataset=val,
            compute_metrics=lambda answers: {"accuracy": accuracy(*map(torch.as_tensor, (answers.predictions, answers.label_ids)))},
            callbacks=[times],
        )
        if parsed.work == "whole":
            trainer.train()
        scores = trainer.evaluate()
    if parsed.work == "whole":
        report(pictures_per_second=len(train) / times.seconds[-1], accuracy=scores["eval_accuracy"])
    else:
        report(pictures_per_second=scores["eval_samples_per_second"])


if __name__ == "__main__":
    main()
