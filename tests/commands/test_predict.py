"""`pipeline predict`: a row per picture, a line for what cannot be read, exit codes; no torch."""

import argparse
import csv
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.commands.answering import share, whole
from pipeline.core.files import sha256_of_file
from pipeline.promotion.journal import Entry, append, champion_dir
from pipeline.serving.predictor import Predictor
from tests.checkout import ROOT
from tests.stored import write_model

NAMES = ["ants", "bees", "Käfer"]
LOGITS = [float(np.log(part)) for part in (0.7, 0.2, 0.1)]
HEAD = "path,predicted,probability,prob_ants,prob_bees,prob_Käfer\n"
ROW = ",ants,0.700000,0.700000,0.200000,0.100000\n"


@pytest.fixture(autouse=True)
def models(below):
    """Two models, of which the better one says 0.7, 0.2, 0.1 to any picture."""
    write_model(below.parent / "models" / "baseline", NAMES, val_losses=(0.5,))
    write_model(below.parent / "models" / "finetuned", NAMES, val_losses=(0.2,), bias=LOGITS)


@pytest.fixture
def predict(ask):
    """Type `pipeline predict`: its exit code, stdout and stderr."""
    return lambda *arguments, **options: ask("predict", *arguments, **options)


def test_pictures_and_folders_are_named_relative_to_the_users_folder(predict):
    assert predict("in/c", "in/b.png") == (0, f"{HEAD}in/c/a.png{ROW}in/b.png{ROW}", "")


def test_a_list_on_stdin_takes_the_place_of_a_dash(predict):
    assert predict("in/b.png", "-", stdin=b"in/a.png\nin/c\n") == (0, f"{HEAD}in/b.png{ROW}in/a.png{ROW}in/c/a.png{ROW}", "")


@pytest.mark.parametrize("option", ["-0", "--null"])
def test_nul_separates_the_list_if_asked(predict, below, option):
    (below / "a\nb.png").write_bytes((below / "in" / "a.png").read_bytes())
    assert predict(option, "-", stdin=b"a\nb.png\0in/a.png\0") == (0, f'{HEAD}"a\nb.png"{ROW}in/a.png{ROW}', "")


def test_an_empty_list_is_a_header_alone(predict):
    assert predict("-") == (0, HEAD, "")


def test_a_broken_picture_is_one_line_and_the_others_have_rows(predict):
    code, out, err = predict("broken.png", "in/a.png", "nothing\n.png")
    assert (code, out) == (3, f"{HEAD}in/a.png{ROW}")
    assert err == "broken.png: not a picture\nnothing\\n.png: does not exist\n"


def test_the_threshold_itself_is_enough_to_predict(predict):
    assert predict("in/a.png", "--abstain-below", "0.7") == (0, f"{HEAD}in/a.png{ROW}", "")


@pytest.mark.parametrize("named", ["baseline", "../models/baseline"])
def test_the_named_model_predicts(predict, below, named):
    (row,) = csv.DictReader(io.StringIO(predict("in/a.png", "--model", named)[1]))
    probs = Predictor.load(below.parent / "models" / "baseline" / "model.onnx", 2).predict([below / "in" / "a.png"])[0]
    assert [float(row[f"prob_{name}"]) for name in NAMES] == pytest.approx(probs.tolist(), abs=1e-6)


@pytest.fixture
def champion(below):
    """A champion of the journal, which says 0.1, 0.2, 0.7 to any picture: its folder."""
    root = below.parent
    folder = write_model(root / "promoted", NAMES, bias=LOGITS[::-1])
    sha256 = sha256_of_file(folder / "model.onnx")
    (root / "champions").mkdir()
    append(Entry("2026-11-27T03:00:00Z", "PROMOTE", "the first", "promoted", sha256, None, "key"), root / "promotions.jsonl")
    return folder.rename(champion_dir(sha256, root / "champions"))


@pytest.mark.parametrize("named", [(), ("--model", "champion")])
def test_the_champion_predicts_also_if_another_model_has_a_lower_val_loss(predict, champion, named):
    assert predict("in/a.png", *named) == (0, f"{HEAD}in/a.png,Käfer,0.700000,0.100000,0.200000,0.700000\n", "")


def test_a_named_model_predicts_in_place_of_the_champion(predict, champion):
    assert predict("in/a.png", "--model", "finetuned") == (0, f"{HEAD}in/a.png{ROW}", "")


def test_a_damaged_champion_that_nobody_has_does_not_predict(predict, champion):
    (champion / "model.onnx").write_bytes(b"damaged")
    code, out, err = predict("in/a.png")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"champions/{champion.name}: ")
    assert "dvc pull" in err


