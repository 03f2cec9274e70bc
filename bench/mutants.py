"""Plant faults in clones of the project, one at a time in each, and report which of them the tests find.

Each fault replaces one piece of code by another: an off-by-one, a wrong split, a wrong axis or sign, a swallowed error, a missing fsync.
For each, the test files that import the changed module run, the nearest first, until one fails. `python bench/mutants.py` prints a table
and writes bench/mutants.json; `--only TEXT` runs the faults whose file or name contains a text. A fault whose code is not there exactly
once is an error: the list must follow the code.
"""

import argparse
import ast
import functools
import json
import os
import queue
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/mutants.json"
NEAR = 2  # imports between a test file and the changed module
SECONDS = 900  # for the tests of one fault

# (file in pipeline/, what the fault is, code, code with the fault)
FAULTS: list[tuple[str, str, str, str]] = [
    ('core/files.py', 'a file is renamed without fsync',
     '        _sync(partial)\n        partial.replace(path)',
     '        partial.replace(path)'),
    ('core/files.py', 'a folder is renamed without fsync',
     '        _sync_all(partial)\n',
     ''),
    ('core/files.py', 'a failed block leaves its file',
     '        partial.unlink(missing_ok=True)\n    _sync(path.parent)',
     '        pass\n    _sync(path.parent)'),
    ('core/sections.py', 'unknown keys are ignored',
     'extra="forbid"',
     'extra="ignore"'),
    ('core/sections.py', 'the recipe wins over the entry',
     '{**defaults, **section, **shared}',
     '{**section, **defaults, **shared}'),
    ('core/stage.py', 'the lock is on the first path',
     '_lock(paths[-1])',
     '_lock(paths[0])'),
    ('core/stage.py', 'imports in functions do not count',
     '    for node in ast.walk(tree):\n        if isinstance(node, ast.Import)',
     '    for node in tree.body:\n        if isinstance(node, ast.Import)'),
    ('net/fetch.py', 'a resumed file is not checked again',
     '        if partial.resumed and not _fits(pin, partial.checksum):',
     '        if False and not _fits(pin, partial.checksum):'),
    ('net/fetch.py', 'https may redirect to http',
     'allowed = ("https",) if old.scheme == "https" else ("http", "https")',
     'allowed = ("http", "https")'),
    ('net/fetch.py', 'mirrors are not asked',
     'for address in (url, *mirrors):',
     'for address in (url,):'),
    ('net/store.py', 'a damaged file of the store is used',
     '    if sha256_of_file(path) == digest:\n        return path',
     '    if sha256_of_file(path):\n        return path'),
    ('sources/members.py', 'a member climbs out of the archive',
     'if ".." in parts:',
     'if ".." == name:'),
    ('sources/members.py', 'one file less than the limit',
     'self._files > self._limits.files',
     'self._files >= self._limits.files'),
    ('sources/members.py', 'bytes are not bounded',
     'if self._bytes > self._limits.gigabytes * 1e9:',
     'if self._bytes > self._limits.gigabytes * 1e12:'),
    ('sources/archives.py', "a zip's claimed size is believed",
     '    if size != claimed:',
     '    if False:'),
    ('sources/archives.py', 'the digest depends on the order of the listing',
     'tqdm(sorted(members), "pack"',
     'tqdm(list(members), "pack"'),
    ('sources/formats.py', 'rows and columns of CIFAR are swapped',
     'transpose(0, 2, 3, 1), labels',
     'transpose(0, 3, 2, 1), labels'),
    ('pictures/images.py', 'EXIF orientation is ignored',
     'if orientation in _TURNS:\n',
     'if orientation in ():\n'),
    ('pictures/images.py', 'deep pixels are scaled by half',
     'np.clip(values, 0, white) * (255 / white)',
     'np.clip(values, 0, white) * (127 / white)'),
    ('pictures/images.py', 'the crop is off centre',
     'left, top = (image.width - width) / 2, (image.height - height) / 2',
     'left, top = (image.height - height) / 2, (image.width - width) / 2'),
    ('pictures/splits.py', 'one group more than splits is asked for',
     'if group_count < len(fractions):',
     'if group_count <= len(fractions):'),
    ('pictures/splits.py', 'the seed plays no part',
     'f"{seed}/{',
     'f"{0}/{'),
    ('pictures/audit.py', 'a leak is left out of the wrong split',
     'SPLITS[SPLITS.index(given[name]) + 1 :]',
     'SPLITS[: SPLITS.index(given[name])]'),
    ('pictures/likeness.py', 'similarity is not asked',
     'view) >= needed)',
     'view) >= -1)'),
    ('networks/classifier.py', 'the mean is added',
     '* cast(Tensor, self.scale) - cast(Tensor, self.offset)',
     '* cast(Tensor, self.scale) + cast(Tensor, self.offset)'),
    ('networks/regimes.py', 'frozen BatchNorm still moves',
     '            layer.eval().requires_grad_(False)',
     '            layer.requires_grad_(False)'),
    ('networks/regimes.py', 'stages thaw an epoch late',
     'if epoch >= self.thaw_epochs:',
     'if epoch > self.thaw_epochs:'),
    ('networks/onnx_file.py', 'an export that differs is accepted',
     '    if not difference <= allowed:',
     '    if False:'),
    ('networks/artifact.py', 'softmax over the wrong axis',
     '"probs", axis=1)',
     '"probs", axis=0)'),
    ('networks/artifact.py', 'a changed model file passes',
     '!= sha256:',
     "== '':"),
    ('networks/weights.py', 'a pinned digest is not compared',
     '    if digest is not None and digest != sha256:',
     '    if False:'),
    ('training/loop.py', 'the last group of batches is lost',
     '        if number % together and number < batches:',
     '        if number % together:'),
    ('training/recipe.py', 'a later equal epoch wins',
     '        if value < self.best:',
     '        if value <= self.best:'),
    ('training/loop.py', 'the last epoch is stored, not the best',
     '    trainer.model.load_state_dict(trainer.stopping.weights)\n',
     ''),
    ('training/checkpoint.py', 'a resumed run has other random numbers',
     '        _restore_random(state["random"], trainer.train)\n',
     ''),
    ('training/logistic.py', 'the penalty counts twice in the gradient',
     'gradients[..., :-1] += penalised',
     'gradients[..., :-1] += 2 * penalised'),
    ('training/logistic.py', 'rows of other folds are learned from',
     'errors *= used[:, None]',
     'errors *= 1'),
    ('training/head.py', 'the penalty is chosen on train',
     'best = min(history, key=lambda row: row["val_loss"])',
     'best = min(history, key=lambda row: row["train_loss"])'),
    ('training/temperature.py', 'the temperature is inverted',
     'logits / np.exp(log_temperature)',
     'logits * np.exp(log_temperature)'),
    ('training/recipe.py', 'the cosine rises',
     '(1 + math.cos(',
     '(1 - math.cos('),
    ('training/batches.py', 'BatchNorm gets a batch of one',
     'drop_last=is_one_left',
     'drop_last=False'),
    ('evaluation/scores.py', 'recall over the wrong axis',
     '_ratio(np.diag(matrix), matrix.sum(axis=1))',
     '_ratio(np.diag(matrix), matrix.sum(axis=0))'),
    ('evaluation/scores.py', 'the matrix is transposed',
     'np.bincount(labels * num_classes + predicted',
     'np.bincount(predicted * num_classes + labels'),
    ('evaluation/intervals.py', 'bootstrap-t not mirrored',
     'float(mean - high * error), float(mean - low * error)',
     'float(mean + low * error), float(mean + high * error)'),
    ('evaluation/comparison.py', 'McNemar plays no part',
     'not low <= 0 <= high and adjusted_p < 1 - confidence',
     'not low <= 0 <= high'),
    ('evaluation/scores.py', 'ties count as wins',
     'others_so_far - others / 2',
     'others_so_far - others'),
    ('evaluation/calibration.py', 'a confidence of 1 has a bin of its own',
     'np.minimum((top_probs * BINS).astype(int), BINS - 1)',
     'np.minimum((top_probs * BINS).astype(int), BINS)'),
    ('stages/evaluate.py', 'val is scored in place of test',
     'split("test")',
     'split("val")'),
    ('stages/embed.py', 'features are of other pictures',
     'paths = [picture.source(train) for picture in table.train] + [picture.source(val) for picture in table.val]',
     'paths = [picture.source(val) for picture in table.val] + [picture.source(train) for picture in table.train]'),
    ('sources/layout.py', "the archive's val folder is not test",
     'for folder, split in ((test_folder, "test"), (val_folder, "val"))',
     'for folder, split in ((test_folder, "val"), (val_folder, "test"))'),
    ('tracking/publish.py', 'publishing twice publishes twice',
     'run.data.tags.get(PUBLISHED) == contents.edition_digest',
     'run.data.tags.get(PUBLISHED) != contents.edition_digest'),
    ('tracking/runs.py', 'a failed training is FINISHED',
     '        close("FAILED")',
     '        close("FINISHED")'),
    ('tracking/runs.py', "MLflow's fault is swallowed",
     '            self.error = error',
     '            self.error = None'),
    ('core/errors.py', 'passwords are printed',
     '    return re.sub(r"//[^/?#\\s]*@", "//", text)',
     '    return text'),
    ('serving/predictions.py', 'abstains at the threshold',
     'rounded[best] < abstain_below',
     'rounded[best] <= abstain_below'),
    ('serving/predictions.py', 'the least probable come first',
     'key=lambda pair: -pair[1]',
     'key=lambda pair: pair[1]'),
    ('networks/artifact.py', 'the worst model answers',
     '    return min(losses, key=lambda folder: losses[folder])',
     '    return max(losses, key=lambda folder: losses[folder])'),
    ('search/tuning.py', "a trial's value is its worst epoch",
     'key=lambda figure: self._sign * figure)',
     'key=lambda figure: -self._sign * figure)'),
    ('search/advice.py', 'a loss is no win',
     'interval, interval[1] < 0))',
     'interval, interval[0] < 0))'),
    ('stock/tasks.py', 'the last of equals wins',
     'higher = score > best',
     'higher = score >= best'),
    ('stages/report.py', 'the report reads the last epoch',
     'int(kept_row(models / name)["epoch"])',
     'int(read_table(models / name / "history.csv")[-1]["epoch"])'),
    ('networks/embedding.py', 'a damaged shard of features is used',
     '            if sha256_of_file(path) != path.stem:',
     '            if False:'),
    ('networks/embedding.py', 'known pictures are embedded again',
     '            features[new.pop(digest)] = values',
     '            features[new[digest]] = values'),
    ('core/stage.py', 'a comment changes the digest of code',
     '            node.body = node.body[1:] or [ast.Pass()]',
     '            pass'),
]  # fmt: skip


