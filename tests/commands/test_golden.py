"""The whole output of each command in a small project equals tests/golden/<command>.txt.

`GOLDEN=write python -m pytest tests/commands/test_golden.py` rewrites the files. Read the diff before you commit it.
"""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from filelock import FileLock
from onnx import TensorProto, helper

from pipeline.core import dvc
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of, sha256_of_file, write_json
from pipeline.networks.artifact import write_facts
from pipeline.pictures.images import Preprocessing, read_square
from pipeline.pictures.manifest import Picture, write_manifest
from pipeline.sources.shards import read_index
from tests import promotions, scored
from tests.archives import ZipMember, make_shards, zip_bytes
from tests.checkout import ROOT
from tests.stored import SIZE, write_classifier, write_model

GOLDEN = ROOT / "tests" / "golden"
LIMITS = "limits: {fetch_gigabytes: 1, fetch_hours: 1, files: 10, gigabytes: 1, ratio: 10}"
LOGITS = [float(np.log(share)) for share in (0.7, 0.2, 0.1)]


def write_scores(root, baseline=None, finetuned=None, confidence=0.95, groups=268, others=(), test_set="0"):
    """Write a comparison of two models, or of more."""
    shifts = (("", 0), ("_low", -0.1), ("_high", 0.1))

    def figures(accuracy):
        values = {"top1_accuracy": accuracy, "balanced_accuracy": accuracy, "log_loss": 0.25, "ece": 0.15}
        return {"learned_test_pictures": 0, **{f"{name}{end}": value + shift for name, value in values.items() for end, shift in shifts}}

    difference = {f"top1_accuracy_difference{end}": 0.25 + shift for end, shift in shifts}
    models = {"baseline": {**figures(0.5), **(baseline or {})}, "finetuned": figures(0.75), **{name: figures(0.5) for name in others}}
    differences = {
        "finetuned": {
            **difference, "against": "baseline", "mcnemar_p_adjusted": 6.6e-05, "is_shown": True,
            "best_epoch": 3, "last_epoch": 4, "epochs": 4, **(finetuned or {}),
        }
    }  # fmt: skip
    facts = {
        "test_pictures": 268,
        "test_groups": groups,
        "test_sha256": test_set * 64,
        "confidence": confidence,
        "models": models,
        "differences": differences,
    }
    if others:
        worse = {name: -value for name, value in difference.items()}
        pair = {**worse, "against": "finetuned", "mcnemar_p_adjusted": 0.2, "is_shown": False}
        facts["best"] = {"model": "finetuned", "differences": {name: pair for name in models if name != "finetuned"}}
    write_json(root / "metrics/comparison.json", facts)


def results(root, monkeypatch):
    yield "results"
    write_scores(root)
    yield "results"
    no_interval = {"ece": 0.0, "ece_low": None, "ece_high": None}
    write_scores(root, no_interval, {"mcnemar_p_adjusted": 1.0, "is_shown": False, "best_epoch": 0, "last_epoch": 3}, confidence=0.995)
    yield "results"
    write_scores(root, {"learned_test_pictures": 5}, groups=41, others=["partial"])
    yield "results"


def audit(root, monkeypatch):
    yield "audit"
    kinds = {
        "broken": {"title": "Does not decode", "fate": "left out"},
        "near_duplicate": {"title": "Alike", "fate": "kept in one split"},
    }
    findings = [{"kind": "near_duplicate", "sentence": "'a', 'b': the two look alike"}]
    findings += [{"kind": "broken", "sentence": f"'{name}\\nd': not a picture"} for name in "cdefg"]
    write_json(root / "data/audit.json", {"pictures": 7, "quarantined": 5, "kinds": kinds, "findings": findings})
    yield "audit"
    yield "audit --all"


