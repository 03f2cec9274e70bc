"""Run the stage `train` in a project, and print how fast its last epoch went. The arguments are those of the stage in dvc.yaml."""

import json
import time
from typing import Any

from pipeline.core import stage
from pipeline.stages import train
from pipeline.training import loop


def main() -> None:
    """Time the loop's `train_epoch`, which scores nothing, within the stage as it is."""
    seconds, run_epoch = list[float](), loop.train_epoch
    pictures = []

    def timed(trainer: loop.Trainer, title: str) -> Any:
        begun = time.perf_counter()
        metrics = run_epoch(trainer, title)
        seconds.append(time.perf_counter() - begun)
        pictures.append(sum(trainer.batch_sizes))
        return metrics

    loop.train_epoch = timed
    stage.main("models.*", train.Params, train.run)
    print(json.dumps({"pictures_per_second": pictures[-1] / seconds[-1]}))


if __name__ == "__main__":
    main()
