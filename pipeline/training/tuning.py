"""Trials of a model's recipe: each is trained as the stage `train` trains, and given up where others did better."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from filelock import FileLock, Timeout

from pipeline.errors import PipelineError
from pipeline.files import cache_dir, sha256_of_json
from pipeline.models.artifact import identity
from pipeline.models.classifier import load_backbone
from pipeline.models.regimes import make_plan
from pipeline.training.checkpoint import key_here
from pipeline.training.course import Inputs, choose_hardware, set_up, tell_facts
from pipeline.training.recipe import DivergedError, Row
from pipeline.training.settings import Settings
from pipeline.training.space import Choices, Range, Space
from pipeline.training.study import State, Study, Trial


class _Hopeless(Exception):  # noqa: N818 - no error: the trial is given up
    pass


@contextmanager
def open_study(name: str, stated: Settings, space: Space, startup_trials: int, inputs: Inputs) -> Iterator[Study]:
    """The study of an entry of `models`, with the trials that are over, for this process alone.

    Other inputs, code or packages, another seed, space or recipe are another study; what the entry says of the keys of the
    space plays no part. Raises PipelineError where another process has it, its file is damaged, or the space goes beyond the network.
    """
    _check_stages(stated, space, inputs)
    facts = _facts(name, stated, space, startup_trials, inputs)
    key = key_here(sha256_of_json([identity(facts), version("optuna")]))
    facts["inputs_sha256"]["study"] = key
    path = cache_dir("tune") / name / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(path.with_suffix(".lock")).acquire(timeout=0)
    except Timeout:
        raise PipelineError(f"{path}: another `pipeline tune {name}` is running; wait for it") from None
    with lock:
        yield Study(facts, path, space, startup_trials, stated.seed, stated.monitor)


def _check_stages(stated: Settings, space: Space, inputs: Inputs) -> None:
    """Raise PipelineError where a trial could ask for more stages than there are, after hours of other trials."""
    regimes = {stated.regime, *_all_of(space.get("regime"))}
    if "stages" in space and "partial" in regimes:
        size = inputs.embedding["preprocessing"]["image_size"]
        make_plan("partial", max(_all_of(space["stages"])), "auto", 1, False, load_backbone(inputs.backbone)[0], size)


def _all_of(varied: Range | Choices | None) -> list[Any]:
    """The choices, or the ends of a range."""
    if varied is None:
        return []
    return varied.choices if isinstance(varied, Choices) else [varied.low, varied.high]


def run_trials(study: Study, stated: Settings, inputs: Inputs, count: int) -> Iterator[Trial]:
    """Run trials until the study has so many, and give each when it is kept. Raises PipelineError.

    One that a kill cut short goes on after its last whole epoch.
    """
    while len(study.trials) < count:
        yield _run_trial(study, stated, inputs)


def _run_trial(study: Study, stated: Settings, inputs: Inputs) -> Trial:
    proposal = study.propose()
    settings = Settings.model_validate({**stated.model_dump(), **proposal.params})
    training = set_up(study.facts["model"], settings, inputs, __name__)
    history: list[Row] = []

    def log(row: Row) -> None:
        history.append(row)
        if proposal.is_hopeless(row):
            raise _Hopeless

    state: State = "complete"
    try:
        training.run(log)
    except _Hopeless:
        state = "pruned"
    except DivergedError:
        state = "failed"
    trial = study.add(proposal.params, state, history)
    training.checkpoint.remove()
    return trial


def _facts(name: str, stated: Settings, space: Space, startup_trials: int, inputs: Inputs) -> dict[str, Any]:
    """What a study is made from, as a model's facts are told."""
    facts = tell_facts(f"tune {name}", stated, inputs, choose_hardware(stated), __name__)
    fixed = {key: value for key, value in facts["params"].items() if key not in space}
    params = {**fixed, "startup_trials": startup_trials, "space": {key: varied.model_dump() for key, varied in space.items()}}
    hardware = {key: value for key, value in facts["hardware"].items() if key not in space}
    return {**facts, "params": params, "hardware": hardware, "inputs_sha256": {**facts["inputs_sha256"], "params": sha256_of_json(params)}}
