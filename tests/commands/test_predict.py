"""`pipeline predict`: rows for what can be read, a line for what cannot, an exit code that tells; no torch."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.__main__ import main
from pipeline.serving.predictor import Predictor
from tests.checkout import ROOT
from tests.stored import write_model

NAMES = ["ants", "bees", "Käfer"]
CONSTANT = [float(np.log(share)) for share in (0.7, 0.2, 0.1)]
HEAD = "path,predicted,probability,prob_ants,prob_bees,prob_Käfer\n"
ROW = ",ants,0.700000,0.700000,0.200000,0.100000\n"


@pytest.fixture
def below(tmp_path, monkeypatch):
    """A project with two models, of which the better says 0.7, 0.2, 0.1 to any picture, and a folder where the user stands."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text("threads: 2\n")
    write_model(tmp_path / "models" / "baseline", NAMES, val_losses=(0.5,))
    write_model(tmp_path / "models" / "finetuned", NAMES, val_losses=(0.2,), bias=CONSTANT)
    below = tmp_path / "below"
    for number, name in enumerate(("in/b.png", "in/a.png", "in/c/a.png")):
        (below / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 10, 3), np.uint8)).save(below / name)
    (below / "broken.png").write_text("hello")
    monkeypatch.chdir(below)
    return below


@pytest.fixture
def ask(below, capsys, monkeypatch):
    """Type the command where the user stands: its exit code, stdout and stderr."""

    def typed(*arguments, stdin=b""):
        monkeypatch.chdir(below)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = 0
        try:
            main(["predict", *map(str, arguments)])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return typed


def test_pictures_and_folders_are_answered_from_where_the_user_stands(ask):
    assert ask("in/c", "in/b.png") == (0, f"{HEAD}in/c/a.png{ROW}in/b.png{ROW}", "")


def test_a_list_on_stdin_takes_the_place_of_a_dash(ask):
    assert ask("in/b.png", "-", stdin=b"in/a.png\nin/c\n") == (0, f"{HEAD}in/b.png{ROW}in/a.png{ROW}in/c/a.png{ROW}", "")


@pytest.mark.parametrize("option", ["-0", "--null"])
def test_nul_parts_the_list_where_it_is_said(ask, below, option):
    (below / "a\nb.png").write_bytes((below / "in" / "a.png").read_bytes())
    assert ask(option, "-", stdin=b"a\nb.png\0in/a.png\0") == (0, f'{HEAD}"a\nb.png"{ROW}in/a.png{ROW}', "")


def test_an_empty_list_is_a_header_alone(ask):
    assert ask("-") == (0, HEAD, "")


def test_broken_pictures_are_a_line_each_and_the_rest_goes_on(ask):
    code, out, err = ask("broken.png", "in/a.png", "nothing\n.png")
    assert (code, out) == (3, f"{HEAD}in/a.png{ROW}")
    assert err == "broken.png: not a picture\nnothing\\n.png: is not there\n"


def test_json_lines_are_as_many_as_pictures(ask):
    code, out, err = ask("in", "--format", "jsonl")
    wanted = {"predicted": "ants", "probability": 0.7, "probs": {"ants": 0.7, "bees": 0.2, "Käfer": 0.1}}
    assert [json.loads(row) for row in out.splitlines()] == [{"path": f"in/{name}.png", **wanted} for name in ("a", "b", "c/a")]
    assert (code, err) == (0, "")


def test_the_most_probable_classes_are_as_many_as_wanted(ask):
    assert ask("in/a.png", "--top", "1")[1] == "path,predicted,probability,top_1,top_1_prob\nin/a.png,ants,0.700000,ants,0.700000\n"


@pytest.mark.parametrize(("share", "predicted"), [("0.7", "ants"), ("0.71", "")])
def test_below_the_threshold_no_class_is_predicted(ask, share, predicted):
    code, out, _ = ask("in/a.png", "--abstain-below", share)
    (row,) = csv.DictReader(io.StringIO(out))
    assert (code, row["predicted"], row["probability"]) == (0, predicted, "0.700000")


@pytest.mark.parametrize("named", ["baseline", "../models/baseline"])
def test_the_model_that_is_named_answers(ask, below, named):
    (row,) = csv.DictReader(io.StringIO(ask("in/a.png", "--model", named)[1]))
    probs = Predictor.load(below.parent / "models" / "baseline" / "model.onnx", 2).predict([below / "in" / "a.png"])[0]
    assert [float(row[f"prob_{name}"]) for name in NAMES] == pytest.approx(probs.tolist(), abs=1e-6)