def verify(root, monkeypatch):
    yield "verify"
    (root / "models/backbone").mkdir(parents=True)
    for name in ("finetuned", "baseline"):
        folder = root / "models" / name
        folder.mkdir()
        ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch"]) for end in ("x", "y")]
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], name, ends[:1], ends[1:])
        write_facts(
            folder, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), {"model": name}, [{"epoch": 0}]
        )
        write_json(root / "results" / name / "scores.json", {"model_sha256": sha256_of_file(folder / "model.onnx")})
    yield "verify"
    write_json(root / "results/finetuned/scores.json", {"model_sha256": "0" * 64})
    yield "verify"
    (root / "results/finetuned/scores.json").unlink()
    yield "verify"


def models(root, monkeypatch):
    from pipeline.stock import networks

    entries = [
        networks.ModelListing("resnet18", "torchvision", 11_689_512, 1.814, 224, "BSD-3-Clause", "pytorch.org", "in store"),
        networks.ModelListing("timm/resnet18", "timm", None, None, 224, "a-licence-of-many-words", "huggingface", "-"),
        networks.ModelListing("vit_h_14", "torchvision", 633_470_440, 1016.717, 518, "-", "pytorch.org", "packaged"),
    ]
    monkeypatch.setattr(networks, "find_names", lambda search, library: [entry.name for entry in entries if search in entry.name])
    monkeypatch.setattr(networks, "list_entries", lambda names: iter([entry for entry in entries if entry.name in names]))
    monkeypatch.setattr("pipeline.networks.zoo.nearest_names", lambda search: ["resnet18", "resnet34"])
    yield "models"
    yield "models --search vit"
    yield "models --search resnett --library timm"


def predict(root, monkeypatch):
    write_model(root / "models/baseline", val_losses=(0.5,))
    write_model(root / "models/finetuned", val_losses=(0.2,), bias=LOGITS)
    yield "predict in broken.png nothing.png"
    yield "predict in --format jsonl"
    yield "predict in/a.png in/c --top 2"
    yield "predict in/a.png --top 2 --format jsonl --abstain-below 0.71"
    yield "predict in/a.png --abstain-below 0.71"
    yield "predict in broken.png --output rows.csv --sheet sheet.png"
    yield "predict in --output in"
    yield "predict in --model other"
    yield "predict in --abstain-below 1.5"
    yield "predict in --top 0"
    yield "predict in --sheet a.jpg"
    yield "predict"
    yield "predict in --unfamiliar refuse"
    pixels = read_square(root / "below/in/a.png", Preprocessing(SIZE, 1.0, "bicubic"))
    write_model(root / "models/telling", val_losses=(0.3,), bias=LOGITS, familiar=pixels[None])
    yield "predict in/a.png in/b.png --model telling"
    yield "predict in/a.png in/b.png --model telling --unfamiliar refuse --format jsonl"
    yield "predict in/a.png in/b.png --model telling --unfamiliar refuse --top 1 --sheet refused.png"


def explain(root, monkeypatch):
    write_classifier(root, "test_resnet")
    yield "explain in broken.png --output sheet.png"
    yield "explain in --class wasps"
    yield "explain in --output sheet.jpg"
    shutil.rmtree(root / "models")
    write_classifier(root, "test_vit", 160)
    yield "explain in"


def summary(root, monkeypatch):
    yield "summary"
    write_classifier(root, "test_resnet")
    (root / "params.yaml").write_text("threads: 1\nbackbone: {name: test_resnet}\n")
    yield "summary"
    yield "summary --model other"


def export(root, monkeypatch):
    yield "export --to int8"
    with monkeypatch.context() as patch:
        scored.make_scored(root, patch)
    shutil.move(root / "models/own", root / "own")
    monkeypatch.setattr("pipeline.promotion.exporting.measure_latency", lambda models, picture, count: [3.0 * count, 2.0 * count])
    yield "export --to fp16 --model ../own --output form"
    yield "export --to int8 --model ../own"
    yield "export --to fp16 --model ../own --output in"
    yield "export --to tflite"
    yield "export --to torchscript"
    yield "export --to onnx"
    yield "export --to int8 --max-loss 2"


