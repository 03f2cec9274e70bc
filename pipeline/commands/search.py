"""`pipeline advise`, `find-lr`, `tune` and `seeds`: choose a network, a regime and a recipe, and measure the noise between seeds."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.answering import png
from pipeline.commands.show import align
from pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.search.tuning import Study, Trial
    from pipeline.training.batches import TrainingData

_MADE_BY_REPRO = (
    "data/manifest.csv",
    "data/splits/train",
    "data/splits/val",
    "data/embeddings/embedding.json",
    "models/backbone/backbone.json",
    "models/baseline/model.safetensors",
)
_FEWEST_STEPS = 20  # of find-lr
_SHOWN = 5  # trials
_STATES = {"complete": "complete", "pruned": "pruned", "failed": "diverged"}
_COLUMNS = {"top1_accuracy": "top-1 accuracy", "balanced_accuracy": "balanced accuracy", "log_loss": "log loss", "ece": "ECE"}


def choose_entry(command: str, named: str | None) -> str:
    """The entry of `models` of that name, or the first one. Raises PipelineError."""
    from pipeline.core.params import model_names

    names = model_names()
    name = str(named or next(iter(names), ""))
    if name not in names:
        raise PipelineError(f"{command} {name}: is no entry of `models` in params.yaml; its entries: {', '.join(names) or 'none'}")
    return name


def read_data() -> "TrainingData":
    """The data of a training run, from the outs of `dvc repro`. Raises PipelineError if one is missing or out of date."""
    from pipeline.networks.artifact import BACKBONE, check_backbone, read_backbone

    for path in _MADE_BY_REPRO:
        if not Path(path).exists():
            raise PipelineError(f"{path}: does not exist; run `dvc repro`")
    read_backbone()
    check_backbone(Path("models/baseline"))
    from pipeline.training.batches import read_training_data

    data, models = Path("data"), Path("models")
    return read_training_data(
        data / "splits/train", data / "splits/val", data / "manifest.csv", BACKBONE, data / "embeddings", models / "baseline"
    )


def add_advise(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("advise", help="recommend a network and a regime for the pictures")
    parser.add_argument("--write", action="store_true", help="set the recommendation in params.yaml")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    parser.set_defaults(run=advise)


def advise(parsed: argparse.Namespace) -> None:
    """Measure, print the recommendation, and write it with --write. Raises PipelineError."""
    from pipeline.core.params import PARAMS, model_names, set_params
    from pipeline.core.sections import read_section
    from pipeline.search.advice import find_evidence
    from pipeline.training.recipe import Recipe

    regimes = {name: read_section(f"models.{name}", Recipe).regime for name in model_names()}
    facts = find_evidence()
    values = to_set(facts, regimes)
    print(json.dumps({**facts, "params": nested(values)}, indent=2) if parsed.json else show_advice(facts, values))
    if parsed.write and values:
        set_params(values)
        print(f"Written: see `git diff {PARAMS}`.", file=sys.stderr)


def to_set(facts: Mapping[str, Any], regimes: Mapping[str, str]) -> dict[str, Any]:
    """The values of params.yaml, by dotted name, that follow the recommendation: a new entry of `models`, the network.

    `regimes`: of the present entries, by name.
    """
    network, regime, values = facts["network"], facts["regime"], dict[str, Any]()
    if regime not in regimes.values():
        values[f"models.{f'advised_{regime}' if regime in regimes else regime}"] = {"regime": regime}
    if network != facts["distance"]["network"]:
        values |= {"backbone.name": network, "backbone.weights": "packaged", "backbone.digest": None}
    return values


def nested(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"a.b": 1}` as `{a: {b: 1}}`, the form of params.yaml."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections


def show_advice(facts: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """The facts of `find_evidence` for people: the data, both tables, and the values to set in params.yaml."""
    from pipeline.core.params import PARAMS, spell
    from pipeline.search.advice import MUCH

    distance, regime, seconds = facts["distance"], facts["regime"], facts["seconds"]
    amount, far = ("much" if facts["is_much"] else "little"), ("far from" if distance["is_far"] else "close to")
    lines = [
        f"{facts['training_pictures']:,} training pictures, {facts['a_class']:g} per class (median): {amount} data; {MUCH:,} are much.",
        f"A head on features of {distance['network']} is wrong about {distance['errors']:.1%} of them, and about "
        f"{distance['untrained_errors']:.1%} on features of",
        f"the same network with random weights: {distance['remaining']:.0%} of the errors remain. They are {far} what it was trained on.",
        f"A common rule of thumb then recommends {facts['sketch']}. Measured:",
        "",
        *_candidates("network", "log loss of a head", facts["networks"], {}),
        "",
        *_candidates("regime", "val log loss", facts["regimes"], seconds),
        "",
        f"Recommended: {facts['network']}, {regime}, about {seconds[regime]:.0f} s per training on this machine.",
        *(["", f"To set in {PARAMS}, by hand or with --write:"] if values else [f"{PARAMS} has it already."]),
    ]
    for section, keys in nested(values).items():
        lines += [f"{section}:", *(f"  {key}: {spell(value)}" for key, value in keys.items())]
    return "\n".join(lines)


def _candidates(title: str, figure: str, candidates: Sequence[Mapping[str, Any]], seconds: Mapping[str, float]) -> list[str]:
    """A table with a row per candidate, the simplest first."""
    rows = [[title, figure, *(["seconds"] if seconds else []), "difference, 95 % interval"]]
    rows += [
        [facts["name"], f"{facts['loss']:.3f}", *([f"{seconds[facts['name']]:.0f}"] if seconds else []), _difference(facts)]
        for facts in candidates
    ]
    return align(rows)


def _difference(facts: Mapping[str, Any]) -> str:
    if facts["rival"] is None:
        return "-"
    if facts["interval"] is None:
        return f"the same as {facts['rival']}"
    low, high = facts["interval"]
    verdict = "better" if facts["is_better"] else "not shown to be better"
    return f"{facts['difference']:+.3f} [{low:+.3f}, {high:+.3f}]: {verdict} than {facts['rival']}"


def add_find_lr(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("find-lr", help="draw the loss as the learning rate grows, and recommend a rate")
    parser.add_argument("model", nargs="?", help="an entry of `models` in params.yaml (default: the first)")
    parser.add_argument("--steps", type=int, default=100, help="of training, at most (default: %(default)s)")
    parser.add_argument("--output", type=png, metavar="FILE.png", default="find_lr.png", help="the plot (default: %(default)s)")
    parser.set_defaults(run=find_lr, here=Path.cwd())


def find_lr(parsed: argparse.Namespace) -> None:
    """Train a copy at a growing rate, draw the curve, and print the recommended rate. Raises PipelineError."""
    import tempfile

    from pipeline.core.files import atomic_file, output_path, writing
    from pipeline.core.sections import read_section

    output = output_path(parsed.here, parsed.output)
    name = choose_entry("find-lr", parsed.model)
    if parsed.steps < _FEWEST_STEPS:
        raise PipelineError(f"--steps: {parsed.steps} is not at least {_FEWEST_STEPS}")
    data = read_data()
    from pipeline.core.hardware import choose_hardware
    from pipeline.evaluation.figures import plot_rates
    from pipeline.search.probing import find_rates
    from pipeline.training.batches import decode_val
    from pipeline.training.loop import prepare, start_classifier
    from pipeline.training.recipe import Recipe, resolve_auto

    stated = resolve_auto(read_section(f"models.{name}", Recipe), len(data.train_paths))
    recipe = stated.model_copy(update={"schedule": "constant", "accumulate": 1, "ema": 0.0})  # the finder sets the rate of each step
    hardware = choose_hardware(recipe.seed, recipe.threads, recipe.precision)
    with tempfile.TemporaryDirectory() as folder:
        activations = Path(folder) / "activations.npy"
        trainer = prepare(start_classifier(recipe, data), decode_val(data, recipe), recipe, data, hardware, activations)
        curve = find_rates(trainer, parsed.steps)
    with writing(output), atomic_file(output) as partial:
        plot_rates(partial, curve.rates, curve.losses, curve.suggestion, f"{name}: the loss as the learning rate grows")
    print(f"models.{name}.learning_rate: {curve.suggestion:g}")
    print(output)


def add_tune(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("tune", help="search the recipe of an entry of `models` that is best on val")
    parser.add_argument("model", nargs="?", help="an entry of `models` in params.yaml (default: the first)")
    parser.add_argument("--trials", type=int, help="in all, with those of earlier calls (default: tune.trials of params.yaml)")
    parser.add_argument("--write", action="store_true", help="set the best recipe in params.yaml")
    parser.set_defaults(run=tune)


def tune(parsed: argparse.Namespace) -> None:
    """Run the missing trials, print the best ones, and write the best with --write. Raises PipelineError."""
    from pipeline.core.params import PARAMS, set_params
    from pipeline.core.sections import read_section

    name = choose_entry("tune", parsed.model)
    from pipeline.search.tuning import Params, open_study, read_space, run_trials
    from pipeline.tracking.runs import live_study
    from pipeline.training.recipe import Recipe

    params, space, stated = read_section("tune", Params), read_space(), read_section(f"models.{name}", Recipe)
    count = params.trials if parsed.trials is None else parsed.trials
    if count < 1:
        raise PipelineError(f"--trials: {count} is not at least 1")
    data = read_data()
    with open_study(name, stated, space, params.startup_trials, data) as study:
        if study.trials:
            print(f"{study.facts['model']}: {len(study.trials)} trials are finished", file=sys.stderr)
        with live_study(study) as log:
            for trial in run_trials(study, stated, data, count):
                print(f"trial {trial.number} of {count}: {_summary(trial, study.monitor)}", file=sys.stderr)
                log.bring_up_to_date()
    if not study.ranking:
        raise PipelineError(f"tune {name}: none of {len(study.trials)} trials is complete; narrow tune.space in {PARAMS}")
    print(show_study(name, study))
    if parsed.write:
        set_params({f"models.{name}.{key}": value for key, value in study.ranking[0].params.items()})
        print(f"\nWritten: see `git diff {PARAMS}`.")


def _summary(trial: "Trial", monitor: str) -> str:
    from pipeline.core.params import spell

    params = ", ".join(f"{key} {spell(value)}" for key, value in trial.params.items())
    if trial.value is None:
        return f"{_STATES['failed']}; {params}"
    ending = f", pruned after epoch {len(trial.history) - 1}" if trial.state == "pruned" else ""
    return f"{monitor} {trial.value:.4f}{ending}; {params}"


def show_study(name: str, study: "Study") -> str:
    """The table of the best trials, the numbers of trials by state, and the best one as lines of params.yaml."""
    from pipeline.core.params import spell

    keys, best = list(study.space), study.ranking[0]
    rows = [[str(trial.number), f"{trial.value:.4f}", *(spell(trial.params[key]) for key in keys)] for trial in study.ranking[:_SHOWN]]
    states = [trial.state for trial in study.trials]
    counts = [f"{states.count(state)} {word}" for state, word in _STATES.items() if state in states]
    return "\n".join(
        [
            *align([["trial", study.monitor, *keys], *rows]),
            "",
            f"{len(states)} trials: {', '.join(counts)}.{_stored(name, study)}",
            "The best of many trials looks better on val than it is: run `dvc repro` with it, and compare on the test pictures.",
            "",
            "models:",
            f"  {name}:",
            *(f"    {key}: {spell(best.params[key])}" for key in keys),
        ]
    )


def _stored(name: str, study: "Study") -> str:
    """The monitored figure of the stored model, if it was trained on the same pictures."""
    from pipeline.core.files import read_json
    from pipeline.networks.artifact import kept_row

    folder = Path("models") / name
    facts = read_json(folder / "model.json") if (folder / "model.json").is_file() else {"inputs_sha256": {}}
    if facts["inputs_sha256"].get("data") != study.facts["inputs_sha256"]["data"]:
        return ""
    return f" The stored model, {folder}: {study.monitor} {float(kept_row(folder)[study.monitor]):.4f}."


def add_seeds(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "seeds",
        help="run the pipeline once per seed; report mean, spread and the noise between seeds",
        description="Run the pipeline once per seed, as DVC experiments. The split and the training both vary with the seed.",
    )
    parser.add_argument("seeds", type=int, nargs="+", metavar="SEED")
    parser.add_argument("--keep-split", action="store_true", help="vary only the training: every run has the split of params.yaml")
    parser.add_argument(
        "-S", "--set-param", action="append", default=[], metavar="KEY=VALUE", help="passed on to `dvc exp run`; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.set_defaults(run=seeds)


def seeds(parsed: argparse.Namespace) -> None:
    """Run the missing experiments, and print the summary. Raises PipelineError."""
    from pipeline.search.seeds import run_seeds

    facts = run_seeds(parsed.seeds, parsed.set_param, parsed.keep_split)
    print(json.dumps(facts, indent=2) if parsed.json else show_seeds(facts))


def show_seeds(facts: Mapping[str, Any]) -> str:
    """The table of all models and figures, and its conclusions in sentences."""
    from pipeline.core.params import BASELINE
    from pipeline.search.seeds import noise, seeds_verdict

    rows = [["model", "figure", "mean ± std", *(f"seed {seed}" for seed in facts["seeds"]), "one run"]]
    for name, figures in facts["models"].items():
        for figure, title in _COLUMNS.items():
            values = figures[figure]
            cells = [f"{values['mean']:.3f} ± {values['std']:.3f}", *(f"{value:.3f}" for value in values["values"])]
            rows.append([name, title, *cells, "" if values["one_run"] is None else f"± {values['one_run']:.3f}"])
    counts = sorted(set(facts["test_pictures"]))
    pictures = " to ".join(map(str, (counts[0], counts[-1])[: len(counts)]))
    fixed = facts["split_seed"]
    lines = [
        *align(rows),
        "",
        "The split and the training both vary with the seed."
        if fixed is None
        else f"Only the training varies with the seed: every run has the split of seed {fixed}.",
        f"{pictures} test pictures; std between seeds; one run: half the {100 * facts['confidence']:g} % interval that a run reports.",
    ]
    lines += [noise(name, figures["top1_accuracy"], facts["confidence"]) for name, figures in facts["models"].items()]
    lines += [seeds_verdict(name, BASELINE, difference, facts["confidence"]) for name, difference in facts["differences"].items()]
    return "\n".join([*lines, f"Experiments: {', '.join(facts['experiments'])} (`dvc exp show`, `dvc exp apply NAME`)."])
