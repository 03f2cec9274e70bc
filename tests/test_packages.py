"""The audit of the pinned packages: what pip-audit answers decides, and no answer is not taken for a good one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "packages.py"


@pytest.fixture
def audit(tmp_path):
    """Run the audit with a `pip-audit` that prints some text and ends with some exit code; its output and exit code."""

    def run(stdout, stderr="", code=0):
        command = tmp_path / "pip-audit"
        command.write_text(f"#!{sys.executable}\nimport sys\nprint({stdout!r})\nprint({stderr!r}, file=sys.stderr)\nsys.exit({code})\n")
        command.chmod(0o755)
        environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        result = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, check=False)
        return result.stdout, result.returncode

    return run


def answer(*packages):
    return json.dumps({"dependencies": list(packages), "fixes": []})


GOOD = {"name": "a", "version": "1.0", "vulns": []}
BAD = {"name": "b", "version": "2.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1", "3.0"], "aliases": [], "description": ""}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


def test_packages_without_a_known_fault_pass(audit):
    assert audit(answer(GOOD, SKIPPED)) == ("1 of 2 packages audited, 0 known faults\n", 0)


def test_a_known_fault_is_named_and_fails(audit):
    assert audit(answer(GOOD, BAD), code=1) == ("b 2.0: CVE-1, fixed in 2.1, 3.0\n2 of 2 packages audited, 1 known faults\n", 1)


def test_packages_that_the_database_does_not_know_are_not_called_audited(audit):
    assert audit(answer(SKIPPED)) == ("packages not audited: not found\n", 0)


def test_a_database_out_of_reach_is_said(audit):
    assert audit("", "Traceback\nConnectionError: no route", 1) == ("packages not audited: ConnectionError: no route\n", 0)
