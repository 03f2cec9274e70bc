"""What the gate judges: the answers of challenger and champion on the present test pictures, and both measured in turn."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_dir, cache_dir, read_json, read_table, read_value, sha256_of_json, table_rows
from pipeline.core.params import BASELINE, PARAMS, model_names, nearest, read_threads
from pipeline.promotion import gate
from pipeline.promotion.champions import MODELS, RESULTS, TEST, read_tested, restore, write_test
from pipeline.promotion.journal import SHORT, Entry

if TYPE_CHECKING:
    from pipeline.core.files import Slice
    from pipeline.pictures.images import Preprocessing
    from pipeline.pictures.manifest import Picture

Row = Mapping[str, str]  # of predictions.csv
_TREE = Path("data/splits/test")
_BATCH = 32
_BLOCK = 4_000_000  # probabilities that are worked on at once
_ROUNDS, _ROUND_SECONDS = 7, 0.1


def choose_challenger(params: gate.Params) -> str:
    """Return the name of the model to judge: the one of `gate.challenger`, or the one with the lowest val loss. Raises PipelineError."""
    from pipeline.networks.artifact import best_model

    if params.challenger == "auto":
        return best_model(MODELS).name
    known = (BASELINE, *model_names())
    if params.challenger not in known:
        raise PipelineError(f"{PARAMS}: gate.challenger: there is no model {params.challenger!r}{nearest(params.challenger, known)}")
    return params.challenger


def prepare(challenger: str, champion: Entry | None) -> tuple[gate.Candidate, gate.Candidate | None, gate.TestSet]:
    """Return both candidates, with a row per judged test picture in one order, and the test set. `challenger`: the name of a model.

    The champion's answers are those that are stored with it. Test pictures that it never saw, it answers now by its own model.onnx. Labels
    and groups are those of the present manifest; a label that is no class of the champion has the probability 0. Pictures that one of the
    two learned from are left out of the rows. Raises PipelineError.
    """
    from pipeline.networks.artifact import read_facts
    from pipeline.pictures.manifest import recorded, sha256_of_pictures
    from pipeline.serving.predictor import open_model

    sha256, pictures = read_tested(challenger)
    folders = [MODELS / challenger, *([] if champion is None else [restore(champion.sha256)])]
    facts = [read_facts(folder) for folder in folders]
    learned = {picture.image_id for each in facts for picture in recorded(pictures, each["learned"])}
    judged = [picture for picture in pictures if picture.image_id not in learned]
    if not judged:
        raise PipelineError(f"{_TREE}: the models learned from each of the {len(pictures)} pictures; add test pictures that are new")
    threads, test_sha256 = read_threads(), sha256_of_pictures(pictures)
    milliseconds = measure_latency([open_model(folder, threads) for folder in folders], judged[0].source(_TREE))
    own = {row["image_id"]: row for row in read_table(RESULTS / challenger / "predictions.csv")}
    first = _candidate(challenger, sha256, facts[0], RESULTS / challenger, _in_order(own, judged), milliseconds[0])
    if champion is None:
        return first, None, gate.TestSet(test_sha256, frozenset(), learned=len(learned))
    first = replace(first, shadow=shadow_sentence(champion.sha256, sha256))
    stored = folders[1] / RESULTS
    tested, present = ({row["sha256"] for row in table_rows(stored / TEST)}, {picture.sha256 for picture in pictures})
    rows = _rows_of_champion(folders[1], pictures, f"{folders[1].name}-{test_sha256[:SHORT]}", facts[1]["class_names"], threads)
    second = _candidate(champion.model, champion.sha256, facts[1], stored, _in_order(rows, judged), milliseconds[1])
    old = frozenset(picture.image_id for picture in judged if picture.sha256 in tested)
    return first, second, gate.TestSet(test_sha256, old, len(tested - present), len(learned))


def judgement_key(challenger_sha256: str, champion_sha256: str | None, test_sha256: str, params: gate.Params, is_stale: bool) -> str:
    """Return what identifies a judgement: two of one key have the same verdict at the same look. `is_stale`: whether the champion is."""
    bounds = params.model_dump(mode="json", exclude={"challenger", "hook"})  # these two decide no verdict
    return sha256_of_json([challenger_sha256, champion_sha256, test_sha256, bounds, is_stale])


class Timed(Protocol):
    """What is measured: a `Predictor`, or a `Form` of one."""

    @property
    def preprocessing(self) -> "Preprocessing": ...

    def predict_pixels(self, pixels: Any) -> Any: ...


def shadow_path(champion_sha256: str, challenger_sha256: str) -> Path:
    """Return the file in which a server counts how often a challenger in its shadow agrees with the champion."""
    return cache_dir("shadow") / f"{champion_sha256[:SHORT]}-{challenger_sha256[:SHORT]}.json"


def read_shadow(champion_sha256: str, challenger_sha256: str) -> dict[str, Any] | None:
    """Return the content of that file; None if it is missing, damaged, or about other models.

    `since`, `until`: times, as the journal writes them; `pictures`, `agreed`: how many; `mean_difference`: of the probabilities, absolute;
    `answers`: a row per pair of classes that the two predict, `champion`, `challenger`, and the number of `pictures`.
    """
    facts = read_value(shadow_path(champion_sha256, challenger_sha256))
    try:
        rows = [(str(row["champion"]), str(row["challenger"]), int(row["pictures"])) for row in facts["answers"]]
        counted = sum(row[2] for row in rows), sum(row[2] for row in rows if row[0] == row[1])
        is_whole = counted == (facts["pictures"], facts["agreed"]) and counted[0] > 0 and float(facts["mean_difference"]) >= 0
        is_theirs = (facts["champion"], facts["challenger"]) == (champion_sha256, challenger_sha256)
        datetime.fromisoformat(facts["since"])
    except (TypeError, KeyError, ValueError):
        return None
    return dict(facts) if is_whole and is_theirs else None


def shadow_sentence(champion_sha256: str, challenger_sha256: str) -> str:
    """Return what servers found out about the challenger in the champion's shadow; empty if it was in none.

    It is evidence for a person, and decides nothing: the pictures have no labels.
    """
    facts = read_shadow(champion_sha256, challenger_sha256)
    if facts is None:
        return ""
    agreed = f"in shadow, it agreed with the champion on {facts['agreed']:,} of {facts['pictures']:,} pictures since {facts['since']}"
    return f"{agreed}; their probabilities differ by {facts['mean_difference']:.3f} on average"


def measure_latency(predictors: Sequence[Timed], picture: "Path | Slice", at_once: int = 1) -> list[float]:
    """Return the milliseconds that each model takes for one prepared picture: the median of seven rounds, all models in turn in each.

    `at_once`: so many copies of it are run together, and the time is that of all. A round lasts 0.1 s or more; a first one, not counted,
    warms up. Raises PipelineError if the picture cannot be read.
    """
    import numpy as np

    from pipeline.pictures.images import BrokenPicture, read_square

    try:
        pixels = [np.stack([read_square(picture, predictor.preprocessing)] * at_once) for predictor in predictors]
    except (BrokenPicture, FileNotFoundError) as error:
        raise _unreadable(error) from None
    rounds = [[_per_run(predictor, each) for predictor, each in zip(predictors, pixels, strict=True)] for _ in range(1 + _ROUNDS)]
    return [median(times) for times in zip(*rounds[1:], strict=True)]


def _per_run(predictor: Timed, pixels: Any) -> float:
    """The mean milliseconds of a run, of as many as a round has."""
    start, count, seconds = time.perf_counter(), 0, 0.0
    while seconds < _ROUND_SECONDS:
        predictor.predict_pixels(pixels)
        count, seconds = count + 1, time.perf_counter() - start
    return 1000 * seconds / count


def _candidate(name: str, sha256: str, facts: Mapping[str, Any], results: Path, rows: gate.Rows, milliseconds: float) -> gate.Candidate:
    megabytes = float(read_json(results / "scores.json")["size"]["megabytes"])
    return gate.Candidate(name, sha256, tuple(facts["class_names"]), facts["preprocessing"], rows, megabytes, milliseconds)


def _in_order(rows: Mapping[str, Row], pictures: Iterable["Picture"]) -> list[Row]:
    return [rows[picture.image_id] for picture in pictures]


def _rows_of_champion(folder: Path, pictures: Sequence["Picture"], key: str, names: Sequence[str], threads: int) -> dict[str, Row]:
    """A row per picture, by image id. `key`: of the folder that keeps the answers about pictures which the champion never saw."""
    rows = _stored_rows(folder / RESULTS, pictures, names)
    unseen = [picture for picture in pictures if picture.image_id not in rows]
    if not unseen:
        return rows
    rescored = cache_dir("rescored") / key
    if not rescored.is_dir():
        _rescore(folder, unseen, rescored, threads)
    return rows | _stored_rows(rescored, unseen, names)


def _rescore(folder: Path, pictures: Sequence["Picture"], rescored: Path, threads: int) -> None:
    """Write predictions.npy, the answers of a stored model, and test.csv, as `champions.store` does."""
    from pipeline.evaluation.answers import write_probs
    from pipeline.pictures.images import BrokenPicture, square_batches
    from pipeline.serving.predictor import Predictor

    predictor = Predictor.load(folder / "model.onnx", threads, on_gpu=True)
    sources = [picture.source(_TREE) for picture in pictures]
    batches = square_batches(sources, predictor.preprocessing, _BATCH, threads, "score the champion")
    try:
        with atomic_dir(rescored) as partial_folder:
            probs = (predictor.predict_pixels(pixels) for pixels in batches)
            write_probs(partial_folder / "predictions.npy", probs, (len(pictures), len(predictor.class_names)))
            write_test(partial_folder, pictures)
    except (BrokenPicture, FileNotFoundError) as error:
        raise _unreadable(error) from None


def _stored_rows(folder: Path, pictures: Iterable["Picture"], names: Sequence[str]) -> dict[str, Row]:
    """The rows, by image id, of those pictures whose bytes are among those of the folder's test.csv. Labels are those of the pictures."""
    import numpy as np

    numbers = {row["sha256"]: number for number, row in enumerate(table_rows(folder / TEST))}
    probs = np.load(folder / "predictions.npy", mmap_mode="r", allow_pickle=False)
    known = [picture for picture in pictures if picture.sha256 in numbers]
    rows: dict[str, Row] = {}
    size = max(1, _BLOCK // len(names))
    for block in (known[start : start + size] for start in range(0, len(known), size)):
        rows |= _block_rows(block, probs[[numbers[picture.sha256] for picture in block]], names)
    return rows


def _block_rows(pictures: Sequence["Picture"], probs: Any, names: Sequence[str]) -> dict[str, Row]:
    """The rows of some pictures, by image id. `probs`: float32 (pictures, classes). A class that the model does not know has 0."""
    import numpy as np

    from pipeline.evaluation.answers import prediction_row, read_answers

    classes = {name: number for number, name in enumerate(names)}
    labels = np.array([classes.get(picture.label, len(names)) for picture in pictures])
    answers = read_answers(labels, np.pad(probs, ((0, 0), (0, 1))))
    return {picture.image_id: prediction_row(picture, answers, number, names) for number, picture in enumerate(pictures)}


def _unreadable(error: Exception) -> PipelineError:
    return PipelineError(f"{_TREE}: a picture cannot be read ({error}); run `dvc repro split`")
