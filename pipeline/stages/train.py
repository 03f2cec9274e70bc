"""Train one entry of `models` by its regime and recipe, and keep the epoch that is best on val."""

from pathlib import Path

from pydantic import PositiveInt

from pipeline.core import processes, stage
from pipeline.core.hardware import choose_hardware, keep_freed_memory
from pipeline.core.sections import Rate
from pipeline.networks.artifact import identity
from pipeline.tracking.runs import live_run
from pipeline.training.batches import decode_val, read_training_data
from pipeline.training.checkpoint import find_checkpoint
from pipeline.training.loop import describe_training, prepare, start_classifier
from pipeline.training.loop import train as train_model
from pipeline.training.recipe import Recipe, resolve_auto
from pipeline.training.temperature import store_model


class Params(Recipe):
    """An entry of section `models` of params.yaml; section `recipe` has the values that the entry leaves out."""

    processes: PositiveInt
    false_alarm_rate: Rate | None


def run(params: Params, train: Path, val: Path, manifest: Path, backbone: Path, embeddings: Path, baseline: Path, model: Path) -> None:
    """Read the data, train, and write the model folder. A run that was killed resumes after its last complete epoch."""
    keep_freed_memory()
    data = read_training_data(train, val, manifest, backbone, embeddings, baseline)
    recipe = resolve_auto(params, len(data.train_paths))
    with processes.leader_first():
        hardware = choose_hardware(recipe.seed, recipe.threads, recipe.precision)
    facts = describe_training(model.name, recipe, data, hardware, "pipeline.stages.train")
    checkpoint = find_checkpoint(model.name, identity(facts))
    val_pixels = decode_val(data, recipe)
    trainer = prepare(start_classifier(recipe, data), val_pixels, recipe, data, hardware, checkpoint.activations)
    if not processes.leads():
        train_model(trainer, lambda _: None, checkpoint)
        return
    with live_run(facts, model) as log:
        history = train_model(trainer, log, checkpoint)
        store_model(trainer.classifier.cpu(), val_pixels, data, facts, history, params.false_alarm_rate, model)
    checkpoint.remove()


if __name__ == "__main__":
    stage.main("models.*", Params, run)
