"""MLflow's model registry: one version per stored model, and the aliases that say which of them is the champion."""

import json
import os
import re
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_dir, cache_dir, sha256_of_file, sha256_of_json
from pipeline.tracking.connection import (
    EXPERIMENT,
    RunLocked,
    connect,
    creation_lock,
    error_line,
    hide_secrets,
    mlflow_errors,
    tracking_uri,
)
from pipeline.tracking.internals import write_beside_others
from pipeline.tracking.publish import SUPERSEDED, kept_model, log_stored_model
from pipeline.tracking.runs import KEY, MODEL, REQUEST

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

DECISION = "decision"  # the tag with the verdict, and the folder of the run's artifacts; tags that begin with it go to the run, too
REGISTERED = "pipeline.registered"  # a version's tag, set last: the digest of its tags
SHOWN = "pipeline.shown"  # the digest of the decision's files; a machine that has none leaves those of another
_CURE = "run `pipeline retrain`"  # it makes up for what is undone
_TAG_LENGTH = 5000  # the lowest limit of any MLflow, in characters; a reason that somebody typed may be longer
_SHORT = 16  # digits of a sha256 in a line
_ADDRESS = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))")
_NO_ALIAS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # a server's words for no such model, and for no such alias


@dataclass(frozen=True)
class Registration:
    """A model to register.

    `sha256`: of its model.onnx; `name`: in params.yaml; `folder`: its model folder, with the results on test in `results`, None if there
    is none any more; `tags`: commit, lock_sha256, decision (the verdict), decision_reason; `decision`: a folder with the decision's page.
    """

    sha256: str
    name: str
    folder: Path | None
    tags: Mapping[str, str]
    decision: Path | None


def update_registry(models: Sequence[Registration], aliases: Mapping[str, str | None]) -> list[str]:
    """Register each model that has no version yet, set the aliases (alias to sha256), and return a line per change. Raises PipelineError.

    A version is of the logged model of the run that was published; where MLflow has none, the model is logged from its folder first. All
    models that have neither are one line. What is right already is not written again. Versions and aliases of others stay; an alias that
    is to be None is removed only from a version of ours.

    MLflow sets one alias at a time. `champion` is set after the others and nothing is removed before it: whoever reads in between finds
    the old champion or the new one, and never a new champion whose predecessor has no alias.
    """
    with mlflow_errors(_CURE):
        client, experiment_id = connect()
        _use_address()
        with creation_lock():
            before = _registered_aliases(client)
            versions, lines, absent = _own_versions(client), [], []
            for model in models:
                try:
                    versions[model.sha256], told = _register(client, experiment_id, model, versions.get(model.sha256))
                    lines += told
                except _NoModel:
                    absent.append(f"{model.name} {model.sha256[:_SHORT]}")
            if absent:
                lines.append(f"{EXPERIMENT}: no version of {', '.join(absent)}; MLflow has no run, and there is no folder")
            return lines + _set_aliases(client, before, versions, aliases)


def check_registry(aliases: Mapping[str, str | None], deep: bool = False) -> list[str]:
    """Return a line per alias that is not as stated (alias to sha256), without changing anything. Raises PipelineError.

    `deep`: also download the model.onnx of each version and compare its sha256; otherwise the version's tag counts.
    """
    with mlflow_errors(_CURE):
        client, _ = connect()
        _use_address()
        found = _read_aliases(client) or {}
        shas = {int(version.version): sha256 for sha256, version in _own_versions(client).items()} if found else {}
        lines = []
        for alias, sha256 in aliases.items():
            number = found.get(alias)
            if sha256 != shas.get(number or 0):
                lines.append(f"{EXPERIMENT}@{alias}: is {_name(number, shas)}; it must be {sha256[:_SHORT] if sha256 else 'unset'}")
            elif deep and number and sha256 and (fault := _stored_fault(number, sha256)):
                lines.append(f"{EXPERIMENT}@{alias}: {fault}")
        return lines