def export_folders(root, monkeypatch):
    yield "export-folders out"
    write_split(root)
    yield "export-folders out"
    yield "export-folders out"
    yield "export-folders one --split val"
    yield "export-folders broken.png"
    shutil.rmtree(root / "data/raw")
    yield "export-folders other"


def write_split(root):
    """Write a manifest of three pictures, one of them with a file of its own, and what it names."""
    parts = read_index(make_shards(root / "data/raw", {"ants/1.png": b"1", "ants/2.png": b"2", "bees/3.gif": b"3"}))
    rows = []
    for name, split in {"ants/1.png": "train", "ants/2.png": "val", "bees/3.gif": "train"}.items():
        part, label = parts[name], name.split("/")[0]
        rows.append(Picture(name, name, "0" * 64, label, split, name, 8, 8, "../../raw/pictures.tar", part.offset, part.size))
        (root / "data/splits" / split).mkdir(parents=True, exist_ok=True)
    rows[2] = Picture("bees/3.gif", "bees/3.gif.png", "0" * 64, "bees", "train", "bees/3.gif", 8, 8)
    (root / "data/splits/train/bees").mkdir()
    (root / "data/splits/train/bees/3.gif.png").write_bytes(b"a PNG")
    write_manifest(root / "data/manifest.csv", rows)


def data(root, monkeypatch):
    yield "data"
    (root / "params.yaml").write_text("seed: 0\n")
    yield "data refresh"
    (root / "params.yaml").write_text(f"download: {{source: pictures.zip, {LIMITS}}}\n")
    yield "data refresh"
    (root / "params.yaml").write_text(f"download: {{source: pictures.zip, digest: null, {LIMITS}}}\n")
    yield "data refresh"
    (root / "pictures.zip").write_bytes(b"<html><title>Sign in</title>")
    yield "data refresh"
    (root / "pictures.zip").write_bytes(zip_bytes(ZipMember(b"ants/1.png")))
    yield "data refresh"
    yield "data refresh"
    yield "data refresh --force"
    yield "data refresh --help"


def mend(root, monkeypatch):
    monkeypatch.setattr(dvc, "_WRITE_SECONDS", 0)
    (root / ".dvc/tmp").mkdir(parents=True)
    yield "mend"
    (root / ".dvc/tmp/rwlock").write_text("{")
    (root / "dvc.lock").write_text("stages: {}\n")
    for arguments in (["init", "-q"], ["add", "dvc.lock"], ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "a"]):
        subprocess.run(["git", *arguments], check=True, cwd=root)
    (root / "dvc.lock").write_text("stages: [\n")
    yield "mend"
    (root / "dvc.lock").write_text("<<<<<<< HEAD\n")
    yield "mend"


def store(root, monkeypatch):
    limits = f"url_mirrors: [], {LIMITS}"
    contents = {number: b"%d" % number * size for number, size in ((1, 2_500_000), (2, 30_000), (3, 1))}
    names = {number: sha256_of(content) for number, content in contents.items()}
    (root / "params.yaml").write_text(f"download: {{source: 'http://data.example/a.zip', digest: {names[1]}, {limits}}}\n")
    yield "store"
    for number, content in contents.items():
        path = root / ".cache/store" / names[number]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (1.7e9 + number, 1.7e9 + number))
    write_json(root / "data/source.json", {"digest": names[1]})
    write_json(root / "models/backbone/backbone.json", {"weights": {"sha256": names[2]}})
    yield "store"
    yield "store --trim"
    yield "store --trim --yes"
    yield "store --trim"
    yield "store"