def test_a_file_takes_the_rows_where_it_is_named(ask, below):
    assert ask("in/a.png", "broken.png", "--output", "new/rows.csv") == (3, "", "broken.png: not a picture\n")
    assert (below / "new" / "rows.csv").read_text() == f"{HEAD}in/a.png{ROW}"


def test_a_sheet_is_drawn_where_it_is_named(ask, below):
    assert ask("in", "broken.png", "--sheet", "sheet.png")[0] == 3
    with Image.open(below / "sheet.png") as sheet:
        assert (sheet.format, sheet.size) == ("PNG", (764, 272))


def test_a_sheet_is_bounded(ask, below):
    ask("-", "--sheet", "sheet.png", stdin=b"in/a.png\n" * 110)
    with Image.open(below / "sheet.png") as sheet:
        assert sheet.size == (1140, 3920)  # 17 rows of six: 100 pictures


def test_asking_twice_gives_the_same_bytes(ask, below):
    first = (*ask("in", "broken.png", "--sheet", "a.png"), (below / "a.png").read_bytes())
    (below / "a.png").unlink()
    assert (*ask("in", "broken.png", "--sheet", "a.png"), (below / "a.png").read_bytes()) == first


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["in", "--output", "in"], "in: is no ordinary file; name another"),
        (["in", "--output", "/dev/null"], "/dev/null: is no ordinary file; name another"),
        (
            ["in", "--model", "other"],
            "--model other: there is no such model, neither in models nor as a folder; available: baseline, finetuned",
        ),
    ],
)
def test_a_call_that_cannot_be_answered_is_one_line_and_ends_with_1(ask, arguments, line):
    assert ask(*arguments) == (1, "", f"{line}\n")


def test_bytes_of_a_picture_on_stdin_are_refused(ask, below):
    line = "-: holds NUL bytes; give names of files, one a line, or parted by NUL with -0; a picture itself is no list\n"
    assert ask("-", stdin=(below / "in" / "a.png").read_bytes()) == (1, "", line)


@pytest.mark.parametrize("threads", ["0", "two", "true", "null"])
def test_threads_that_are_no_number_are_refused(ask, below, threads):
    (below.parent / "params.yaml").write_text(f"threads: {threads}\n")
    shown = {"0": "0", "two": "'two'", "true": "True", "null": "None"}[threads]
    assert ask("in") == (1, "", f"params.yaml: threads: {shown} is not a whole number above 0\n")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "the following arguments are required: PATH"),
        (["in", "--abstain-below", "1.5"], "argument --abstain-below: '1.5' is not a number from 0 to 1"),
        (["in", "--abstain-below", "nan"], "argument --abstain-below: 'nan' is not a number from 0 to 1"),
        (["in", "--abstain-below", "x"], "argument --abstain-below: 'x' is not a number from 0 to 1"),
        (["in", "--top", "0"], "argument --top: '0' is not a whole number above 0"),
        (["in", "--sheet", "a.jpg"], "argument --sheet: 'a.jpg' does not end in .png"),
    ],
)
def test_wrong_usage_ends_with_2(ask, arguments, fault):
    code, out, err = ask(*arguments)
    assert (code, out, err.splitlines()[-1]) == (2, "", f"pipeline predict: error: {fault}")


# In a process of its own


def in_a_process(below, code, **options):
    environment = {key: value for key, value in os.environ.items() if key != "DVC_ROOT"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], cwd=below, env=environment, check=False, text=True, **options)


@pytest.mark.parametrize(("options", "drawn"), [("", False), (", '--sheet', 'sheet.png'", True)])
def test_no_heavy_library_is_imported_and_matplotlib_for_a_sheet_alone(below, options, drawn):
    code = f"import sys; from pipeline.__main__ import main; main(['predict', 'in'{options}]); print(*sys.modules, file=sys.stderr)"
    modules = set(in_a_process(below, code, capture_output=True).stderr.split())
    assert modules & {"torch", "torchvision", "timm", "mlflow", "pandas", "sklearn", "onnx"} == set()
    assert ("matplotlib" in modules) == drawn


def test_a_reader_that_leaves_early_ends_it_quietly(below):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as stdout:
        ended = in_a_process(below, "from pipeline.__main__ import main; main(['predict', 'in'])", stdout=stdout, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_disk_without_room_is_one_line(below):
    with open("/dev/full", "wb") as stdout:
        ended = in_a_process(below, "from pipeline.__main__ import main; main(['predict', 'in'])", stdout=stdout, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (1, "stdout: No space left on device; see to it and ask again\n")


def test_stdout_is_utf8_whatever_the_terminal_says(below, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    code = "from pipeline.__main__ import main; main(['predict', 'in/a.png'])"
    assert in_a_process(below, code, capture_output=True, encoding="utf-8").stdout == f"{HEAD}in/a.png{ROW}"