def test_before_there_is_a_champion_its_name_is_refused(predict):
    code, out, err = predict("in/a.png", "--model", "champion")
    assert (code, out, err) == (1, "", "--model champion: there is none yet; run `pipeline retrain`, or name another model\n")


def test_a_named_file_gets_the_rows(predict, below):
    assert predict("in/a.png", "broken.png", "--output", "new/rows.csv") == (3, "", "broken.png: not a picture\n")
    assert (below / "new" / "rows.csv").read_text() == f"{HEAD}in/a.png{ROW}"


def test_a_named_sheet_is_drawn(predict, below):
    assert predict("in", "broken.png", "--sheet", "sheet.png")[0] == 3
    with Image.open(below / "sheet.png") as sheet:
        assert (sheet.format, sheet.size) == ("PNG", (764, 272))


def test_a_sheet_has_at_most_100_pictures(predict, below):
    predict("-", "--sheet", "sheet.png", stdin=b"in/a.png\n" * 110)
    with Image.open(below / "sheet.png") as sheet:
        assert sheet.size == (1140, 3920)  # 17 rows of six: 100 pictures


def test_predicting_twice_gives_the_same_bytes(predict, below):
    first = (*predict("in", "broken.png", "--sheet", "a.png"), (below / "a.png").read_bytes())
    (below / "a.png").unlink()
    assert (*predict("in", "broken.png", "--sheet", "a.png"), (below / "a.png").read_bytes()) == first


def test_a_device_is_not_replaced_by_the_rows(predict):
    code, out, err = predict("in", "--output", "/dev/null")
    assert (code, out, err.count("\n"), err.startswith("/dev/null: ")) == (1, "", 1, True)


def test_the_bytes_of_a_picture_on_stdin_are_refused(predict, below):
    code, out, err = predict("-", stdin=(below / "in" / "a.png").read_bytes())
    assert (code, out, err.count("\n"), err.startswith("-: contains NUL bytes")) == (1, "", 1, True)


@pytest.mark.parametrize("threads", ["0", "two", "true", "null"])
def test_threads_that_are_no_number_are_refused(predict, below, threads):
    (below.parent / "params.yaml").write_text(f"threads: {threads}\n")
    shown = {"0": "0", "two": "'two'", "true": "True", "null": "None"}[threads]
    code, out, err = predict("in")
    assert (code, out, err.count("\n"), err.startswith(f"params.yaml: threads: {shown} ")) == (1, "", 1, True)


@pytest.mark.parametrize("text", ["1.5", "-0.1", "nan", "x", ""])
def test_a_share_is_a_number_from_0_to_1(text):
    with pytest.raises(argparse.ArgumentTypeError):
        share(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.0", "x", ""])
def test_a_count_is_a_whole_number_above_0(text):
    with pytest.raises(argparse.ArgumentTypeError):
        whole(text)


def test_the_ends_of_both_ranges_are_in_them():
    assert [share("0"), share("1"), whole("1")] == [0.0, 1.0, 1]


# In a process of its own


def in_a_process(below, code, **options):
    environment = {key: value for key, value in os.environ.items() if key != "DVC_ROOT"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], cwd=below, env=environment, check=False, text=True, **options)


@pytest.mark.parametrize(("options", "drawn"), [("", False), (", '--sheet', 'sheet.png'", True)])
def test_no_heavy_library_is_imported_and_matplotlib_for_a_sheet_alone(below, champion, options, drawn):
    code = f"import sys; from pipeline.__main__ import main; main(['predict', 'in/a.png'{options}]); print(*sys.modules, file=sys.stderr)"
    modules = set(in_a_process(below, code, capture_output=True).stderr.split())
    assert "pipeline.promotion.champions" in modules
    assert modules & {"torch", "torchvision", "timm", "mlflow", "pandas", "pydantic", "scipy", "sklearn", "onnx", "yaml"} == set()
    assert ("matplotlib" in modules) == drawn


def test_a_reader_that_leaves_early_ends_it_quietly(below):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as stdout:
        ended = in_a_process(below, "from pipeline.__main__ import main; main(['predict', 'in'])", stdout=stdout, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_disk_without_space_is_one_line(below):
    with open("/dev/full", "wb") as stdout:
        ended = in_a_process(below, "from pipeline.__main__ import main; main(['predict', 'in'])", stdout=stdout, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert ended.stderr.startswith("stdout: No space left on device; ")


def test_stdout_is_utf8_whatever_the_terminal_says(below, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    code = "from pipeline.__main__ import main; main(['predict', 'in/a.png'])"
    assert in_a_process(below, code, capture_output=True, encoding="utf-8").stdout == f"{HEAD}in/a.png{ROW}"