def publish(root, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.publish.publish", lambda *_: [])
    yield "publish"
    monkeypatch.setattr("pipeline.tracking.publish.publish", lambda *_: ["baseline: published", "finetuned: published"])
    yield "publish"


def unreachable():
    raise PipelineError("http://tracking.example: cannot be reached")


def retrain(root, monkeypatch):
    (root / "pictures.zip").write_bytes(zip_bytes(ZipMember(b"ants/1.png")))
    promotions.install(monkeypatch)
    promotions.write_gate(root)
    with (root / "params.yaml").open("a") as params:
        params.write(f"download: {{source: pictures.zip, digest: null, {LIMITS}}}\n")
    promotions.write_candidate("small", b"one", root)
    outputs = {
        "status": json.dumps({"split": []}),
        "repro": "Running stage 'split':\n> python\nRunning stage 'train@finetuned':\n",
        "test set": "0",
    }
    failing = []

    def run_dvc(*arguments, **_):
        if arguments[0] == "repro":
            write_scores(root, test_set=outputs["test set"])
        return subprocess.CompletedProcess(arguments, int(arguments[0] in failing), outputs[arguments[0]])

    monkeypatch.setattr(dvc, "run_dvc", run_dvc)
    monkeypatch.setattr("pipeline.tracking.publish.publish", lambda *_: [])
    yield "retrain"
    outputs["status"] = "{}"
    yield "retrain"
    outputs["status"] = json.dumps({"split": []})
    failing.append("repro")
    yield "retrain"
    monkeypatch.setattr("pipeline.commands.upkeep.publish_all", unreachable)
    failing.clear()
    yield "retrain"
    (root / "mlflow_away").touch()
    promotions.write_candidate("small", b"two", root)
    (root / "verdict").write_text("HOLD")
    outputs["test set"] = "1"
    yield "retrain"
    (root / "mlflow_away").unlink()
    monkeypatch.setattr("pipeline.commands.upkeep.publish_all", list)
    outputs["status"] = "{}"
    yield "retrain"
    with FileLock(root / ".cache/locks/retrain.lock"):
        yield "retrain"


def champion(root, monkeypatch):
    promotions.install(monkeypatch)
    promotions.write_gate(root)
    promotions.write_candidate("small", b"one", root)
    yield from ("champion", "history", "history --json", "rollback", "approve", "promote --force", "promote small")
    yield "champion"
    yield "champion --json"
    promotions.write_candidate("small", b"two", root)
    (root / "verdict").write_text("PENDING")
    promotions.set_clock(monkeypatch.setattr, "2026-03-09T03:00:00Z")
    yield "promote"
    promotions.set_clock(monkeypatch.setattr, "2026-03-09T09:00:00Z")
    yield "approve --reason seen"
    promotions.set_clock(monkeypatch.setattr, "2026-03-10T09:00:00Z")
    (root / "mlflow_away").touch()
    yield "rollback --to 77"
    yield "rollback --to 7692"
    (root / "mlflow_away").unlink()
    yield "rollback"
    yield "history"
    yield "history --json"
    shutil.rmtree(root / "champions")
    yield "champion"


def deps(root, monkeypatch):
    shutil.copy(ROOT / "dvc.yaml", root)
    yield "deps"
    (root / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text().replace("pipeline/networks/zoo.py", "pipeline/networks/old.py"))
    yield "deps"


def ui(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example")
    yield "ui"


def usage(root, monkeypatch):
    for command in (
        "",
        *"results predict explain audit verify export export-folders data retrain champion history promote approve rollback".split(),
        *"publish mend store deps ui models summary".split(),
    ):
        yield f"{command} --help".strip()
    yield "nonsense"
    yield ""


# Each yields the command lines to type, and prepares the project in between.
COMMANDS = [
    results,
    audit,
    verify,
    models,
    predict,
    explain,
    summary,
    export,
    export_folders,
    data,
    mend,
    store,
    publish,
    retrain,
    champion,
    deps,
    ui,
    usage,
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_a_command_prints_what_its_golden_file_contains(command, below, ask, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    root = below.parent
    parts = []
    for line in command(root, monkeypatch):
        code, out, err = ask(*line.split())
        parts.append(
            f"$ pipeline {line}".rstrip() + f"\n{out}" + (f"[stderr]\n{err}" if err else "") + (f"[exit code {code}]\n" if code else "")
        )
    printed = "\n".join(parts).replace(str(root), "/project")
    path = GOLDEN / f"{command.__name__}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(printed, encoding="utf-8")
    assert printed == path.read_text(encoding="utf-8")
