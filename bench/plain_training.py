"""Run the stage `train` as a plain loop would compute it: BatchNorm on its own, every layer in one precision. The arguments are the stage's."""

from contextlib import nullcontext

from pipeline.core import stage
from pipeline.stages import train
from pipeline.training import loop


def main() -> None:
    """Train without the loop's faster layers."""
    vars(loop.Trainer)["fast_layers"]  # a KeyError if it has another name
    setattr(loop.Trainer, "fast_layers", lambda _: nullcontext())  # noqa: B010
    stage.main("models.*", train.Params, train.run)


if __name__ == "__main__":
    main()
