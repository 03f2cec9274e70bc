"""From a folder of labelled pictures to a classifier you can trust.

    download → split → embed → train_baseline → train → evaluate → report
    backbone ─────────↗

`dvc.yaml` connects the stages, `params.yaml` sets their params. Each stage is one file in `stages/`; `commands/` is the command line.
What they share is in rooms, one folder per subject. A room imports only from the rooms before it in this list:

    core        errors, files, params, what every stage shares, hardware, DVC, Ray
    net         downloads, and the store that keeps them
    sources     data sets, folders, archives and tables of labels → packed pictures
    pictures    decode, audit and split pictures
    networks    architectures, weights, ONNX files, model folders
    training    recipe, batches, loop, linear head, checkpoint, temperature
    evaluation  metrics, intervals, calibration, figures, galleries
    report      the HTML page
    tracking    MLflow
    serving     predictions of a stored model
    promotion   the gate, the journal, retraining on a schedule
    server      HTTP: predictions over the network, and their page
    drift       new pictures compared with those that the champion knows
    search      advise, tune, find-lr, seeds
    stock       pretrained networks as they are

`model.py` is the stored model in Python: `from pipeline import load_model`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.model import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    """Import `load_model` when it is used, so that `import pipeline` imports nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.model import load_model

    return load_model
