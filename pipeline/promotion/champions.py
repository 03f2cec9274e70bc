"""The champions: a copy of each promoted model with its answers on test, in a folder that DVC keeps."""

import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_dir, atomic_file, read_value, sha256_of_file, write_table
from pipeline.core.params import parse_yaml
from pipeline.promotion.journal import champion, champion_dir, read_journal

if TYPE_CHECKING:
    from pipeline.pictures.manifest import Picture

CHAMPION = "champion"  # as a model's name; no model of the project may have it
MODELS, RESULTS, MANIFEST = Path("models"), Path("results"), Path("data/manifest.csv")
TEST = "test.csv"  # of which pictures the rows of predictions.npy are
_COLUMNS = ("image_id", "sha256", "label", "group")
_KEPT = ("predictions.csv", "predictions.npy", "scores.json")
_OPTIONAL = ("reference.npz",)  # of `pipeline drift`; champions of older versions lack it


def store(model: str) -> Path:
    """Copy the model of that name and its results to its folder of champions, add that to DVC, and return it.

    A folder that is there is not written again; what a kill left undone is made up for. Who is the champion does not change. Raises
    PipelineError if the results are not about the model and the present test pictures, or if DVC fails.
    """
    from pipeline.networks.artifact import verify_model

    sha256 = verify_model(MODELS / model)
    folder = champion_dir(sha256)
    is_whole, is_added = _is_whole(folder, sha256), _is_added(folder)
    if not is_whole:
        _copy(model, folder)
    if not is_added:
        _pointer(folder).unlink(missing_ok=True)  # DVC cannot read a half-written one
    if not (is_whole and is_added) and (fault := _fault_of_dvc("add", folder)):
        raise PipelineError(f"{folder}: cannot be added to DVC: {fault}; fix it and run the command again")
    return folder


def restore(sha256: str) -> Path:
    """Return the folder of the champion whose model.onnx has this sha256, whole.

    What is missing or damaged comes from DVC's cache, else from a model of the project with that sha256, else from the DVC remote. The
    file that names it in DVC comes from git if that is missing or torn. Raises PipelineError if none of them has it.
    """
    folder = champion_dir(sha256)
    pointer = _pointer(folder)
    sources: list[Callable[[], str | None]] = [
        partial(_checkout, folder),
        partial(_copy_model, sha256),
        partial(_fault_of_dvc, "pull", "--force", pointer),
    ]
    while not _is_whole(folder, sha256):
        if not sources:
            cure = f"run `git pull` and `dvc pull {pointer}`, which reports the cause, or `pipeline rollback`, or `promote --force`"
            raise PipelineError(f"{folder}: the model {sha256} is not in DVC's cache, nor in {MODELS}, nor in a DVC remote; {cure}")
        sources.pop(0)()
    return folder


def champion_model() -> Path | None:
    """Return the model folder of the journal's champion, as `find_kept` does; None if there is no champion yet. Raises PipelineError."""
    entry = champion(read_journal())
    return find_kept(entry.sha256) if entry else None


def find_kept(sha256: str) -> Path:
    """Return the folder of the champion whose model.onnx has this sha256, restored if it is missing.

    Only the files that answer are compared, model.onnx and its tensors if they are beside it: a prediction starts with it. Raises
    PipelineError.
    """
    folder = champion_dir(sha256)
    sums = {"model.onnx": sha256, "model.onnx.data": read_value(folder / "model.json", "data_sha256")}
    files = [(folder / name, expected) for name, expected in sums.items() if expected]
    is_whole = all(path.is_file() and sha256_of_file(path) == expected for path, expected in files)
    return folder if is_whole else restore(sha256)


