"""docs/compose.yaml: the schema of compose files accepts it, it has no password, and it is open on this machine alone."""

import re
import subprocess
import sys

import pytest

from tests.checkout import ROOT
from tests.teams import COMPOSE

PATH = ROOT / "docs/compose.yaml"
SECRETS = {"POSTGRES_PASSWORD", "S3_KEY", "S3_SECRET"}


def test_the_schema_accepts_it():
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", PATH]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_each_secret_is_demanded_and_none_has_a_default():
    text = PATH.read_text()
    assert set(re.findall(r"\$\{(\w+):\?", text)) == SECRETS
    assert set(re.findall(r"\$\{(\w+):-", text)) & SECRETS == set()
    values = [
        str(value) for service in COMPOSE.values() for key, value in service["environment"].items() if re.search("PASSWORD|KEY|SECRET", key)
    ]
    assert len(values) >= len(SECRETS)
    assert [value for value in values if not re.fullmatch(r"\$\{\w+(:\?[^}]*)?\}", value)] == []


def test_every_port_is_open_on_this_machine_alone():
    ports = [port for service in COMPOSE.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_what_others_wait_for_has_a_health_check():
    awaited = {name for service in COMPOSE.values() for name in service.get("depends_on", {})}
    assert awaited == {"postgres", "store"}
    assert [name for name in awaited if "healthcheck" not in COMPOSE[name]] == []
