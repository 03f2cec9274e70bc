"""`pipeline`: what the command line accepts, and how it ends."""

import json
import os
import signal
import subprocess
import sys

import pytest

from pipeline.__main__ import main
from tests.conftest import ROOT

LIMITS = "{fetch_gigabytes: 1, fetch_hours: 1, files: 9, gigabytes: 1, ratio: 9}"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty project, in which the command is typed in a folder below the root."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "below").mkdir()
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path / "below")
    return tmp_path


@pytest.mark.parametrize("arguments", [["nonsense"], [], ["data"], ["data", "nonsense"], ["ui", "--port", "x"], ["results", "--nonsense"]])
def test_what_is_no_command_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("usage: pipeline")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["results"], "metrics/comparison.json: is not there; run `dvc repro`"),
        (["verify"], "models: holds no model; run `dvc repro`"),
        (["data", "refresh"], "params.yaml: is not there; run in the project's root"),
    ],
)
def test_a_fault_of_the_user_is_one_line_and_ends_with_1(arguments, line, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 1
    assert capsys.readouterr() == ("", f"{line}\n")


def test_a_command_runs_in_the_projects_root(root, capsys):
    (root / "pictures.zip").write_bytes(b"")
    (root / "params.yaml").write_text(f"download: {{source: pictures.zip, digest: null, limits: {LIMITS}}}\n")
    main(["data", "refresh"])
    assert capsys.readouterr().out.startswith("download.digest None -> e3b0c442")


def test_the_root_that_dvc_names_comes_first(tmp_path, monkeypatch, capsys):
    (tmp_path / "named" / "metrics").mkdir(parents=True)
    figures = {"top1_accuracy": 0.5, "balanced_accuracy": 0.5, "log_loss": 0.25, "ece": 0.1}
    comparison = {"test_pictures": 4, "confidence": 0.9, "models": {"baseline": figures}, "differences": {}}
    (tmp_path / "named" / "metrics" / "comparison.json").write_text(json.dumps(comparison))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "named"))
    main(["results"])
    assert "4 test pictures; in brackets 90 % intervals." in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        "results",
        "predict",
        "explain",
        "advise",
        "models",
        "summary",
        "tune",
        "seeds",
        "retrain",
        "data",
        "publish",
        "ui",
        "verify",
        "classify",
        "segment",
        "detect",
    ],
)
def test_every_command_stands_in_the_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert f"\n    {command} " in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_ends_it_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from pipeline.__main__ import main; main(['results'])"]
    ended = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")