def imports_of(path: Path) -> set[str]:
    """The modules of this project that a file imports, as file paths from the root."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {f"{name.replace('.', '/')}.py" for name in names}
    return {name for name in found if (ROOT / name).is_file()}


def near_tests(changed: str) -> list[str]:
    """The test files that reach a module by at most `NEAR` imports, the nearest first; those of its own room before others."""
    graph = {path.relative_to(ROOT).as_posix(): imports_of(path) for top in ("pipeline", "tests") for path in (ROOT / top).rglob("*.py")}
    distance, frontier = {changed: 0}, {changed}
    for step in range(1, NEAR + 2):
        frontier = {name for name, imported in graph.items() if imported & frontier and name not in distance}
        distance |= dict.fromkeys(frontier, step)
    room = changed.split("/")[1]
    tests = [name for name in distance if Path(name).name.startswith("test_") and "/e2e/" not in name]
    stem = Path(changed).stem
    return sorted(tests, key=lambda name: (stem not in Path(name).stem, distance[name], f"/{room}/" not in name, name))


def is_found(copy: Path, tests: list[str]) -> str | None:
    """The first test that fails in a copy, or None."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow and not e2e", "-p", "no:cacheprovider", *tests]
    try:
        run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return "the tests did not end in time"
    if run.returncode == 0:
        return None
    failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0] if failed else run.stdout.splitlines()[-1]


