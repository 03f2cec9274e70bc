"""The stages stay at home: no file outside of the project, and no connection to another machine."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml

from tests.checkout import ROOT
from tests.projects import TREES

# Reports each address that Python code looks up or connects to. ONNX Runtime does so in C++, and leaves a file in HOME when it does.
WATCH = """
import os, sys
def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect", "socket.gethostbyname"):
        with open(os.environ["WATCHED"], "a") as file:
            print(sys.argv, event, arguments, file=file)
sys.addaudithook(watch)
"""
# Runs stages, each as `python -m` would, but imports torch and MLflow once.
RUN = """
import json, runpy, sys
for stage, *arguments in json.loads(sys.argv[1]):
    sys.argv = [stage, *arguments]
    runpy.run_module(f"pipeline.stages.{stage}", run_name="__main__")
"""
STAGES = [
    ("embed", *TREES, "models/backbone", "data/embeddings"),
    ("evaluate", "models/baseline", "data/splits/test", "data/manifest.csv", "results/baseline", "metrics/baseline.json"),
    ("report", "data", "models", "results", "report", "metrics/comparison.json"),
]


@pytest.fixture
def fresh_user(tmp_path):
    """The environment of a user who never ran anything: an empty HOME and TMPDIR, no variable of ours."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch/sitecustomize.py").write_text(WATCH)
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    ours = ("DVC_", "MLFLOW_", "ORT_", "XDG_", "MPL", "HF_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "WATCHED": str(tmp_path / "watched"),
            "PYTHONPATH": os.pathsep.join([str(tmp_path / "watch"), str(ROOT)])}  # fmt: skip


def test_onnx_runtime_is_imported_where_its_telemetry_is_switched_off_and_nowhere_else():
    files = (ROOT / "pipeline").rglob("*.py")
    importing = [path for path in files if re.search(r"^(import|from) onnxruntime", path.read_text(), re.MULTILINE)]
    assert [path.name for path in importing] == ["onnx_file.py"]
    before, _, _ = importing[0].read_text().partition("import onnxruntime")
    assert 'setdefault("ORT_DISABLE_TELEMETRY", "1")' in before


def test_the_stages_leave_no_file_outside_of_the_project_and_reach_for_no_machine(in_small_project, fresh_user, tmp_path):
    params = yaml.safe_load((in_small_project / "params.yaml").read_text())
    (in_small_project / "params.yaml").write_text(yaml.safe_dump({**params, "models": {}}))
    (in_small_project / "dvc.lock").write_text("stages: {}\n")
    subprocess.run([sys.executable, "-c", RUN, json.dumps(STAGES)], env=fresh_user, check=True)
    left = [path.relative_to(tmp_path) for name in ("home", "tmp") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert sorted(map(str, left)) == []
    assert not (tmp_path / "watched").exists(), (tmp_path / "watched").read_text()
    assert (in_small_project / "mlflow.db").exists()
