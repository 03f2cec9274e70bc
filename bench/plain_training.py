"""Run the stage `train` as a plain loop computes it: BatchNorm apart, every layer in one precision. The arguments are the stage's."""

from contextlib import nullcontext

from pipeline.core import stage
from pipeline.stages import train
from pipeline.training import loop


def main() -> None:
    """Train without the loop's faster layers."""
    loop.Trainer.fast_layers = lambda _: nullcontext()  # type: ignore[method-assign,assignment,return-value]
    stage.main("models.*", train.Params, train.run)


if __name__ == "__main__":
    main()
