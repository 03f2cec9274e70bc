"""The table of trials: rows of the same versions are kept, in the order of the catalogues; a failure is a row too."""

import subprocess
from types import SimpleNamespace

import pytest

from bench import zoo

ROW = ["resnet18", "11,689,512", "64", "512", "fc", *["yes"] * 6]


@pytest.fixture(autouse=True)
def table(tmp_path, monkeypatch):
    """A table in a folder of its own."""
    monkeypatch.setattr(zoo, "TABLE", tmp_path / "zoo.md")
    return tmp_path / "zoo.md"


def test_rows_come_back_in_the_order_of_the_catalogues(table):
    rows = {"timm/b": ["timm/b", *ROW[1:]], "resnet18": ROW}
    zoo.write_rows(rows, ["resnet18", "timm/b"])
    assert zoo.read_rows() == rows
    assert list(zoo.read_rows()) == ["resnet18", "timm/b"]


def test_rows_of_other_versions_are_dropped(table, monkeypatch):
    zoo.write_rows({"resnet18": ROW}, [])
    monkeypatch.setattr(zoo, "version", lambda _: "0.0")
    assert zoo.read_rows() == {}


def test_what_took_too_long_has_a_row(monkeypatch):
    def run(*_, **options):
        raise subprocess.TimeoutExpired("python", options["timeout"])

    monkeypatch.setattr(zoo.subprocess, "run", run)
    assert zoo.try_apart("resnet18") == ["resnet18", "-", "-", "-", "-", f"took more than {zoo.SECONDS} s", *["-"] * 5]


def test_what_crashed_has_a_row(monkeypatch):
    ended = SimpleNamespace(returncode=-9, stderr="", stdout="")
    monkeypatch.setattr(zoo.subprocess, "run", lambda *_, **__: ended)
    assert zoo.try_apart("resnet18")[5] == "ended with -9: nothing said"


def test_the_table_holds_the_columns_that_it_announces(table):
    lines = (zoo.ROOT / "docs" / "zoo.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in rows} == {len(zoo.COLUMNS) + 1}