def ask_alias(alias: str, seconds: float = 3.0) -> tuple[str, str] | None:
    """Return the sha256 and the number of the version that an alias names, asked of MLflow's server by its REST API, without MLflow.

    A process that answers pictures has no room for MLflow. None if MLFLOW_TRACKING_URI is not the address of a server, if there is no such
    alias, or if this project did not register its version. Raises PipelineError if the server does not answer, within so many seconds.
    """
    uri, variables = tracking_uri(), {name: os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD", "TOKEN")}
    if not uri.startswith(("http://", "https://")):
        return None
    import requests

    try:
        response = requests.get(
            f"{uri.rstrip('/')}/api/2.0/mlflow/registered-models/alias",
            params={"name": EXPERIMENT, "alias": alias},
            auth=(variables["USERNAME"], variables["PASSWORD"]) if variables["USERNAME"] else None,
            headers={"Authorization": f"Bearer {variables['TOKEN']}"} if variables["TOKEN"] and not variables["USERNAME"] else None,
            timeout=seconds,
        )
        answer = response.json()
        if answer.get("error_code") in _NO_ALIAS:
            return None
        response.raise_for_status()
        version = answer["model_version"]
        tags = {tag["key"]: tag["value"] for tag in version.get("tags", ())}
        return (str(tags[MODEL]), str(version["version"])) if MODEL in tags else None
    except (requests.RequestException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"{error_line(error)}; start the server") from None


class _NoModel(Exception):  # noqa: N818 - no fault
    """There is nothing to make a version of."""


# Versions


def _use_address() -> None:
    """Let MLflow's functions without a client use our address: its registry looks up logged models by them."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())


def _own_versions(client: "MlflowClient", query: str = "") -> dict[str, "ModelVersion"]:
    """The versions of this project by sha256; of several the lowest, which all machines agree on."""
    page = client.search_model_versions(f"name = '{EXPERIMENT}'{query}")
    found = list(page)
    while page.token:
        page = client.search_model_versions(f"name = '{EXPERIMENT}'{query}", page_token=page.token)
        found += page
    ours = [version for version in found if {REQUEST, MODEL} <= version.tags.keys()]
    return {version.tags[MODEL]: version for version in sorted(ours, key=lambda version: -int(version.version))}


def _register(
    client: "MlflowClient", experiment_id: str, model: Registration, version: "ModelVersion | None"
) -> tuple["ModelVersion", list[str]]:
    """The version of a model, created if need be, with its tags and its decision; and a line per change."""
    tags = {key: value[:_TAG_LENGTH] for key, value in {MODEL: model.sha256, "model": model.name, **model.tags}.items()}
    files = sorted(path for path in model.decision.rglob("*") if path.is_file()) if model.decision else []
    digests = {SHOWN: sha256_of_json([(path.name, sha256_of_file(path)) for path in files])} if files else {}
    digests[REGISTERED] = sha256_of_json(tags)
    if version and digests.items() <= version.tags.items():
        return version, []
    version = version or _create_version(client, _find_or_log(client, experiment_id, model), tags)
    _log_decision(client, version.run_id, model)
    changed = {key: value for key, value in tags.items() if version.tags.get(key) != value}
    for key, value in {**changed, **digests}.items():
        write_beside_others(client.set_model_version_tag, EXPERIMENT, version.version, key, value)
    verdict = model.tags.get(DECISION, "registered")
    return version, [f"{EXPERIMENT} version {version.version}: {model.name} {model.sha256[:_SHORT]}, {verdict}"]


def _find_or_log(client: "MlflowClient", experiment_id: str, model: Registration) -> "LoggedModel":
    """The logged model of that file. Raises _NoModel if there is none and it cannot be made."""
    if logged := _find_logged(client, experiment_id, model.sha256):
        return logged
    if model.folder is None:
        raise _NoModel
    try:
        log_stored_model(client, experiment_id, model.folder, model.sha256)
    except RunLocked:  # it is being trained
        raise _NoModel from None
    if logged := _find_logged(client, experiment_id, model.sha256):
        return logged
    raise PipelineError(f"MLflow: the model that was logged from {model.folder} is not there; {_CURE}")


def _find_logged(client: "MlflowClient", experiment_id: str, sha256: str) -> "LoggedModel | None":
    """The complete logged model of that file whose run is there and not superseded; of several the one that all machines keep."""
    found = client.search_logged_models([experiment_id], f"tags.`{MODEL}` = '{sha256}'")
    ours = [logged for logged in found if logged.status == "READY" and KEY in logged.tags]
    pairs = [(logged, client.get_run(logged.source_run_id)) for logged in ours if logged.source_run_id]
    alive = [
        (SUPERSEDED in run.data.tags, logged.creation_timestamp, logged.model_id, run)
        for logged, run in pairs
        if run.info.lifecycle_stage == "active"
    ]
    return kept_model(client, min(alive, key=lambda each: each[:3])[-1], sha256) if alive else None


def _create_version(client: "MlflowClient", logged: "LoggedModel", tags: Mapping[str, str]) -> "ModelVersion":
    """Create a version, look again, and return the lowest one of that model: another machine may have been faster.

    Numbers are given in the order in which versions become visible, so that only the lowest never sees a lower one. If ours is another,
    it is deleted: nobody chose it.
    """
    all_tags = {**tags, REQUEST: uuid.uuid4().hex}
    source = f"models:/{logged.model_id}"
    created = write_beside_others(client.create_model_version, EXPERIMENT, source, logged.source_run_id, all_tags, model_id=logged.model_id)
    lowest = _own_versions(client, f" and tags.`{MODEL}` = '{tags[MODEL]}'").get(tags[MODEL], created)
    if lowest.version != created.version:
        client.delete_model_version(EXPERIMENT, created.version)
    return lowest


def _log_decision(client: "MlflowClient", run_id: str | None, model: Registration) -> None:
    """Show the decision in the run of the model, unless somebody deleted the run."""
    from mlflow.entities import RunTag

    if run_id is None or client.get_run(run_id).info.lifecycle_stage != "active":
        return
    tags = [RunTag(key, value[:_TAG_LENGTH]) for key, value in model.tags.items() if key.startswith(DECISION)]
    write_beside_others(client.log_batch, run_id, tags=tags)
    if model.decision:
        client.log_artifacts(run_id, str(model.decision), DECISION)


# Aliases


def _read_aliases(client: "MlflowClient") -> dict[str, int] | None:
    """Each alias and the number of its version; None if there is no registered model."""
    from mlflow.exceptions import MlflowException

    try:
        return {alias: int(number) for alias, number in client.get_registered_model(EXPERIMENT).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _registered_aliases(client: "MlflowClient") -> dict[str, int]:
    """Each alias and the number of its version. Creates the registered model if there is none."""
    from mlflow.exceptions import MlflowException

    if (aliases := _read_aliases(client)) is not None:
        return aliases
    try:
        client.create_registered_model(EXPERIMENT)
    except MlflowException:
        if (aliases := _read_aliases(client)) is None:
            raise
        return aliases  # another machine was faster
    return {}


def _set_aliases(
    client: "MlflowClient", before: Mapping[str, int], versions: Mapping[str, "ModelVersion"], aliases: Mapping[str, str | None]
) -> list[str]:
    """Set what differs, `champion` after the others, then remove; return a line per change."""
    numbers = {sha256: int(version.version) for sha256, version in versions.items()}
    wanted = {alias: numbers[sha256] for alias, sha256 in aliases.items() if sha256 in numbers}
    missing = {alias: sha256 for alias, sha256 in aliases.items() if sha256 and sha256 not in numbers}
    lines = []
    for alias in sorted(wanted, key=lambda alias: alias == "champion"):
        if before.get(alias) != wanted[alias]:
            write_beside_others(client.set_registered_model_alias, EXPERIMENT, alias, str(wanted[alias]))
            old = f", was version {before[alias]}" if alias in before else ""
            lines.append(f"{EXPERIMENT}@{alias}: is version {wanted[alias]}{old}")
    for alias in (alias for alias, sha256 in aliases.items() if sha256 is None and before.get(alias) in numbers.values()):
        client.delete_registered_model_alias(EXPERIMENT, alias)
        lines.append(f"{EXPERIMENT}@{alias}: is unset, was version {before[alias]}")
    return lines + [f"{EXPERIMENT}@{alias}: is not set, {sha256[:_SHORT]} has no version" for alias, sha256 in missing.items()]


# Download


def fetch_model(address: str) -> Path:
    """Return a folder with the model.onnx of `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Raises PipelineError.

    MLflow says which version that is. Its file is downloaded once into `.cache/registry/<sha256>`, and its sha256 is compared each time.
    """
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise PipelineError(f"{address}: is not an address of a model; expected models:/NAME@ALIAS or models:/NAME/VERSION")
    with mlflow_errors("call `load_model` again"):
        client, _ = connect()
        version, sha256 = _find_version(client, address, *match.groups())
        folder = cache_dir("registry") / sha256
        if not _is_file(folder / "model.onnx", sha256):
            _use_address()
            _download(f"models:/{version.name}/{version.version}", sha256, folder)
    return folder


def _find_version(client: "MlflowClient", address: str, name: str, alias: str | None, number: str) -> tuple["ModelVersion", str]:
    """The version of an address, and the sha256 of its model.onnx. Raises PipelineError."""
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise PipelineError(f"{address}: MLflow at {hide_secrets(tracking_uri())} has no such model; look at its models page") from None
    sha256 = version.tags.get(MODEL) or (client.get_logged_model(version.model_id).tags.get(MODEL) if version.model_id else None)
    if not sha256:
        raise PipelineError(f"{address}: is not a model of this pipeline; use `mlflow.pyfunc.load_model`")
    return version, sha256


def _download(version: str, sha256: str, folder: Path) -> None:
    """Download model.onnx, and the tensors beside it if there are any, and compare them with their sums. Raises PipelineError."""
    import onnx
    from mlflow.artifacts import download_artifacts

    from pipeline.networks.onnx_file import METADATA_KEY

    # MLflow writes a file below the folders of its address: into a scratch folder, which is removed before `folder` gets its name.
    with atomic_dir(folder) as partial, tempfile.TemporaryDirectory(dir=partial) as scratch:

        def fetch(name: str, wanted: str) -> Path:
            path = Path(download_artifacts(f"{version}/artifacts/{name}", dst_path=scratch))
            if not _is_file(path, wanted):
                raise PipelineError(f"{version}: its {name} in MLflow is damaged: the sha256 is not {wanted}; run `pipeline retrain`")
            return path.replace(partial / name)

        graph = onnx.load(fetch("model.onnx", sha256), load_external_data=False)
        facts = json.loads(next(entry.value for entry in graph.metadata_props if entry.key == METADATA_KEY))
        if "data_sha256" in facts:
            fetch("model.onnx.data", facts["data_sha256"])


def _is_file(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of_file(path) == sha256


# The check


def _name(number: int | None, shas: Mapping[int, str]) -> str:
    """What an alias is, in words."""
    if number is None:
        return "unset"
    return f"version {number}, {shas[number][:_SHORT]}" if number in shas else f"version {number}, which this project did not register"


def _stored_fault(number: int, sha256: str) -> str | None:
    """What is wrong with the model.onnx that MLflow stores of a version; None if nothing is."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            path = download_artifacts(f"models:/{EXPERIMENT}/{number}/artifacts/model.onnx", dst_path=folder)
            found = sha256_of_file(Path(path))
        except (MlflowException, OSError):
            return f"MLflow has lost the model.onnx of version {number}"
    return None if found == sha256 else f"the model.onnx of version {number} is {found[:_SHORT]}; it must be {sha256[:_SHORT]}"
