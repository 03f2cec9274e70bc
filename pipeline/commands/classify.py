"""`pipeline classify`: name pictures with an ImageNet network as it is."""

import argparse
from typing import TYPE_CHECKING, Any

from pipeline.commands.answering import add_row_arguments, answer
from pipeline.commands.pictures import add_command
from pipeline.commands.stock_networks import add_network_arguments, prepare_torch, wanted

if TYPE_CHECKING:
    from pipeline.stock.classify import ImageClassifier

_ABOUT = """\
Name pictures with a pretrained network as it is: a row a picture, in the order in which they are named.

Probabilities are the network's own, not calibrated, and have six places. CSV has the columns path, predicted, probability
(of the most probable class), top_1, top_1_prob and so on. A JSON line has the keys path, predicted, probability, probs."""

_EXAMPLES = """\
  pipeline classify pictures/ --sheet sheet.png > names.csv
  pipeline classify bee.jpg --model resnet50 --fetch --format jsonl"""


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "classify", "name pictures with a pretrained network as it is", _ABOUT, _EXAMPLES)
    add_network_arguments(parser, "tf_efficientnet_lite0", "a classification model of torchvision or timm, see `pipeline models`")
    add_row_arguments(parser, top=5)
    parser.set_defaults(run=classify)


def classify(parsed: argparse.Namespace) -> None:
    """Answer, and tell by the exit code whether all pictures could be read. Raises PipelineError."""
    from pipeline.stock.classify import load_classifier

    def open_stock(threads: int) -> "tuple[str, ImageClassifier]":
        return parsed.model, load_classifier(wanted(parsed), prepare_torch(threads))

    answer(parsed, "classify", open_stock)
