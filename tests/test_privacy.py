"""What keeps a run at home, and the watch that `tests/e2e` keeps over one."""

import re
import sys

from tests.checkout import ROOT, traces, type_in, watched


def test_onnx_runtime_is_imported_where_its_telemetry_is_switched_off_and_nowhere_else():
    files = (ROOT / "pipeline").rglob("*.py")
    importing = [path for path in files if re.search(r"^(import|from) onnxruntime", path.read_text(), re.MULTILINE)]
    assert [path.name for path in importing] == ["onnx_file.py"]
    before, _, _ = importing[0].read_text().partition("import onnxruntime")
    assert 'setdefault("ORT_DISABLE_TELEMETRY", "1")' in before


def test_the_watch_sees_files_folders_and_addresses_of_child_processes_and_no_switch_of_the_caller(tmp_path, monkeypatch):
    for switch in ("ORT_DISABLE_TELEMETRY", "MPLCONFIGDIR", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "DO_NOT_TRACK", "CI"):
        monkeypatch.setenv(switch, "1")
    child = "import os, pathlib, socket, tempfile; print(sorted(os.environ)); (pathlib.Path.home() / 'id').touch(); tempfile.mkdtemp('x')"
    child += "; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    printed = type_in(tmp_path, sys.executable, "-c", code, **watched(tmp_path / "user", tmp_path))
    file, folder, address = traces(tmp_path / "user")
    assert (file, folder[:4], folder[-1]) == ("home/id", "tmp/", "x")
    assert "socket.connect" in address
    assert not re.search("ORT_|MPL|XDG|TORCH|TRACK|CI'|PYTEST|MLFLOW|DVC", printed)
