"""`pipeline`: where a command runs, how it ends, and what it takes to start."""

import json
import os
import signal
import subprocess
import sys

import pytest

from pipeline.__main__ import main
from tests.archives import ZipMember, zip_bytes
from tests.checkout import ROOT

LIMITS = "{fetch_gigabytes: 1, fetch_hours: 1, files: 9, gigabytes: 1, ratio: 9}"
HEAVY = {"numpy", "yaml", "ruamel", "pydantic", "scipy", "torch", "mlflow", "dvc", "onnxruntime", "PIL", "matplotlib", "pandas", "tqdm"}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty project, in which commands are typed in a folder below the root."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "below").mkdir()
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path / "below")
    return tmp_path


def test_a_command_runs_in_the_projects_root(root, capsys):
    (root / "pictures.zip").write_bytes(zip_bytes(ZipMember(b"ants/1.png")))
    (root / "params.yaml").write_text(f"download: {{source: pictures.zip, digest: null, limits: {LIMITS}}}\n")
    main(["data", "refresh"])
    assert capsys.readouterr().out.startswith("download.digest None -> ")


def test_the_root_that_dvc_names_comes_first(tmp_path, monkeypatch, capsys):
    (tmp_path / "named" / "metrics").mkdir(parents=True)
    figures = {"learned_test_pictures": 0, "top1_accuracy": 0.5, "balanced_accuracy": 0.5, "log_loss": 0.25, "ece": 0.1}
    comparison = {"test_pictures": 4, "test_groups": 4, "confidence": 0.9, "models": {"baseline": figures}, "differences": {}}
    (tmp_path / "named" / "metrics" / "comparison.json").write_text(json.dumps(comparison))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "named"))
    main(["results"])
    assert "4 test pictures; in brackets 90 % intervals." in capsys.readouterr().out


def test_a_reader_that_leaves_early_ends_it_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from pipeline.__main__ import main; main(['results'])"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"} | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")


def test_the_parser_is_made_without_a_heavy_library():
    code = "import sys; from pipeline.__main__ import make_parser; make_parser(); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    modules = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert HEAVY & {name.partition(".")[0] for name in modules} == set()
    assert not {name for name in modules if name.startswith(("pipeline.core.params", "pipeline.networks", "pipeline.training"))}