def find_served(named: str | None, here: Path) -> tuple[str, Path]:
    """Return the name and the folder of the named model: by default the champion, or without one the lowest val loss.

    `named`: `champion`, a name in models/, or a model folder below `here`. Raises PipelineError.
    """
    from pipeline.networks.artifact import find_model

    if named in (None, CHAMPION) and (folder := champion_model()):
        return CHAMPION, folder
    if named == CHAMPION:
        raise PipelineError(f"--model {CHAMPION}: there is none yet; run `pipeline retrain`, or name another model")
    folder = find_model(named, MODELS, here)
    return folder.name, folder


def read_tested(model: str) -> tuple[str, list["Picture"]]:
    """Return the sha256 of the named model and the test pictures, which its results are about. Raises PipelineError if they are not."""
    from pipeline.pictures.manifest import read_manifest, sha256_of_pictures

    path, scores = MODELS / model / "model.onnx", RESULTS / model / "scores.json"
    if not (path.is_file() and MANIFEST.is_file()):
        raise PipelineError(f"{path if MANIFEST.is_file() else MANIFEST}: is not there; run `dvc repro`")
    sha256, pictures = sha256_of_file(path), read_manifest(MANIFEST).split("test")
    if (read_value(scores, "model_sha256"), read_value(scores, "test_sha256")) != (sha256, sha256_of_pictures(pictures)):
        raise PipelineError(f"{scores}: is not about {path} and the test pictures of {MANIFEST}; run `dvc repro`")
    return sha256, pictures


def write_test(folder: Path, pictures: Iterable["Picture"]) -> None:
    """Write test.csv: a row per picture of predictions.npy beside it, in its order."""
    write_table(folder / TEST, _COLUMNS, ({name: getattr(picture, name) for name in _COLUMNS} for picture in pictures))


def _copy(model: str, folder: Path) -> None:
    _, pictures = read_tested(model)
    with atomic_dir(folder) as partial_folder:
        # Files in the place of DVC's links, which may be read-only.
        shutil.copytree(MODELS / model, partial_folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
        results = partial_folder / RESULTS
        results.mkdir()
        for name in (*_KEPT, *(name for name in _OPTIONAL if (RESULTS / model / name).is_file())):
            shutil.copyfile(RESULTS / model / name, results / name)
        write_test(results, pictures)


def _checkout(folder: Path) -> None:
    """Take the folder from DVC's cache, and before that its file from git, if that is not whole."""
    from pipeline.core.dvc import committed

    pointer = _pointer(folder)
    if not _is_added(folder) and (content := committed(pointer)) is not None:
        with atomic_file(pointer) as partial_file:
            partial_file.write_text(content, encoding="utf-8")
    _fault_of_dvc("checkout", "--force", pointer)


def _copy_model(sha256: str) -> None:
    """Copy a model of the project with that sha256, if there is one with its results."""
    for path in sorted(MODELS.glob("*/model.json")):
        if read_value(path, "model_sha256") == sha256:
            with suppress(PipelineError, OSError):
                _copy(path.parent.name, champion_dir(sha256))


def _is_whole(folder: Path, sha256: str) -> bool:
    from pipeline.networks.artifact import verify_model

    try:
        is_model = verify_model(folder) == sha256
    except (PipelineError, ValueError, KeyError):
        return False
    return is_model and all((folder / RESULTS / name).is_file() for name in (*_KEPT, TEST))


def _pointer(folder: Path) -> Path:
    """The file of git that names the folder's content in DVC."""
    return folder.with_name(f"{folder.name}.dvc")


def _is_added(folder: Path) -> bool:
    """Whether DVC has the folder, and wrote its file to the end, which is the path."""
    try:
        return bool(parse_yaml(_pointer(folder).read_text(encoding="utf-8"))["outs"][0]["path"] == folder.name)
    except (OSError, ValueError, TypeError, LookupError):
        return False


def _fault_of_dvc(*arguments: str | Path) -> str | None:
    """Run DVC, and return the first line of its fault; None if it succeeds."""
    from pipeline.core.dvc import run_dvc

    result = run_dvc(*map(str, arguments), capture_output=True)
    if result.returncode == 0:
        return None
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    return next((line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")), f"`dvc {arguments[0]}` failed")