def make_copy(folder: Path) -> Path:
    """Clone what is committed, and see that its tests can be collected: what fails without a fault proves nothing."""
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    subprocess.run([sys.executable, "-m", "pytest", "--collect-only", "-qq"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder


def try_fault(copies: queue.Queue[Path], file: str, fault: str, code: str, faulty: str) -> dict[str, str | int | None]:
    """Plant a fault in one of the copies, run the tests near it, and take it out again."""
    copy = copies.get()
    path = copy / "pipeline" / file
    text = path.read_text(encoding="utf-8")
    if text.count(code) != 1:
        raise SystemExit(f"{file}: {fault}: its code is there {text.count(code)} times, not once: {code!r}")
    path.write_text(text.replace(code, faulty), encoding="utf-8")
    begun = time.monotonic()
    found = is_found(copy, near_tests(f"pipeline/{file}"))
    path.write_text(text, encoding="utf-8")
    copies.put(copy)
    tqdm.write(f"{'found ' if found else 'MISSED'}  {file}: {fault}  {found or ''}")
    return {"file": file, "fault": fault, "found_by": found, "seconds": round(time.monotonic() - begun)}


def main() -> None:
    """Run the faults, print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a text in the file or name of the faults to plant")
    parser.add_argument("--jobs", type=int, default=1, help="faults planted at a time")
    options = parser.parse_args()
    faults = [row for row in FAULTS if options.only in f"{row[0]} {row[1]}"]
    copies: queue.Queue[Path] = queue.Queue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        for number in range(options.jobs):
            copies.put(make_copy(Path(folder) / str(number)))
        tried = pool.map(functools.partial(try_fault, copies), *zip(*faults, strict=True))
        rows = list(tqdm(tried, "faults", len(faults), disable=None))
    count = sum(row["found_by"] is not None for row in rows)
    print(f"{count} of {len(rows)} faults found")
    if not options.only:
        RESULTS.write_text(json.dumps({"found": count, "faults": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
